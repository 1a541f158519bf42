"""The reference results: what their page says is what their tables hold."""

from __future__ import annotations

import pathlib
import re

import pandas as pd
import pytest

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "results" / "reference"
ABLATION, STREAMS, METHODS, CORRELATED, LAME, COSTS = re.split(
    r"## Which method survives which stream|## Twelve methods|## Nineteen methods|\*\*LAME gains|What a step of 200 images",
    (FOLDER / "README.md").read_text(),
)
MODELS = ("resnet18_bn", "resnet18_gn", "vit_tiny")


def rows_of(text: str) -> list[tuple[str, list[str]]]:
    """(first cell, other cells) of each row of the tables of a text."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return [(first, cells) for first, *cells in lines]


def test_the_table_of_the_ablation_is_the_mean_of_its_rows() -> None:
    rows = pd.read_csv(FOLDER / "mgg_ablation.csv")
    assert (rows.groupby(["model", "label", "seed"]).size() <= 15).all()
    means = rows.groupby(["label", "model", "seed"])["error_pct"].agg(["mean", "count"])
    found = 0
    for line in ABLATION.splitlines():
        label, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        label = label.removesuffix(" (the published method)")
        if not line.startswith("|") or label not in set(rows["label"]):
            continue
        for model, cell in zip(("resnet18_bn", "resnet18_gn", "vit_tiny"), cells[2:], strict=True):
            for seed, number in enumerate(re.findall(r"\d+\.\d+", cell)):
                mean, count = means.loc[(label, model, seed)]
                assert count == 15, "a mean over fewer corruptions is not comparable"
                assert float(number) == pytest.approx(mean, abs=0.0051), (label, model, seed)
                found += 1
    assert found == 33 + 30


def test_the_table_of_the_streams_is_the_mean_of_its_rows() -> None:
    rows = pd.read_csv(FOLDER / "streams.csv").fillna({"parameters": ""})
    grouped = rows.groupby(["model", "label", "protocol", "parameters", "batch_size"])
    assert (grouped.size() == 15).all()
    means = grouped[["error_pct", "most_predicted_pct"]].mean()
    columns = [("continual", "", 64), ("continual", "delta 0.1", 64), ("label_shift", "samples 1000", 64), ("mixed", "", 64),
               ("continual", "", 1)]  # fmt: skip
    model, compared = "", 0
    for line in STREAMS.splitlines():
        if name := re.match(r"\| \*\*(\w+)\*\*", line):
            model = name[1]
        label, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if label.split() and label.split()[-1] in set(rows["label"]):
            for column, cell in zip(columns, cells, strict=True):
                error, *share = map(float, re.findall(r"[\d.]+", cell))
                mean = means.loc[(model, label.split()[-1], *column)]
                assert error == pytest.approx(mean["error_pct"], abs=0.051), (model, label, column)
                assert not share or share[0] == pytest.approx(mean["most_predicted_pct"], abs=0.51)
                compared += 1
    assert compared == len(means) == 40


def test_the_table_of_methods_is_the_mean_of_its_rows() -> None:
    rows = pd.read_csv(FOLDER / "methods.csv")
    grouped = rows.groupby(["label", "model", "protocol"])
    assert (grouped.size() == 15).all()
    means = grouped["error_pct"].mean()
    of_stream = rows[(rows["model"] == "resnet18_bn") & (rows["protocol"] == "continual")].groupby("label")
    passes = of_stream[["images_forwarded", "images_backwarded", "images"]].sum()
    places = [(model, p) for model in ("resnet18_bn", "resnet18_gn", "vit_tiny") for p in ("reset", "continual")]
    compared = 0
    for line in METHODS.splitlines():
        label, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and label in passes.index:
            for place, cell in zip(places, cells[:6], strict=True):
                if cell != "–":
                    assert float(cell) == pytest.approx(means[(label, *place)], abs=0.051), (label, place)
                    compared += 1
            for column, cell in zip(("images_forwarded", "images_backwarded"), cells[6:], strict=True):
                assert float(cell) == pytest.approx(passes.loc[label, column] / passes.loc[label, "images"], abs=0.051)
    assert compared == len(means)


def test_the_table_of_correlated_labels_is_the_mean_of_its_rows() -> None:
    rows = pd.read_csv(FOLDER / "correlated.csv").fillna({"parameters": ""})
    grouped = rows.groupby(["label", "model", "parameters"])
    assert (grouped.size() == 15).all()
    means = grouped[["error_pct", "ece_pct"]].mean()
    columns = [(model, parameters, "error_pct") for model in MODELS for parameters in ("", "delta 0.1")]
    columns += [("resnet18_bn", "", "ece_pct"), ("vit_tiny", "", "ece_pct")]
    compared = 0
    for label, cells in rows_of(CORRELATED):
        if label in set(rows["label"]):
            for (model, parameters, column), cell in zip(columns, cells, strict=True):
                assert (cell == "–") == ((label, model, parameters) not in means.index)
                if cell != "–":
                    assert float(cell) == pytest.approx(means.loc[(label, model, parameters), column], abs=0.051)
                    compared += column == "error_pct"
    assert compared == len(means) == 102


def test_the_table_of_lame_is_the_mean_of_its_rows() -> None:
    rows = pd.read_csv(FOLDER / "lame.csv").fillna({"parameters": ""})
    grouped = rows.groupby(["model", "label", "batch_size", "parameters"])
    assert (grouped.size() == 15).all()
    means, model, compared = grouped["error_pct"].mean(), "", 0
    for name, cells in rows_of(LAME):
        model = found[1] if (found := re.match(r"\*\*(\w+)\*\*", name)) else model
        if (label := name.split()[-1] if name else "") in set(rows["label"]):
            for parameters, cell in zip(("", "delta 0.1", "delta 0.0"), cells[1:], strict=True):
                assert float(cell) == pytest.approx(means[(model, label, int(cells[0]), parameters)], abs=0.051)
                compared += 1
    assert compared == len(means) == 54


def test_the_table_of_costs_is_that_of_its_rows() -> None:
    rows = pd.read_csv(FOLDER / "costs.csv")
    grouped = rows.groupby(["label", "model"])
    sums, compared = grouped[["images_forwarded", "images_backwarded", "images"]].sum(), 0
    for label, cells in rows_of(COSTS):
        for model, own in zip(("resnet18_bn", "vit_tiny"), (cells[:4], cells[4:]), strict=True):
            if (label, model) in sums.index and own[0] != "–":
                own_rows, forward, backward, ms, memory = grouped.get_group((label, model)), *map(float, own)
                passes = sums.loc[(label, model)] / sums.loc[(label, model), "images"]
                assert forward == pytest.approx(passes["images_forwarded"], abs=0.051)
                assert backward == pytest.approx(passes["images_backwarded"], abs=0.051)
                assert ms == pytest.approx(own_rows["step_ms_median"].median(), abs=0.051)
                assert memory == pytest.approx(own_rows["peak_memory_mib"].max(), abs=0.51)
                compared += 1
    assert compared == 18 + 17
