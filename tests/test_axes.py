"""Protocols that come back to a shift, or have lists of parameters: joined, chosen, reported."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from conftest import Outcome, run_locally

from tta_bench import suite
from tta_bench.errors import UsageError
from tta_bench.report import content
from tta_bench.report.content import ReportOptions
from tta_bench.report.evidence import gather
from tta_bench.store import records, results
from tta_bench.suite import plan
from tta_bench.suite.select import Filter

Cli = Callable[..., Outcome]
Variant = Callable[..., pathlib.Path]

RESETS = ('    name = "there_and_back"\n', '    name = "there_and_back"\n    resets = "segment"\n')
FIELD = "rounds: int = Field(2, ge=1)"
SEVERAL = (FIELD, "rounds: Annotated[tuple[int, ...], *ONE_OR_MORE] = (2,)")
IMPORT = (
    "from tta_bench.protocols import Part",
    "from typing import Annotated\n\nfrom tta_bench.protocols import ONE_OR_MORE, Part",
)
SINGLE = ("range(self.config.rounds)", "range(self.config.rounds[0])")
LISTS = (SEVERAL, IMPORT, SINGLE)


@pytest.fixture
def variant(tmp_path: pathlib.Path) -> Variant:
    """The strangers' suite with another ``protocol:``, and text replaced in the file of the protocol."""

    def write(protocol: str, *replacements: tuple[str, str]) -> pathlib.Path:
        strangers = pathlib.Path(__file__).parent / "strangers"
        folder = shutil.copytree(strangers, tmp_path / "v", ignore=shutil.ignore_patterns("__pycache__"))
        replaced(folder / "protocol.py", *replacements)
        return replaced(folder / "suite.yaml", ("{kind: there_and_back, rounds: 3}", protocol))

    return write


def replaced(file: pathlib.Path, *replacements: tuple[str, str]) -> pathlib.Path:
    text = file.read_text()
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new)
    file.write_text(text)
    return file


def planned_trials(run: pathlib.Path) -> list[dict[str, Any]]:
    trials: list[dict[str, Any]] = json.loads((run / "plan.json").read_text())["trials"]
    return trials


def test_parts_that_come_back_to_a_shift_join_to_one_run(
    variant: Variant, run_cli: Cli, tmp_path: pathlib.Path, cache: pathlib.Path
) -> None:
    file = variant("{kind: there_and_back, rounds: 3}", RESETS)
    run_locally(file, tmp_path / "whole", cache)
    for name in ("source", "sharpen"):
        run_locally(file, tmp_path / name, cache, only=[f"method={name}"])
    outcome = run_cli("merge", "source", "sharpen", "--out", "out")
    assert outcome.code == 0, outcome.err
    joined, whole = results.load(tmp_path / "out"), results.load(tmp_path / "whole")
    assert joined.counts == {"ok": 18}
    assert planned_trials(tmp_path / "out") == planned_trials(tmp_path / "whole"), "in the order of the suite"
    tables = [results.result_columns(loaded.shifts) for loaded in (joined, whole)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    kept = run_cli("merge", "source", "sharpen", "--out", "kept", "--keep", "source")
    assert kept.code == 0, kept.err
    assert len(planned_trials(tmp_path / "kept")) == 18
    (tmp_path / "sharpen" / "trials" / f"{planned_trials(tmp_path / 'whole')[-1]['key']}.json").unlink()
    missing = run_cli("merge", "source", "sharpen", "--out", "fewer")
    assert missing.code == 3
    assert "missing 1 of 18:\n  sharpen · filters9: 1 (contrast-5 visit 2 rounds 3 seed 0)" in missing.err


def test_values_of_a_parameter_stay_in_the_suites_order(variant: Variant, run_cli: Cli, tmp_path: pathlib.Path) -> None:
    file = variant("{kind: there_and_back, rounds: [3, 1, 2]}", *LISTS, RESETS)
    records.write_plan(tmp_path, plan.make(suite.load(str(file))))
    whole = json.loads((tmp_path / "plan.json").read_text())
    of_a_row = ["rounds 3"] * 9 + ["rounds 1"] * 3 + [""] * 6
    assert [t["protocol_parameters"] for t in whole["trials"]] == of_a_row * 2
    for name in ("sharpen", "source"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "plan.json").write_text(json.dumps(whole))
        sessions = {"schema_version": records.SCHEMA_VERSION, "sessions": []}
        (tmp_path / name / "run.json").write_text(json.dumps(sessions))
    assert run_cli("merge", "sharpen", "source", "--out", "out").code == 3
    assert planned_trials(tmp_path / "out") == whole["trials"]


@pytest.mark.faults
def test_values_that_make_equal_streams_each_have_their_rows(
    variant: Variant, run_cli: Cli, tmp_path: pathlib.Path, cache: pathlib.Path
) -> None:
    never_more = ("range(self.config.rounds)", "range(min(self.config.rounds[0], 3))")
    file = variant("{kind: there_and_back, rounds: [3, 4, 2]}", SEVERAL, IMPORT, never_more)
    made = plan.make(suite.load(str(file))).trials
    assert [t.setting.told for t in made] == ["rounds 3", "rounds 4", ""] * 2
    assert len({t.key for t in made}) == 4
    chosen = Filter(["method=source,rounds=4"]).select(made)
    assert [(t.label, t.setting.told) for t in chosen] == [("source", "rounds 4")]
    run = run_locally(file, tmp_path / "out", cache)
    assert results.load(run).counts == {"ok": 6}, "of four trials"
    report = content.make(gather([run]), ReportOptions())
    errors = {t.setting.base.told: [(row.label, row.mean.mean) for row in t.rows] for t in report.tables}
    assert list(errors) == ["rounds 3", "rounds 4", ""]
    assert errors["rounds 3"] == errors["rounds 4"] != errors[""]
    forwards = [[(row.trials, round(row.forwards)) for row in cost.rows] for cost in report.costs]
    assert forwards == [[(1, 1000), (1, 1000)]] * 3, "of a thousand images: each counts its own once"
    assert run_cli("report", "out", "--format", "md,png").code == 0


@pytest.mark.parametrize(("only", "rounds"), [("rounds=2", ["2"]), ("rounds=1", ["1"]), ("rounds=1|2", ["1", "2"])])
def test_only_knows_parameters_at_their_default(variant: Variant, only: str, rounds: list[str]) -> None:
    made = plan.make(suite.load(str(variant("{kind: there_and_back, rounds: [1, 2]}", *LISTS))))
    chosen = Filter([f"{only},method=source,adapt_images=all"]).select(made.trials)
    assert [t.setting.told for t in chosen] == ["rounds 1" if n == "1" else "" for n in rounds]
    with pytest.raises(UsageError, match="no trial has rounds '3'"):
        Filter(["rounds=3"]).select(made.trials)


def test_only_tells_rows_apart_that_share_a_trial(variant: Variant) -> None:
    file = variant("{kind: there_and_back}")
    replaced(file, ("methods: [source,", "methods: [source, {name: source, label: again},"))
    trials = plan.make(suite.load(str(file))).trials
    assert trials[0].key == trials[1].key
    assert [t.label for t in Filter(["method=again"]).select(trials)] == ["again"]
