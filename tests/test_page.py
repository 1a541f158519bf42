"""The page: what it says, that it needs nothing but itself, and nothing is hidden."""

from __future__ import annotations

import dataclasses
import html.parser
import pathlib
import re
from collections.abc import Callable

import hand_made
import pytest
from conftest import Outcome
from hand_made import FAILED, HOSTILE, LABELS, MISSING, MODELS, SKIPPED

from tta_bench.report import content as contents
from tta_bench.report import evidence
from tta_bench.report.content import ReportOptions
from tta_bench.report.render import grids, page, page_grids


class Parsed(html.parser.HTMLParser):
    """Attributes: rows: (id of the table, texts of the cells); ids; loaded: all that a browser would fetch; text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[tuple[str, list[str]]] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.titles: list[str] = []
        self.text, self._table, self._cell, self._quiet = "", "", False, ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.titles += [named["title"]] if "title" in named else []
        self.ids += [named["id"]] if "id" in named else []
        self.links += [named["href"]] if tag == "a" else []
        self.loaded += [named[n] for n in ("src", "srcset", "data", "action") if n in named]
        self.loaded += [named["href"]] if tag == "link" else []
        if tag == "table":
            self._table = named.get("id", "")
        elif tag == "tr":
            self.rows.append((self._table, []))
        elif tag in ("td", "th"):
            self.rows[-1][1].append("")
            self._cell = True
        elif tag in ("style", "script"):
            self._quiet = tag

    def handle_endtag(self, tag: str) -> None:
        self._cell &= tag not in ("td", "th")
        self._quiet = "" if tag == self._quiet else self._quiet

    def handle_data(self, data: str) -> None:
        if self._quiet:
            return
        self.text += data
        if self._cell:
            self.rows[-1][1][-1] += data

    def of(self, table: str) -> list[list[str]]:
        """Texts of a table's cells."""
        return [[cell.strip() for cell in cells] for name, cells in self.rows if name == table]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return hand_made.write_page(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def parsed(written: pathlib.Path) -> Parsed:
    return Parsed(written.read_text())


def test_every_section_is_there_and_every_link_leads_somewhere(parsed: Parsed, written: pathlib.Path) -> None:
    sections = [
        "summary",
        "errors",
        "curves",
        "cost",
        "mce",
        "published",
        "setting",
        "failures",
        "figures",
        "methods",
        "provenance",
    ]
    assert [name for name in parsed.ids if name in sections] == sections
    assert len(parsed.ids) == len(set(parsed.ids))
    assert "data/shifts.csv" in parsed.links
    for link in parsed.links:
        assert link[1:] in parsed.ids if link.startswith("#") else (written.parent / link).exists(), link


def test_nothing_is_loaded_from_elsewhere(parsed: Parsed, written: pathlib.Path) -> None:
    assert parsed.loaded
    assert all(source.startswith("data:") for source in parsed.loaded)
    text = written.read_text()
    assert not re.search(r"https?://|@import|url\(", text)
    assert "default-src 'none'" in text


def test_texts_of_runs_are_escaped(parsed: Parsed, written: pathlib.Path) -> None:
    assert parsed.tags.count("script") == 1
    assert HOSTILE in parsed.text
    assert MODELS[1] in parsed.text
    assert "alert('x')</script>" not in written.read_text()
    assert "</pre>" in parsed.text, "a suite's own text"


def test_the_warning_is_the_first_thing_and_at_every_result(parsed: Parsed) -> None:
    assert parsed.text.index(
        "SUBSET OF THE IMAGES, NOT A RESULT; MIXED: they differ in torch: 1 & 2"
    ) < parsed.text.index("Trials")
    results = [name for name in parsed.ids if name.endswith("-caption") and not name.startswith(("gaps", "run-"))]
    tags = parsed.text.count("SUBSET OF THE IMAGES, NOT A RESULT; MIXED")
    assert tags == len(results) + 3, "the banner, the navigation, tables and the figure"


def test_cells_without_a_result_say_why(parsed: Parsed) -> None:
    rows = parsed.of("errors-severity-5")
    assert ["norm", *["failed"] * 5, ""] in rows
    assert ["norm", *["–"] * 5, ""] in rows
    assert ["source", "40.0±0.4*", "20.0±0.4*", "13.3±0.4*", "10.0±0.4*", "40.0±0.4*", "39.0–41.0"] in rows
    assert "*: mean over fewer trials than planned" in parsed.text
    for reason in (FAILED, SKIPPED, MISSING):
        assert reason in parsed.text, "among the failures"
        assert sum(reason in title for title in parsed.titles) > 5, "and at the cells"
    gaps = parsed.of("gaps")
    assert [row[0] for row in gaps if len(row) == 1] == ["failed: 12 cells", "missing: 1 cell", "skipped: 3 cells"]
    [failed] = [row for row in gaps if FAILED in row]
    assert failed[:4] == ["norm", MODELS[0], FAILED, "12"]
    assert "contrast-5" in failed[4]
    assert failed[5:] == ["0, 1, 2", "logs/a.log"]


def test_the_summary_ranks_methods_and_turns_comparisons_to_the_baseline(parsed: Parsed) -> None:
    head, *rows = parsed.of("summary-severity-5")[1:]
    assert head[0] == "method"
    first = rows[1:6]
    assert [row[0] for row in first] == ["tent", HOSTILE, "source", LABELS[2], "norm"]
    assert first[0] == ["tent", "1", "9.5±0.4", "8.5–10.5", "−30.5", "−33.0 to −28.0", "<0.001", "1.00", "6.0"]
    assert first[2][4] == "baseline"
    assert [row[1] for row in rows[7:] if row[0] in ("source", "norm")] == ["–", "–"], "incomplete: no place"


def test_hardwares_never_share_a_table(parsed: Parsed) -> None:
    assert "Step time of a batch of 64 on NVIDIA H100." in parsed.text
    assert len(parsed.of("cost-1")) == len(parsed.of("cost-2")) == 2 + 2 * 5


def test_published_numbers_stand_beside_ours(parsed: Parsed) -> None:
    rows = parsed.of("published-a-paper")
    assert rows[1:5] == [["ResNet-26, here resnet_bn"], ["Tent", "published", "14.3", "a"],
                         ["", "measured", "9.5", ""], ["", "difference", "−4.8", ""]]  # fmt: skip
    assert rows[5:7] == [["BN (norm)", "published", "17.3", "b"], ["", "measured", "n/a", ""]]
    assert "a: other weights & generated." in parsed.text
    assert "12 have no counterpart." in parsed.text


def test_hyperparameters_that_differ_have_a_column_a_model(parsed: Parsed) -> None:
    plain = parsed.of("")
    assert ["hyperparameter", *MODELS] in plain
    assert ["≠ lr", "0.1", "0.2"] in plain
    assert ["options.eps", "1e-08", "1e-08"] in plain


def test_provenance_has_commit_weights_and_images(parsed: Parsed) -> None:
    for text in ("commit: c0ffee, dirty: true", "command: [tta-bench, run, a b]", "ab" * 32, "0f0f0f0f0f0f", "1f1f1f1f1f1f",
                 "10 trials on GPU & co (h), 2 CPU threads, torch 2.6"):  # fmt: skip
        assert text in parsed.text


def test_without_gaps_it_says_so(tmp_path: pathlib.Path) -> None:
    whole = dataclasses.replace(
        hand_made.content(tmp_path / "run"), gaps=[], costs=[], curves=[], mce=[], comparisons=[]
    )
    bare = Parsed(page.write(whole, [], tmp_path / "new" / "index.html").read_text())
    assert "Every planned trial has a result." in bare.text
    assert not {"cost", "curves", "mce", "published", "figures"} & set(bare.ids)


def test_numbers_for_a_reader() -> None:
    shown = [grids.number_cell(v, 1, sign=True).value for v in (0.25, -0.25, -0.01, 0.0, None)]
    assert shown == ["+0.2", "−0.2", "0.0", "0.0", "–"]
    assert grids.number_cell(1234.5, 0).value == "1,234"
    assert [page_grids.p_value(p) for p in (0.0, 0.0123, 1.0)] == ["<0.001", "0.012", "1.000"]


def test_a_large_report_is_small(tmp_path: pathlib.Path) -> None:
    labels, models = [f"method {i}" for i in range(8)], [f"model {i}" for i in range(3)]
    made = [hand_made.table(severity, labels, models) for severity in range(1, 6)]
    names = [f"corruption_{i}" for i in range(15)]
    wide = [dataclasses.replace(t, corruptions=names, rows=[dataclasses.replace(r, cells=dict.fromkeys(names, r.mean))
                                                            for r in t.rows]) for t in made]  # fmt: skip
    known = hand_made.evidence(tmp_path / "run", labels, models)
    whole = dataclasses.replace(hand_made.content(tmp_path / "run"), tables=wide, evidence=known)
    path = page.write(whole, [], tmp_path / "index.html")
    assert path.stat().st_size < 2_000_000


def test_a_real_run(
    run_cli: Callable[..., Outcome], suite_file: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    run_cli("run", suite_file(), "--executor", "local")
    made = contents.make(evidence.gather([tmp_path / "results" / "small"]), ReportOptions())
    shown = Parsed(page.write(made, [], tmp_path / "index.html").read_text())
    [row] = [row for row in shown.of("errors-severity-5") if row[0] == "tent"]
    assert row[-2] == f"{made.tables[0].rows[1].mean.mean:.1f}"
    assert "SUBSET" in shown.text
