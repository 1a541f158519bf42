"""Places that cannot be written, streams that cannot show a character or are closed, locales, devices that are not there."""

from __future__ import annotations

import ast
import io
import os
import pathlib
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from conftest import Outcome, clean_environment

import tta_bench.methods
from tta_bench import cli, console
from tta_bench.commands import methods
from tta_bench.errors import UsageError
from tta_bench.files import obstacle_to_writing, write_text
from tta_bench.protocols import base

Cli = Callable[..., Outcome]
SuiteFile = Callable[..., pathlib.Path]
PACKAGES = [pathlib.Path(module.__path__[0]) for module in (tta_bench, tta_bench.methods)]
NARROW = {"ascii": {"PYTHONIOENCODING": "ascii"},
          "C": {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}}  # fmt: skip


def tta_bench_process(*arguments: object, cwd: pathlib.Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "tta_bench", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=clean_environment(**environment), capture_output=True, check=False)


# -- encodings -----------------------------------------------------------------------------------------------------------


def unspecified(file: pathlib.Path) -> Iterator[str]:
    """The calls in a module that read or write text in the encoding of the locale."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        given = {keyword.arg for keyword in node.keywords}
        method = isinstance(node.func, ast.Attribute) and name in ("read_text", "write_text")
        opens = isinstance(node.func, ast.Name) and name == "open"
        mode = ast.unparse(node.args[1]) if len(node.args) > 1 else "'r'"
        if ((method or (opens and "b" not in mode)) and "encoding" not in given) or {
            "text",
            "universal_newlines",
        } & given:
            yield f"{file.name}:{node.lineno}: {ast.unparse(node)[:80]}"


def test_all_text_is_read_and_written_in_utf_8() -> None:
    files = [file for package in PACKAGES for file in package.rglob("*.py")]
    assert len(files) > 150
    assert [call for file in files for call in unspecified(file)] == []


def test_a_terminal_without_columns_gets_the_default_width(tmp_path: pathlib.Path) -> None:
    done = tta_bench_process("plugins", cwd=tmp_path, COLUMNS="0")
    assert b"tent " in done.stdout, done.stderr.decode()


@pytest.mark.parametrize("how", ["ascii", "C"])
def test_a_report_is_printed_with_replacements_and_its_files_are_utf_8(
    how: str, part_copy: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    part_copy("whole")
    done = tta_bench_process("report", "whole", "--format", "md,csv,tex,html", cwd=tmp_path, **NARROW[how])
    assert done.returncode == 0, done.stderr.decode()
    assert b"95 % int." in done.stdout
    assert "–" not in done.stdout.decode("utf-8", "replace")
    assert b"?" not in done.stdout
    written = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "whole" / "report").iterdir() if path.is_file()
               and path.suffix in (".md", ".csv", ".html", ".bib", ".tex")}  # fmt: skip
    assert "–" in written["errors.md"]
    assert "–" in written["index.html"]
    assert not any("�" in text for text in written.values())


def test_a_suite_is_utf_8_whatever_the_locale(suite_file: SuiteFile, tmp_path: pathlib.Path) -> None:
    file = suite_file()
    file.write_text(f"# größe × 2\n{file.read_text(encoding='utf-8')}", encoding="utf-8")
    done = tta_bench_process("run", file.name, "--executor", "local", "--dry-run", cwd=tmp_path, **NARROW["C"])
    assert done.returncode == 0, done.stderr.decode()
    assert b"2 methods x 1 models" in done.stderr, "x stands for ×"


def test_what_a_stream_cannot_show_is_replaced_one_for_one() -> None:
    console.prepare()
    text = "a–b × ü … → ≤ 3 ± 1 汉 \udcff"
    assert text.encode("ascii", console.PLAIN) == b"a-b x u . > < 3 ~ 1 ? ?"
    assert text.encode("latin-1", console.PLAIN) == "a-b × ü . > < 3 ± 1 ? ?".encode("latin-1")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=console.PLAIN)
    stream.write(text)
    stream.flush()
    assert stream.buffer.getvalue().decode() == text.replace("\udcff", "?")  # type: ignore[attr-defined]


def test_a_name_that_is_no_text_is_escaped_in_files(tmp_path: pathlib.Path) -> None:
    write_text(tmp_path / "a.md", "run \udcff – 1")
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == r"run \udcff – 1"


# -- closed streams ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("methods",), ("report", "whole", "--format", "md")])
def test_a_reader_that_closes_the_output_ends_the_program_quietly(
    arguments: tuple[str, ...], part_copy: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    part_copy("whole")
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "tta_bench", *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env=clean_environment(), stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert done.returncode == console.CLOSED
    assert b"Error" not in done.stderr
    assert b"Exception" not in done.stderr


def test_the_end_of_a_file_is_no_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(*_: object) -> None:
        raise EOFError("cut short")

    monkeypatch.setattr(methods, "list_all", ends)
    monkeypatch.setattr(sys, "argv", ["tta-bench", "methods"])
    with pytest.raises(EOFError, match="cut short"):
        cli.main()


# -- places --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bad_places(tmp_path: pathlib.Path) -> dict[str, pathlib.Path]:
    (tmp_path / "file").write_bytes(b"")
    return {
        "no folder of ours": pathlib.Path("/proc/x"),
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "x",
    }


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="/proc stands for a folder that nobody can write")
@pytest.mark.parametrize("place", ["no folder of ours", "a file", "below a file"])
def test_what_cannot_be_written_is_said_before_anything_runs(
    run_cli: Cli, suite_file: SuiteFile, bad_places: dict[str, pathlib.Path], place: str, tmp_path: pathlib.Path
) -> None:
    folder, file = bad_places[place], suite_file()
    before = sorted(tmp_path.iterdir())
    for arguments, message in [
        (("run", file, "--executor", "local", "--cache", folder), "the image cache cannot be written: "),
        (("run", file, "--executor", "local", "--out", folder), "the run's folder cannot be written: "),
        (("run", file, "--executor", "local", "--out", folder, "--dry-run"), "the run's folder cannot be written: "),
        (("pretrain", "mgg", file, "--cache", folder), "the image cache cannot be written: "),
        (("pretrain", "mgg", file, "--out", folder), "checkpoints cannot be written: "),
    ]:
        outcome = run_cli(*arguments)
        assert outcome.code == 2, outcome.err
        assert f"{folder}: {message}" in outcome.err
        assert "hint: choose another" in outcome.err
        assert "GiB" not in outcome.err
        assert "nothing was run" in outcome.err
    assert sorted(tmp_path.iterdir()) == before


def test_trying_whether_a_folder_can_be_written_leaves_nothing(tmp_path: pathlib.Path) -> None:
    assert obstacle_to_writing(tmp_path / "new" / "folder") is None
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_fills_its_disk_says_so(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    outcome = run_cli("run", suite_file(), "--executor", "local", "--cache", tmp_path / "cache")
    assert outcome.code == 2
    assert "cache: the image cache cannot be written: No space left on device\n  hint: free some space" in outcome.err
    assert list((tmp_path / "cache").iterdir()) == []


# -- devices -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "nonsense", "meta", "cpu:x"])
def test_a_device_that_is_not_there_is_said(run_cli: Cli, suite_file: SuiteFile, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    outcome = run_cli("pretrain", "mgg", suite_file(), "--device", device)
    assert outcome.code == 2
    assert f"--device {device} cannot be used: " in outcome.err
    assert "hint: --device cpu" in outcome.err
    assert len(outcome.err) < 600


# -- arrays --------------------------------------------------------------------------------------------------------------


def test_an_array_that_announces_more_than_it_has_is_named(tmp_path: pathlib.Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (10**15,)})
    (tmp_path / "bomb.npy").write_bytes(header.getvalue())
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("order.npy", header.getvalue())
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("bomb.npy", "bomb.npz", "empty.npy"):
        with pytest.raises(UsageError, match=f"{name} cannot be read: ."):
            base.loaded("path", str(tmp_path / name))
