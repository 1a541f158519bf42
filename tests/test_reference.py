"""The reference results: what their page says is what their tables hold."""

from __future__ import annotations

import pathlib
import re

import pandas as pd
import pytest

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "results" / "reference"


def test_the_table_of_the_ablation_is_the_mean_of_its_rows() -> None:
    rows = pd.read_csv(FOLDER / "mgg_ablation.csv")
    assert (rows.groupby(["model", "label", "seed"]).size() <= 15).all()
    means = rows.groupby(["label", "model", "seed"])["error_pct"].agg(["mean", "count"])
    found = 0
    for line in (FOLDER / "README.md").read_text().splitlines():
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
