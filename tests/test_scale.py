"""What makes large plans quick does not change keys."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

from tta_bench import suite
from tta_bench.data.base import digest
from tta_bench.suite import plan

SuiteFile = Callable[..., pathlib.Path]


@pytest.mark.parametrize("protocol", ["reset", "continual", "{kind: reset, adapt_images: [40, all]}"])
def test_a_key_is_the_digest_of_what_was_asked(suite_file: SuiteFile, protocol: str) -> None:
    protocol = protocol if "{" in protocol else f"{{kind: {protocol}}}"
    file = suite_file(("[source, tent]", "[source, eata, {name: tent, grid: {lr: [0.1, 1.0e-5], steps: [1, 2]}}]"),
                      ("seeds: [0]", f"seeds: [0, 3]\nprotocol: {protocol}"))  # fmt: skip
    made = plan.make(suite.load(str(file)))
    trials, streams = made.trials, made.materials.streams()
    assert [t.key for t in trials] == [digest(t.asked) for t in trials]
    assert len({t.key for t in trials}) == len(trials)
    assert {t.asked["seed"] for t in trials} == {0, 3}
    assert all(t.asked["stream"] == streams.build(t.model, t.stream).sha256 and t.seed == t.stream.seed for t in trials)
