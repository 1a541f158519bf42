"""Runs put together: what is refused, what is let through and said."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pandas as pd
import pytest
from merging import replanned
from runs import reseal, verdicts, write_run

import tta_bench
from tta_bench.errors import UsageError
from tta_bench.report.content import ReportOptions, make
from tta_bench.report.cost import costs
from tta_bench.report.evidence import gather, of_shifts
from tta_bench.report.render.grids import cost_grid

FOG = {("a", "m", "fog-5", 0): verdicts(10, 100)}
SNOW = {("a", "m", "snow-5", 0): verdicts(10, 100)}


def test_runs_of_one_setting_stand_in_one_table(tmp_path: pathlib.Path) -> None:
    runs = [write_run(tmp_path / name, cells) for name, cells in (("one", FOG), ("two", SNOW))]
    evidence = gather(runs)
    assert evidence.shifts["shift"].tolist() == ["fog-5", "snow-5"]
    assert evidence.segments["run"].tolist() == [0, 1]
    assert len(evidence.batches) == 20
    assert evidence.mixed == ()


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"data": "others"}, "differ in images: fog-5"), ({"precision": "float64"}, "differ in precision: float32 against float64"),
     ({"numerics_version": 2}, "differ in numerics_version: 1 against 2"),
     ({"images": 50}, "differ in images a shift: 100 against 50"),
     ({"session": {"tta_bench": "0.2.0"}}, "differ in tta_bench: 0.1.0 against 0.2.0"),
     ({"session": {"packages": {"torch": "2.6.0", "timm": "1.0.31"}}}, "differ in torch: 2.13.0 against 2.6.0")],
)  # fmt: skip
def test_runs_that_differ_are_refused_unless_asked_for_and_then_labelled(
    tmp_path: pathlib.Path, changed: dict[str, object], said: str
) -> None:
    one = write_run(tmp_path / "one", FOG)
    other = write_run(tmp_path / "other", {("b", "m", "fog-5", 0): verdicts(20, 100)}, **changed)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--mix") as refused:
        gather([one, other])
    assert said in str(refused.value)
    mixed = gather([one, other], mix=True)
    assert said in mixed.mixed[0]
    content = make(mixed, ReportOptions())
    assert "MIXED" in content.warning
    assert said in content.notes[0]
    assert all(said in table.mixed[0] for table in content.tables)


def test_runs_of_other_data_sets_need_not_agree(tmp_path: pathlib.Path) -> None:
    one = write_run(tmp_path / "one", FOG)
    other = write_run(tmp_path / "other", FOG, dataset="E", precision="float64")
    assert gather([one, other]).mixed == ()


def test_a_cell_in_two_runs_is_refused_even_when_mixing(tmp_path: pathlib.Path) -> None:
    """Averaging the two would count one order of the stream as two seeds."""
    runs = [write_run(tmp_path / name, FOG) for name in ("one", "two")]
    with pytest.raises(UsageError, match=r"1 cells are also in .*one, the first is a on m") as refused:
        gather(runs, mix=True)
    assert "tta-bench merge" in str(refused.value)


def test_one_label_for_two_settings_is_refused(tmp_path: pathlib.Path) -> None:
    one = write_run(tmp_path / "one", FOG, config={"lr": 0.1})
    other = write_run(tmp_path / "other", SNOW, config={"lr": 0.2})
    with pytest.raises(UsageError, match="a on m has other hyperparameters than in .*one"):
        gather([one, other])


@pytest.mark.parametrize("contents", ["equal", "other", "unknown"])
def test_files_are_compared_by_content_where_plans_say_it(tmp_path: pathlib.Path, contents: str) -> None:
    runs = []
    for name, cells, content in (("one", FOG, "1"), ("other", SNOW, "2" if contents == "other" else "1")):
        config = {"lr": 0.1, "optimizer_options": {"steps": 3, "checkpoint": f"/{name}/prepared/a"}}
        runs.append(write_run(tmp_path / name, cells, config=config))
        if contents != "unknown":
            keyed = {"optimizer_options": {"checkpoint": {"sha256": content}}}
            replanned(runs[-1], lambda plan, keyed=keyed: [t.update(config_keyed=keyed) for t in plan["trials"]])
    if contents == "equal":
        assert len(gather(runs).runs) == 2
        return
    with pytest.raises(UsageError, match="a on m has other hyperparameters than in .*one"):
        gather(runs)


def test_a_run_given_twice_and_a_folder_that_is_none_are_refused(tmp_path: pathlib.Path) -> None:
    run = write_run(tmp_path / "one", FOG)
    with pytest.raises(UsageError, match="given twice"):
        gather([run, tmp_path / "." / "one"])
    with pytest.raises(UsageError, match="not a run"):
        gather([tmp_path])


def test_notes_say_what_a_reader_must_know(tmp_path: pathlib.Path) -> None:
    run = write_run(tmp_path / "one", FOG, all_images=False, notes=["generated, not D"])
    (run / "trials" / "gone.json").write_text("{}")
    said = " ".join(gather([run]).notes)
    assert "Images are generated, not D." in said
    assert "this is not a result" in said
    assert "1 trial files of an earlier plan" in said


def test_sessions_of_other_machines_in_one_run_are_said(tmp_path: pathlib.Path) -> None:
    run = write_run(tmp_path / "one", {**FOG, **SNOW})
    first = sorted((run / "trials").glob("*.json"))[0]
    record = json.loads(first.read_text())
    first.write_text(json.dumps({**record, "environment": {**record["environment"], "device": "cuda"}}))
    reseal(first)
    assert "one mixes several values of device: cpu, cuda." in gather([run]).notes


def notes_of(path: pathlib.Path, rows: dict[Any, Any], **options: Any) -> str:
    return " ".join(make(gather([write_run(path, rows, **options)]), ReportOptions()).notes)


@pytest.mark.parametrize(("error", "chance"), [(90, True), (86, True), (80, False)])
def test_a_source_model_at_chance_on_clean_images_is_said(tmp_path: pathlib.Path, error: int, chance: bool) -> None:
    rows = {("source", "m", "clean", 0): verdicts(error, 1000), ("source", "n", "clean", 0): verdicts(5, 1000)}
    said = notes_of(tmp_path / "run", rows, num_classes=10)
    assert (f"source on m is at chance on clean images: error {error}.0 %, of random answers 90.0 %" in said) == chance
    assert "source on n" not in said


def test_times_from_a_busy_host_or_a_shared_gpu_are_said(tmp_path: pathlib.Path) -> None:
    rows = {**FOG, **SNOW}
    quiet = notes_of(tmp_path / "quiet", rows, facts={"load_start": 0.2, "load_end": 1.1, "device_others_mib": 500.0})
    assert "busy" not in quiet
    assert "GPU" not in quiet
    assert "shared" not in quiet
    busy = notes_of(tmp_path / "busy", rows, facts={"load_start": 0.2, "load_end": 3.14, "device_others_mib": 9000.0})
    assert "2 of 2 trials ran on a busy host, with up to 3.1 waiting or running processes for each CPU" in busy
    assert "2 of 2 trials met other processes on their GPU, with up to 9,000 MiB of its memory" in busy
    assert "2 of 2 trials shared their device" in notes_of(tmp_path / "shared", rows, facts={"device_share": 0.25})
    [table] = costs(gather([tmp_path / "busy"]), "source")
    assert "busy host" in " ".join(cost_grid(table, "cost-1").caption)


def test_damaged_arrays_make_a_missing_cell_with_a_note(tmp_path: pathlib.Path) -> None:
    run = write_run(tmp_path / "one", {**FOG, **SNOW})
    file = sorted((run / "trials").glob("*.npz"))[0]
    file.write_bytes(file.read_bytes()[:200])
    found = gather([run])
    assert sorted(found.shifts["status"]) == sorted(found.segments["status"]) == ["missing", "ok"]
    assert "one has 1 damaged trials, counted as missing: run the suite again." in found.notes


def test_load_results_gives_tidy_frames(tmp_path: pathlib.Path) -> None:
    runs = [write_run(tmp_path / "one", FOG), write_run(tmp_path / "two", SNOW)]
    rows = tta_bench.load_results(*runs)
    assert rows.set_index("shift")["error_pct"].to_dict() == {"fog-5": 10, "snow-5": 10}
    costs = tta_bench.load_results(*runs, table="segments")
    assert costs.set_index("segment")["images_forwarded"].to_dict() == {"fog-5": 100, "snow-5": 100}
    curve = tta_bench.load_results(str(runs[0]), table="batches")
    assert curve["running_error_pct"].iloc[-1] == pytest.approx(10)
    errors = tta_bench.load_results(*runs, table="errors")
    assert errors.set_index("column").loc["mean", "error_pct"] == pytest.approx(10)
    with pytest.raises(UsageError, match="did you mean 'errors'"):
        tta_bench.load_results(*runs, table="error")


def test_segments_of_shifts_are_told_by_trial_and_position() -> None:
    """Two labels share a trial's key; of one of them the second segment is wanted, which has two shifts."""
    place = {"run": 0, "model": "m", "setting": "s", "key": "k"}
    segments = pd.DataFrame([{**place, "label": label, "position": p} for label in "ab" for p in (0, 1)])
    shifts = pd.DataFrame([{**place, "label": "b", "position": 1, "shift": shift} for shift in ("fog-5", "snow-5")])
    assert of_shifts(segments, shifts).index.tolist() == [3]
