"""What an installation looks like, and a stranger's package installed beside it."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import DIGITS_SUITE, clean_environment
from runs import rows_of

from tta_bench.store import results

ROOT = pathlib.Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The project's wheel, built from a copy so that the checkout stays clean."""
    copy, out = tmp_path_factory.mktemp("source") / "tta-bench", tmp_path_factory.mktemp("wheel")
    skipped = shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.egg-info", "results", "build", ".*_cache")
    shutil.copytree(ROOT, copy, ignore=skipped)
    shutil.copytree(ROOT / "results" / "reference", copy / "results" / "reference")  # the rest of it is runs
    command = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", str(out), str(copy)]
    subprocess.run(command, check=True, env=clean_environment())
    [path] = out.glob("*.whl")
    return path


def test_the_wheel_holds_methods_suites_weights_and_published_numbers_inside_the_package(wheel: pathlib.Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"tta_bench"}
    assert {name for name in names if name.startswith("tta_bench/reference/")} == {
        f"tta_bench/reference/{name}" for name in ("__init__.py", "published.csv", "alexnet_errors.csv")
    }
    for name in (
        "methods/tent.py",
        "suites/digits_c.yaml",
        "suites/papers/sar.yaml",
        "data/kinds/weights/digits_vit_ln.safetensors",
        "methods/weights/digits_c/mgg-vit_ln.safetensors",
        "report/render/templates/table.tex.j2",
        "references.bib",
    ):
        assert f"tta_bench/{name}" in names
    entry_points = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert "tent = tta_bench.methods.tent:Tent" in entry_points


@pytest.mark.faults
def test_the_installed_wheel_runs_from_the_checkout_on_ray(wheel: pathlib.Path, tmp_path: pathlib.Path,
                                                           cache: pathlib.Path) -> None:  # fmt: skip
    """Workers must import the installed package, though the working directory holds another copy of it."""
    site = tmp_path / "site"
    subprocess.run(
        [*PIP, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, env=clean_environment()
    )
    (tmp_path / "small.yaml").write_text(DIGITS_SUITE.replace("[source, tent]", "[source]"))
    environment = clean_environment(PYTHONPATH=str(site), TTA_BENCH_CACHE=str(cache))
    command = [str(site / "bin" / "tta-bench"), "run", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(results.load(tmp_path / "out").segments["status"]) == {"ok"}


@pytest.mark.faults
def test_a_strangers_package_is_found_listed_and_run(tmp_path: pathlib.Path, cache: pathlib.Path) -> None:
    copy, site = tmp_path / "tta-example", tmp_path / "site"
    shutil.copytree(ROOT / "tests" / "example_plugin", copy, ignore=shutil.ignore_patterns("__pycache__"))
    command = [*PIP, "install", "--no-deps", "--no-build-isolation", "--target", str(site), str(copy)]
    subprocess.run(command, check=True, env=clean_environment())
    environment = clean_environment(PYTHONPATH=str(site), TTA_BENCH_CACHE=str(cache))

    def tta_bench(*arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", "tta_bench", *arguments], cwd=tmp_path, env=environment,
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert re.search(r"prior +tta-example 0\.3", tta_bench("methods"))
    (tmp_path / "s.yaml").write_text(DIGITS_SUITE.replace("[source, tent]", "[{name: prior, config: {momentum: 0.5}}]"))
    tta_bench("run", "s.yaml", "--out", "out")
    segments = results.load(tmp_path / "out").segments
    assert set(segments["status"]) == {"ok"}
    assert (segments["stat_largest_share"] > 0.1).all(), "a method's own statistics are columns"
    assert segments["updates"].tolist() == [0, 0]


def test_constraints_pin_every_dependency() -> None:
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    metadata = (ROOT / "pyproject.toml").read_text()
    wanted = re.search(r"^dependencies = \[(.*?)^\]", metadata, re.DOTALL | re.MULTILINE)
    assert wanted is not None
    names = {re.split(r"[<>=]", name)[0].lower() for name in re.findall(r'"([^"]+)"', wanted.group(1))}
    assert names <= pinned, names - pinned


@pytest.mark.faults
def test_the_readmes_method_runs_as_it_stands(tmp_path: pathlib.Path, cache: pathlib.Path) -> None:
    readme = (ROOT / "README.md").read_text()
    [code] = re.findall(r"```python\n(# my_method\.py\n.*?)```", readme, re.DOTALL)
    assert len(code.splitlines()) <= 25
    (tmp_path / "my_method.py").write_text(code)
    name = re.findall(r'^    name = "(\w+)"', code, re.MULTILINE)[0]
    (tmp_path / "s.yaml").write_text(DIGITS_SUITE.replace("[source, tent]", f"[source, {name}]"))
    command = [
        sys.executable,
        "-m",
        "tta_bench",
        "run",
        "s.yaml",
        "--plugin",
        "my_method.py",
        "--executor",
        "local",
        "--out",
        "out",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=clean_environment(TTA_BENCH_CACHE=str(cache)),
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    segments = rows_of(results.load(tmp_path / "out")).set_index(["label", "shift"])
    assert (segments["status"] == "ok").all()
    assert segments.loc[(name, "contrast-5"), "updates"] == 3
    assert segments.loc[(name, "contrast-5"), "error_pct"] < segments.loc[("source", "contrast-5"), "error_pct"]


def test_every_readme_command_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) < 200
    for command in set(re.findall(r"(?:^|`)tta-bench (\w+)", readme, re.MULTILINE)):
        help_text = subprocess.run([sys.executable, "-m", "tta_bench", command, "--help"], capture_output=True,
                                   env=clean_environment(), check=False)  # fmt: skip
        assert help_text.returncode == 0, command
    options = set(re.findall(r"(--[a-z][a-z-]+)", readme))
    known = subprocess.run([sys.executable, "-m", "tta_bench", "run", "--help"], capture_output=True, text=True,
                           env=clean_environment(), check=False).stdout  # fmt: skip
    known += subprocess.run([sys.executable, "-m", "tta_bench", "report", "--help"], capture_output=True, text=True,
                            env=clean_environment(), check=False).stdout  # fmt: skip
    scripts = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    assert {o for o in options if o not in known and o not in scripts} == set()
