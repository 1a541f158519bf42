"""A report by hand, with all that is hard to show: failed, skipped and missing cells, mixed runs, hostile texts."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tta_bench.report.content import Content, Gap, Method
from tta_bench.report.cost import CostRow, CostTable
from tta_bench.report.evidence import Evidence
from tta_bench.report.figures import SavedFigure
from tta_bench.report.mce import MceRow, MceTable
from tta_bench.report.reference import ComparedRow, Comparison
from tta_bench.report.render import page
from tta_bench.report.statistics import Ranks
from tta_bench.report.table import Cell, ErrorTable, MethodErrors, Pair, TableSetting
from tta_bench.setting import Setting
from tta_bench.store.results import Results

HOSTILE = "<script>alert('x')</script> & \"co\""
LONG = "mgg[lr=0.01,objective=entropy]"
LABELS = ["source", "tent", LONG, HOSTILE, "norm"]
MODELS = ["resnet_bn", "vit & <b>"]
CORRUPTIONS = ["clean", "gaussian_noise", "fog", "contrast"]
FAILED = "ValueError: scores are not finite & batch 3 of <fog-5> has 50 NaN"
SKIPPED = "the model has no batch normalisation layer"
MISSING = "not run yet"
_ERRORS = {"source": 40.0, "tent": 9.5, LONG: 100.0, HOSTILE: 30.25}

BASE = Setting("D-C", "reset")


def ok(error: float, std: float | None = 0.4, mark: Any = "", state: str = "ok") -> Cell:
    """A cell with a result."""
    return Cell(error, std, state, error - 1, error + 1, mark, 3 if state == "ok" else 2)


def table(severity: int, labels: list[str] = LABELS, models: list[str] = MODELS) -> ErrorTable:
    """On the first source model one method failed; on the others one was skipped, and the baseline lacks a seed."""
    rows = []
    for model in models:
        for label in labels:
            first = model == models[0]
            if label == "norm":
                state = "failed" if first else "skipped"
                cells = {name: Cell(None, None, state) for name in CORRUPTIONS}
                rows.append(MethodErrors(label, model, cells, Cell(None, None, state), FAILED if first else SKIPPED))
                continue
            error = _ERRORS.get(label, 50.0)
            lacking = label == "source" and not first
            cells = {n: ok(error / (i + 1), state="missing" if lacking else "ok") for i, n in enumerate(CORRUPTIONS)}
            mark = {"tent": "best", HOSTILE: "second"}.get(label, "") if first else "tied"
            mean = ok(error, mark="" if lacking else mark, state="missing" if lacking else "ok")
            rows.append(MethodErrors(label, model, cells, mean, MISSING if lacking else ""))
    setting = TableSetting(BASE, severity)
    pairs = [Pair(models[0], "source", "tent", 30.5, 28.0, 33.0, 0.0001)]
    ranks = Ranks(["tent", HOSTILE, "source"], np.array([1.0, 2.0, 3.0]), 8, 0.001, 1.2, [LONG, "norm"])
    caption = f"Error in per cent on {setting.text}."
    return ErrorTable(f"severity-{severity}", f"s: error in per cent, severity {severity}", setting, caption, CORRUPTIONS,
                      rows, True, seeds=3, pairs=pairs, ranks={"": ranks, models[0]: ranks}, mixed=("they differ",))  # fmt: skip


def curve() -> ErrorTable:
    """Error by number of images adapted on."""
    rows = [MethodErrors(label, MODELS[0], {"64": ok(20), "all": ok(10)}, ok(15), "") for label in LABELS[:2]]
    setting = TableSetting(BASE, 5)
    return ErrorTable("curve-5", "s: error by images adapted on", setting, "A curve.", ["64", "all"], rows, True,
                      averaged=False, untested="curves are not tested", mixed=("they differ",))  # fmt: skip


def evidence(folder: pathlib.Path, labels: list[str] = LABELS, models: list[str] = MODELS) -> Evidence:
    """A run of one trial for each method and source model, whose folder has a run.json."""
    status = {"norm": "failed"}
    rows = [
        {"label": label, "model": model, "setting": "s", "seed": 0, "key": f"{label}{model}", "run": 0,
         "status": status.get(label, "ok"), "session": 0, "device_name": "GPU & co", "host": "h", "threads": 2, "torch": "2.6",
         "device": "cuda", "precision": "float32", "source_images": None, "checkpoint": ""}
        for label in labels for model in models
    ]  # fmt: skip
    asked = {"tag": "resnet18", "weights_sha256": "ab" * 32, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    trials = [{"dataset": "D-C", "shifts": [["fog", 5, "fog-5"]], "model": model, "data": f"{i}f" * 32, "label": HOSTILE,
               "method": "tent", "variant": "official", "preset": "", "preset_missing": "", "config": {"lr": 0.1}, "images": 50,
               "seed": 0, "batch_size": 64, "adapt_images": None, "setting": "s", "setting_values": BASE.values()}
              for i, model in enumerate(models)]  # fmt: skip
    plan: Mapping[str, Any] = {"suite": "s", "all_images": False, "numerics_version": 1, "schema_version": 4,
                               "models": dict.fromkeys(models, asked), "trials": trials, "notes": []}  # fmt: skip
    session = {"session": 0, "started": "2026-01-01T00:00:00+00:00", "command": ["tta-bench", "run", "a b"],
               "tta_bench": "0.1.0", "git": {"commit": "c0ffee", "dirty": True}, "packages": {"torch": "2.6"},
               "python": "3.11", "host": "h", "gpus": [], "suite": {"name": "s", "data": {"kind": "</pre>"}}}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"sessions": [session]}))
    frame = pd.DataFrame(rows)
    return Evidence(
        (Results(folder, plan, frame, frame, frame, 0),), frame, frame, frame, ("they differ in torch: 1 & 2",), ()
    )


def content(folder: pathlib.Path) -> Content:
    """The report; ``folder`` becomes that of its run."""
    costs = [
        CostTable(hardware, f"Cost on {hardware}.", "source",
                  [CostRow(label, model, 500.0, float(5 + i), 9.0, 1.0 + i, 1000.0, 0.0, 20.0, None, None, 3)
                   for model in MODELS for i, label in enumerate(LABELS[:4])], section=BASE)
        for hardware in ("NVIDIA H100", "x86_64 (h), 2 threads")
    ]  # fmt: skip
    compared = [
        ComparedRow("tent", "resnet_bn", "Tent", "ResNet-26", "mean", 14.3, 9.5, -4.8, "other weights & generated"),
        ComparedRow("norm", "resnet_bn", "BN", "ResNet-26", "mean", 17.3, None, None, "no such cell", state="missing"),
    ]
    methods = [Method(label, model, "m", "official", "", {"lr": 0.1 * (1 + i), "options": {"eps": 1e-8}})
               for label in LABELS for i, model in enumerate(MODELS)]  # fmt: skip
    gaps = [
        Gap(
            "norm",
            MODELS[0],
            "failed",
            FAILED,
            ("clean", "gaussian_noise-5", "fog-5", "contrast-5"),
            (0, 1, 2),
            12,
            "logs/a.log",
        ),
        Gap("norm", MODELS[1], "skipped", SKIPPED, ("clean",), (0, 1, 2), 3, ""),
        Gap("source", MODELS[1], "missing", MISSING, ("fog-5",), (2,), 1, ""),
    ]
    mce = [
        MceTable(
            "mCE.",
            [MceRow("tent", MODELS[0], 71.5, {"fog": 70.0, "snow": 73.0})],
            ["norm: failed"],
            ("SUBSET OF THE IMAGES, NOT A RESULT", "MIXED: x"),
        )
    ]
    return Content("s", evidence(folder), "source", [table(3), table(5)], [curve()], [], [], [], costs,
                   [Comparison("A paper", "2006.10726", "Table 2", compared, "12 have no counterpart.")], mce, methods, gaps,
                   ["A note & more."])  # fmt: skip


_SVG = b"""<svg xmlns="http://www.w3.org/2000/svg" width="900pt" viewBox="0 0 900 200"><rect width="900" height="200"/></svg>"""


def write_page(folder: pathlib.Path) -> pathlib.Path:
    """The report's page with a figure, a black rectangle, beside a table in ``data/``."""
    (folder / "report" / "data").mkdir(parents=True)
    (folder / "report" / "data" / "shifts.csv").write_text("a\n")
    drawn = [SavedFigure("by corruption", "By corruption", "Error by corruption & method.", [], 12.5, _SVG)]
    return page.write(content(folder / "run"), drawn, folder / "report" / "index.html")
