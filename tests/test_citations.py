"""BibTeX entries of plugins, references.bib of a report, its setting in words, and CITATION.cff."""

from __future__ import annotations

import inspect
import pathlib
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Outcome
from runs import verdicts, write_run

import tta_bench
from tta_bench import citations
from tta_bench.citations import FILE, Citation, Library, parse, places_of
from tta_bench.data.corrupt.corruptions import BENCHMARK
from tta_bench.errors import UsageError
from tta_bench.registry import KINDS, METHODS, MODELS, PROTOCOLS, PluginEntry, PluginKind, Registry, code_sha256
from tta_bench.report import content, evidence
from tta_bench.report.content import Content, ReportOptions
from tta_bench.report.render import latex, paper
from tta_bench.report.words import plain

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILT_IN = ROOT / "tta_bench" / FILE
WITHOUT = {"source", "sgd", "file", "domains"}  # plugins that no publication is cited for
ENTRY = "@misc{a2020b,\n  author = {A},\n  year = 2020,\n  keywords = {x},\n}"


def built_in() -> list[PluginEntry]:
    entries = [entry for kind in KINDS for entry in Registry().entries(kind)]
    return [entry for entry in entries if entry.target.startswith("tta_bench.")]


def keys(entries: list[Citation]) -> list[str]:
    return [entry.key for entry in entries]


# -- the entries of built-in plugins -----------------------------------------------------------------------------------


def test_every_built_in_plugin_has_an_entry() -> None:
    library = Library(Registry())
    uses = [use for cited in citations.read(BUILT_IN) for use in cited.uses if use.name != "*"]
    assert {e.name for e in built_in() if not any(use.names(e.name, e.kind) for use in uses)} == WITHOUT
    assert all(library.named(e.name, e.kind) for e in built_in() if e.name not in WITHOUT), "where the library looks"
    assert library.problems == []


def test_every_entry_names_plugins_that_exist() -> None:
    entries = built_in()
    for cited in citations.read(BUILT_IN):
        for use in cited.uses:
            assert any(use.names(entry.name, entry.kind) for entry in entries), use
            plugins = [entry.load() for entry in entries if use.names(entry.name, entry.kind)]
            fields = {name for plugin in plugins for name in (*plugin.Config.model_fields, "tag", "shift")}
            assert not use.field or use.field in fields, use


def test_every_entry_says_who_what_and_when() -> None:
    for cited in citations.read(BUILT_IN):
        assert {"author", "title", "year"} <= set(cited.fields), cited.key
        assert "keywords" not in cited.text
        assert cited.key.startswith(re.sub(r"[^a-z]", "", citations.plain(cited.short).lower())[:2]), cited.key
        assert cited.fields["year"] in cited.key


@pytest.mark.parametrize("kind", [METHODS, PROTOCOLS], ids=["methods", "protocols"])
def test_the_arxiv_number_is_that_of_the_module(kind: PluginKind) -> None:
    library, seen = Library(Registry()), 0
    for entry in built_in():
        numbers = re.findall(r"arXiv\s+(\d{4}\.\d{5})", inspect.getdoc(inspect.getmodule(entry.load())) or "")
        if entry.kind == kind and numbers and entry.name not in WITHOUT:
            seen += 1
            assert numbers[0] in {cited.fields.get("eprint") for cited in library.named(entry.name, kind)}, entry.name
    assert seen > 6


TIMM = {"kind": "timm", "weights": None}


@pytest.mark.parametrize(
    ("name", "kind", "values", "expected"),
    [
        ("timm", MODELS, {"tag": "resnet50_gn.a1h_in1k", "timm": "resnet50_gn.a1h_in1k"}, ["he2016deep", "wu2018group", "wightman2021resnet"]),
        ("timm", MODELS, {"tag": "resnet18", "timm": None}, ["he2016deep"]),
        ("timm", MODELS, {"tag": "vit_base_patch16_224.augreg2_in21k_ft_in1k", "timm": "vit_base_patch16_224.augreg2_in21k_ft_in1k"}, ["dosovitskiy2021image", "steiner2022train"]),
        ("timm", MODELS, {"tag": "vit_tiny_patch16_224", "timm": None}, ["dosovitskiy2021image"]),
        ("timm", MODELS, {"tag": "tf_efficientnet_lite0.in1k"}, ["tan2019efficientnet"]),
        ("timm", MODELS, {"tag": "tf_efficientnetv2_s.in1k"}, ["wightman2019timm"]),
        ("timm", MODELS, {"tag": "mixer_b16_224.miil_in21k"}, ["wightman2019timm"]),
        ("torchvision", MODELS, {"tag": "torchvision/resnext50_32x4d.IMAGENET1K_V1"}, ["xie2017aggregated"]),
        ("torchvision", MODELS, {"tag": "torchvision/swin_t.IMAGENET1K_V1"}, ["liu2021swin"]),
        ("torchvision", MODELS, {"tag": "torchvision/swin_v2_t.IMAGENET1K_V1"}, ["torchvision2016"]),
        ("wide_resnet", MODELS, {"tag": "WRN-28-10"}, ["zagoruyko2016wide"]),
        ("resnet26", MODELS, {"tag": "ResNet-26-GN"}, ["he2016identity", "sun2020test", "wu2018group"]),
        ("resnet26", MODELS, {"tag": "ResNet-26-BN"}, ["he2016identity", "sun2020test"]),
        ("continual", PROTOCOLS, {}, ["wang2022continual"]),
        ("continual", PROTOCOLS, {"variant": "rotta", "delta": "0.1"}, ["yuan2023robust"]),
        ("reset", PROTOCOLS, {}, []),
        ("reset", PROTOCOLS, {"adapt": "eta 1, cost_ratio measure"}, ["alfarra2024evaluation"]),
        ("reset", PROTOCOLS, {"adapt": "first 512, classes 5"}, ["danilowski2025botta"]),
        ("reset", PROTOCOLS, {"adapt": "first 512"}, []),
        ("continual", PROTOCOLS, {"reset": "every 1000"}, ["press2023rdumb"]),
        ("mgg", METHODS, {"reset": "every 1000"}, ["deng2025learning"]),
    ],
)  # fmt: skip
def test_values_choose_the_entry(name: str, kind: PluginKind, values: dict[str, Any], expected: list[str]) -> None:
    assert keys(Library(Registry()).nearest(name, values, kind)) == expected


# -- reading -----------------------------------------------------------------------------------------------------------


def test_an_entry_is_copied_unchanged_but_for_its_keywords() -> None:
    text = 'Comments are outside.\n@article{k1,\n  title = "A {"}quoted{"} {B}",\n  year=2020 , keywords = {a, b:c=d*},\n note={x}\n}'
    [entry] = parse(text, "f")
    assert entry.text == '@article{k1,\n  title = "A {"}quoted{"} {B}",\n  year=2020 ,\n note={x}\n}'
    assert entry.fields == {"title": 'A {"}quoted{"} {B}', "year": "2020", "note": "x"}
    assert [(use.name, use.field, use.pattern) for use in entry.uses] == [("a", "", ""), ("b", "c", "d*")]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (ENTRY + "\n" + ENTRY, 6, "the key a2020b is there twice"),
        ("\n\n" + ENTRY.replace("  keywords = {x},\n", ""), 3, "a2020b has no keywords"),
        (ENTRY.replace("a2020b,", ""), 1, "an entry without a key"),
        (ENTRY.replace("{A},", "{A,"), 2, "a2020b has no comma or brace after the field author"),
        ("\n@misc{a2020b,\n  author = {A", 3, "a2020b has a value that is not closed"),
        (ENTRY.replace("{A},", "{A}"), 2, "a2020b has no comma or brace after the field author"),
        (ENTRY.replace("2020,\n", "jan # 3,\n"), 3, "a2020b has no comma or brace after the field year"),
        (ENTRY.removesuffix("}"), 4, "a2020b is not closed, or has a field without a value"),
        (ENTRY.replace("year = 2020", "year"), 2, "a2020b is not closed, or has a field without a value"),
        (ENTRY.replace("{x}", "{x:y}"), 1, "a2020b has the keyword 'x:y', which names no plugin"),
        (ENTRY.replace("{x}", "{recipes/x}"), 1, "a2020b has the keyword 'recipes/x', which names no plugin"),
        ("@string{icml = {ICML}}\n" + ENTRY, 1, "an @ that begins no entry in braces"),
        ("write to me@home\n" + ENTRY, 1, "an @ that begins no entry in braces"),
    ],
)
def test_a_broken_file_is_located(text: str, line: int, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(text, "my.bib")
    [problem] = error.value.problems
    assert problem.where == f"my.bib:{line}"
    assert problem.message.startswith(message)
    assert "keywords = {plugin" in problem.hint


@pytest.mark.parametrize(
    ("author", "short"),
    [
        ("Press, Ori and Schneider, Steffen", "Press and Schneider, 2020"),
        (r"D{\"o}bler, Mario", "Döbler, 2020"),
        (r"Doll{\'a}r, P. and Van Gool, L. and X, Y.", "Dollár et al., 2020"),
        ("Luc van Gool and A B", "van Gool and B, 2020"),
        ("{TorchVision maintainers and contributors}", "TorchVision maintainers and contributors, 2020"),
        ("", "a2020b"),
    ],
)
def test_text_without_latex_cites_by_author_and_year(author: str, short: str) -> None:
    [entry] = parse(ENTRY.replace("{A}", f"{{{author}}}"), "f")
    assert entry.short == short


# -- plugins of others -------------------------------------------------------------------------------------------------

PLUGIN = """
from tta_bench.adapter import Adapter, Config

class Mine(Adapter):
    name = "mine"
    class Config(Config):
        pass
    def step(self, x):
        return self.model(x)
"""


def test_references_beside_a_plugin_file_are_its_own_and_leave_keys_alone(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    before = code_sha256(Registry([file]).entry("mine"))
    (tmp_path / FILE).write_text(ENTRY.replace("{x}", "{mine, tent}"))
    registry = Registry([file])
    assert keys(Library(registry).of("mine", {}, METHODS)) == ["a2020b"]
    assert keys(Library(registry, [file]).of("tent", {}, METHODS)) == ["wang2021tent"], (
        "none is added to a built-in one"
    )
    assert keys(Library(Registry(), [file]).of("mine", {}, METHODS)) == ["a2020b"], (
        "not registered where it is reported"
    )
    assert code_sha256(registry.entry("mine")) == before


def test_a_packages_references_are_found_without_importing_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "their_package" / "methods"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "their_module.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    entry = PluginEntry("x", "their 1", "their_package.methods.x:X")
    assert places_of(entry) == [inner / FILE, inner.parent / FILE]
    assert places_of(PluginEntry("x", "their 1", "their_module:X")) == [], "beside it are files of other packages"
    assert places_of(PluginEntry("x", "their 1", "not_there.x:X")) == []
    assert places_of(Registry().entry("tent")) == [BUILT_IN]


# -- the report --------------------------------------------------------------------------------------------------------


def suite_of(models: Mapping[str, Mapping[str, Any]], methods: list[dict[str, Any]], **data: Any) -> dict[str, Any]:
    return {
        "data": {"kind": "imagenet_c", **data},
        "models": [{"name": name, **TIMM, **config} for name, config in models.items()],
        "methods": methods,
    }


VIT, GN = "vit_base_patch16_224.augreg2_in21k_ft_in1k", "resnet50_gn.a1h_in1k"
ABOUT = {"weights_sha256": "0123456789abcdef" * 4, "mean": [0.5] * 3, "std": [0.5] * 3}
MODELS_OF_PLAN = {"vit": {"tag": VIT, **ABOUT}, "gn": {"tag": GN, **ABOUT}}
SUITE = suite_of(
    {"vit": {"timm": VIT}, "gn": {"timm": GN}}, [{"name": "source"}, {"name": "tent", "config": {"lr": 0.5}}]
)
GPU = {"device": "cuda", "device_name": "NVIDIA H100 80GB HBM3", "torch": "2.11.0"}


def made(*runs: pathlib.Path, mix: bool = False) -> Content:
    return content.make(evidence.gather(runs, mix=mix), ReportOptions())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """Two methods on two models of ImageNet-C, two seeds, all images, one GPU."""
    cells = {
        (label, model, f"{name}-5", seed): verdicts(40.0 if label == "tent" else 60.0, 200)
        for label in ("source", "tent") for model in ("vit", "gn") for name in BENCHMARK for seed in (0, 1)
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("whole") / "run"
    write_run(folder, cells, dataset="ImageNet-C", batch_size=64, images=50000, models=MODELS_OF_PLAN, environment=GPU,
              config={"optimizer": "adam", "lr": 0.5}, preset="imagenet", session={"suite": SUITE, "command": []})  # fmt: skip
    return made(folder)


def test_references_hold_what_the_tables_hold(whole: Content) -> None:
    text = paper.bibliography(whole.cited)
    assert re.findall(r"@\w+\{(\w+),", text) == [
        "hendrycks2019benchmarking", "deng2009imagenet", "wightman2019timm", "dosovitskiy2021image", "steiner2022train",
        "he2016deep", "wu2018group", "wightman2021resnet", "kingma2015adam", "wang2021tent",
    ]  # fmt: skip
    assert "Without an entry: method source.\n" in text
    assert keys(parse(text.replace("\n}", "\n  keywords = {x},\n}"), "f")) == keys(whole.cited.entries)


def test_the_setting_in_words(whole: Content) -> None:
    assert plain(whole.setting) == (
        "Errors are on ImageNet-C (Hendrycks and Dietterich, 2019; Deng et al., 2009): the 15 corruptions of the benchmark at "
        "severity 5. Streams draw on all 50,000 images of each shift. Protocol reset: one shift after another, the method "
        "reset before each. Batches have 64 images. The seeds are 0 and 1. "
        f"Source models: vit (Dosovitskiy et al., 2021; Steiner et al., 2022), {VIT} with timm's weights (SHA-256 "
        f"0123456789ab…); gn (He et al., 2016; Wu and He, 2018; Wightman et al., 2021), {GN} with timm's weights (SHA-256 "
        "0123456789ab…). Their networks are built by timm (Wightman, 2019). Methods: source, tent (Wang et al., 2021). "
        "Optimizer: adam (Kingma and Ba, 2015) of source and tent. Hyperparameters are the published ones of preset imagenet "
        "for source and tent. Set instead for tent: lr 0.5. Trials ran in float32 on one NVIDIA H100 80GB HBM3. "
        "Software: tta-bench 0.1.0, torch 2.11.0 and timm 1.0.31."
    )


def test_the_setting_says_what_varies(tmp_path: pathlib.Path) -> None:
    """Two runs: other protocol, other batches, a subset, a part on another machine, trials that failed or are missing."""
    one = {("tent", "m", "fog-5", 0): verdicts(10.0, 50), ("tent", "m", "clean", 0): verdicts(5.0, 50)}
    first = write_run(tmp_path / "one", one, dataset="D", images=50, config={"lr": 0.1}, environment=GPU)
    other: dict[Any, Any] = {("rotta", "m", "fog-3", 2021): verdicts(10.0, 50), ("tent", "m", "fog-3", 7): "failed"}
    other |= {("mine[a=1]", "m", "fog-3", 7): "missing", ("tent", "m", "snow-3", 7): "skipped"}
    second = write_run(tmp_path / "two", other, dataset="D", images=40, protocol="continual", batch_size=1, all_images=False,
                       parameters={"variant": "rotta", "reset": {"every": 1000}}, notes=["generated, not D-C"],
                       facts={"source_images": 2000, "checkpoint": "c.pt", "device_share": 0.5}, environment={"threads": 4},
                       config={"lr": 0.1})  # fmt: skip
    text = plain(made(first, second, mix=True).setting)
    for part in (
        "Errors are on D: clean images, and 1 corruption (fog) at severity 5 (protocol reset); 2 corruptions (fog, snow) at "
        "severity 3 (protocol continual, reset every 1000, variant rotta).",
        "Images of D are generated, not D-C.",
        "Streams draw on all 50 images of each shift or a seeded subset of 40 images of each shift.",
        "Protocol continual, reset every 1000, variant rotta (Press et al., 2023; Wang et al., 2022; Yuan et al., 2023). ",
        "Batches have 10 images (protocol reset). Batches have 1 image (protocol continual, reset every 1000, variant rotta).",
        "The seed is 0 (protocol reset). The seeds are 7 and 2021 (protocol continual",
        "Methods: tent (Wang et al., 2021), rotta (Yuan et al., 2023), mine[a=1].",
        "What was set instead of these is not recorded of one and two.",
        "Clean unlabelled source images were seen by rotta (2,000). Learned checkpoints are used by rotta.",
        "Of 6 planned trials 3 have a result (skipped: 1, failed: 1, not run: 1).",
        "on one NVIDIA H100 80GB HBM3 (2 trials) or on one x86_64 CPU with 4 threads (1 trial).",
        "torch 2.11.0 or 2.13.0",
        "The runs differ: one and two differ in images a shift: 50 against 40.",
    ):
        assert part in text, f"{part}\n{text}"
    assert "never reset" not in text, "the suite resets every 1,000 batches"


def test_the_setting_says_that_shifts_differ_in_size(tmp_path: pathlib.Path) -> None:
    sizes = {"a": ("fog-5", 24), "b": ("snow-5", 30)}
    runs = [
        write_run(tmp_path / name, {("source", "m", shift, 0): np.ones(n, bool)}) for name, (shift, n) in sizes.items()
    ]
    said = plain(content.make(evidence.gather(runs, mix=True), ReportOptions()).setting)
    assert "Streams draw on all images of each shift, 24 to 30 as shifts differ in size." in said


def test_models_that_are_changed_or_from_files_say_so(tmp_path: pathlib.Path) -> None:
    models = {
        "a": {"tag": "resnet18", "options": {"x": 1}, "stem": "cifar"},
        "b": {"tag": "WRN-28-10"},
        "c": {"tag": "T"},
    }
    suite = suite_of({"a": {"weights": "package:p.q/f.pt"}, "b": {"kind": "wide_resnet", "weights": "/w.pt"}}, [])
    cells = {("tent", name, "fog-5", 0): verdicts(10.0, 50) for name in models}
    folder = write_run(tmp_path / "run", cells, models=models, session={"suite": suite, "command": []})
    text = plain(made(folder).setting)
    assert (
        "Source models: a (He et al., 2016), resnet18 changed by its options and stem with weights of the package p.q; "
        "b (Zagoruyko and Komodakis, 2016), WRN-28-10 with weights from a file; c, T. Their networks are built by timm "
        "(Wightman, 2019). " in text
    )


def test_citations_stand_in_latex_tables_where_asked_for(whole: Content, tmp_path: pathlib.Path) -> None:
    latex.write(whole, tmp_path / "plain")
    latex.write(whole, tmp_path / "cited", cite=True)
    bare, cited = ((tmp_path / name / "tables" / "errors-severity-5.tex").read_text() for name in ("plain", "cited"))
    assert r"\cite" not in bare
    assert "\ntent~\\cite{wang2021tent} & " in cited
    assert "\nsource & " in cited
    assert r"\textit{gn~\cite{he2016deep,wu2018group,wightman2021resnet}}" in cited
    assert re.sub(r"~\\cite\{[^}]*\}", "", cited) == bare


def test_the_report_writes_them_and_goes_on_without_a_broken_file(
    run_cli: Callable[..., Outcome], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "mine.py").write_text(PLUGIN)
    session = {"suite": SUITE, "command": ["tta-bench", "run", "s", "--plugin", str(tmp_path / "plugins" / "mine.py")]}
    cells = {(label, "vit", "fog-5", 0): verdicts(10.0, 50) for label in ("mine", "tent")}
    folder = write_run(tmp_path / "run", cells, models=MODELS_OF_PLAN, session=session)
    for text, complaint in (
        (ENTRY, ""),
        (ENTRY[:-1], f"left out of references.bib: {tmp_path}/plugins/references.bib:4: a2020b"),
    ):
        (tmp_path / "plugins" / FILE).write_text(text.replace("{x}", "{mine}"))
        outcome = run_cli("report", str(folder), "--format", "tex,md,html", "--cite")
        assert outcome.code == 0, outcome.err
        assert complaint in outcome.err
        report = folder / "report"
        assert ("@misc{a2020b," in (report / FILE).read_text()) == (not complaint)
        assert ("mine~\\cite{a2020b}" in (report / "tables" / "errors-severity-5.tex").read_text()) == (not complaint)
        assert r"tent~\cite{wang2021tent}" in (report / "setting.tex").read_text()
    assert "## Setting\n\nErrors are on D" in (report / "errors.md").read_text()
    assert "tent (Wang et al., 2021)" in (report / "errors.md").read_text()
    assert '<section id="setting">' in (report / "index.html").read_text()
    assert "Without an entry: method mine." in (report / FILE).read_text()


def test_a_key_that_is_another_entrys_is_never_cited(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    (tmp_path / FILE).write_text(ENTRY.replace("{x}", "{mine}").replace("a2020b", "wang2021tent"))
    session = {"suite": SUITE, "command": ["tta-bench", "run", "s", f"--plugin={tmp_path / 'mine.py'}"]}
    cells = {(label, "vit", "fog-5", 0): verdicts(10.0, 50) for label in ("tent", "mine")}
    cited = made(write_run(tmp_path / "run", cells, models=MODELS_OF_PLAN, session=session)).cited
    assert cited.labels["mine"] == ()
    assert [entry.short for entry in cited.entries if entry.key == "wang2021tent"] == ["Wang et al., 2021"]
    assert [p.message for p in cited.problems] == ["the key wang2021tent of method mine is another entry's"]


def test_methods_and_protocols_say_what_to_cite(shown: Callable[..., str]) -> None:
    assert "To cite\n  niu2022efficient\n      @inproceedings{niu2022efficient,\n        author = {Niu," in shown(
        "methods", "eta"
    )
    assert "To cite" not in shown("methods", "source")
    output = " ".join(shown("protocols", "mixed").split())
    assert "zhao2023pitfalls, with variant=ttab Zhao et al., 2023: On Pitfalls of Test-Time Adaptation" in output
    assert "niu2023towards Niu et al., 2023: Towards" in output


# -- LaTeX -------------------------------------------------------------------------------------------------------------


def bibtex(folder: pathlib.Path, body: str) -> tuple[str, str]:
    """The logs of BibTeX and of the last pass of pdflatex over a paper with this body."""
    if shutil.which("pdflatex") is None or shutil.which("bibtex") is None:
        pytest.skip("needs pdflatex and bibtex (texlive-latex-recommended, lmodern)")
    head = (
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{lmodern,booktabs,graphicx}\n\\begin{document}\n"
    )
    tail = "\n\\bibliographystyle{plain}\\bibliography{references}\n\\end{document}\n"
    (folder / "paper.tex").write_text(head + body + tail)
    run = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    for command in (run, ["bibtex", "paper"], run, run):
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-3000:]
    return (folder / "paper.blg").read_text(errors="replace"), (folder / "paper.log").read_text(errors="replace")


@pytest.mark.faults
def test_every_entry_compiles(tmp_path: pathlib.Path) -> None:
    entries = citations.read(BUILT_IN)
    (tmp_path / "references.bib").write_text("\n\n".join(entry.text for entry in entries))
    log, last = bibtex(tmp_path, r"All.\nocite{*}")
    assert "Warning" not in log, log
    assert "LaTeX Warning" not in last, last
    assert (tmp_path / "paper.bbl").read_text().count(r"\bibitem") == len(entries)


@pytest.mark.faults
def test_tables_setting_and_references_compile_in_a_paper(whole: Content, tmp_path: pathlib.Path) -> None:
    tables = latex.write(whole, tmp_path, cite=True)
    paper.write(whole, tmp_path)
    body = "\\input{setting}\n" + "\n".join(rf"\input{{tables/{path.stem}}}" for path in tables)
    log, last = bibtex(tmp_path, body)
    assert "Warning" not in log, log
    assert "undefined" not in last, last
    cited = set(re.findall(r"\\bibitem\{(\w+)\}", (tmp_path / "paper.bbl").read_text()))
    assert cited == {entry.key for entry in whole.cited.entries}, "the setting cites all"


# -- CITATION.cff ------------------------------------------------------------------------------------------------------


def test_the_repository_says_how_to_cite_it() -> None:
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cff), "what the format requires"
    assert cff["cff-version"] == "1.2.0"
    assert cff["type"] == "software"
    assert str(cff["version"]) == tta_bench.__version__
    assert cff["license"] == re.findall(r'^license = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]
    assert cff["authors"] == [{"name": "The tta-bench developers"}]
    assert all(isinstance(word, str) for word in cff["keywords"])
    assert set(cff) <= {"cff-version", "message", "type", "title", "authors", "version", "license", "keywords"}
