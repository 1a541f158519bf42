"""Which shipped suite reproduces each published number, or why none does: the page ``docs/published.md``.

``python -m tta_bench.report.coverage > docs/published.md`` writes it. A suite counts as a run without results: its rows
are matched by the rule of ``report --reference`` (:mod:`tta_bench.report.matching`). Neither data nor weights are
opened; a folder is taken to hold what the suite's header asks for.
"""

from __future__ import annotations

import collections
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from tta_bench import suite
from tta_bench.adapter import Adapter
from tta_bench.models import open_network
from tta_bench.precision import Mode
from tta_bench.protocols import ProtocolConfig
from tta_bench.registry import DATASETS, installed
from tta_bench.report import published
from tta_bench.report.evidence import CLEAN
from tta_bench.report.matching import PROTOCOLS, Chosen, Ours, differences, nearest
from tta_bench.report.published import Published
from tta_bench.report.table import CORRUPTIONS, Cell, ErrorTable, MethodErrors, TableSetting
from tta_bench.setting import Setting
from tta_bench.suite.schema import Evaluation

PAPERS = "papers/"  # of the names of suites with a paper's own setting

_VARIABLE = re.compile(r"\$\{(\w+)")
# A kind of data to its data set's name in tables, of the fields of its Config.
_TITLES = {
    "cifar_c": "CIFAR-{classes}-C",
    "imagenet_c": "ImageNet-C",
    "imagenet": "ImageNet",
    "folder": "{strengths} (generated)",
    "digits": "digits-C",
}
_STRENGTHS = {"imagenet": "ImageNet-C", "cifar": "CIFAR-10-C"}
# A variable for a folder to the number of images, under each shift, that suites' headers ask for.
_IMAGES = {
    "IMAGENET_C": 50_000,
    "IMAGENET_VAL": 50_000,
    "IMAGENET_C_5000": 5_000,
    "CIFAR10": 10_000,
    "CIFAR10_C": 10_000,
    "CIFAR100_C": 10_000,
    "IMAGENET_R": 30_000,
    "IMAGENET_A": 7_500,
    "IMAGENET_SKETCH": 50_889,
    "IMAGENET_V2": 10_000,
}
# A published data set to the kind of data that has it.
_KINDS = {
    "ImageNet-R": "imagenet",
    "ImageNet-A": "imagenet",
    "ImageNet-Sketch": "imagenet",
    "ImageNet-V2": "imagenet",
    "ImageNet-val-clean": "imagenet",
}
_WITHOUT_BATCHNORM = ("vit_", "swin_", "resnet50_gn", "ResNet-26-GN", "torchvision/vit_", "torchvision/swin_")


@dataclass(frozen=True)
class Place:
    """Where a published number is measured.

    Attributes:
        suite: that has its setting; empty where none has.
        reason: why the numbers may differ all the same; or, without a suite, why there is none.
    """

    suite: str
    reason: str

    @property
    def status(self) -> str:
        """``reproducible``, ``reproducible, but: other weights``, or why there is no suite."""
        if not self.suite:
            return self.reason
        return f"reproducible, but: {self.reason}" if self.reason else "reproducible"


# -- the rows of a suite -----------------------------------------------------------------------------------------------


def load(name: str) -> suite.LoadedSuite:
    """A shipped suite, whether or not its variables are set: the current folder stands for each folder of its data."""
    folders = [key for key, value in _raw(name)["data"].items() if _VARIABLE.search(str(value))]
    variables = dict.fromkeys(_VARIABLE.findall(suite.find(name).read_text(encoding="utf-8")), "")
    return suite.load(name, sets=[f"data.{key}=." for key in folders], environment=variables)


def _raw(name: str) -> Mapping[str, Any]:
    """The suite's file, whose variables are not replaced."""
    raw: Mapping[str, Any] = yaml.safe_load(suite.find(name).read_text(encoding="utf-8"))
    return raw


def rows(name: str) -> Iterator[Ours]:
    """What a run of a shipped suite would have in its tables: a row for each method, source model and setting."""
    loaded = load(name)
    abouts = {config.name: _about(loaded, config) for config in loaded.suite.models}
    for table in _tables(loaded):
        images = dict(_images(_raw(name)["data"], table.corruptions))
        for entry, (model, about) in itertools.product(loaded.suite.methods, abouts.items()):
            cls: type[Adapter] = loaded.registry.load(entry.name)
            state = "skipped" if _is_skipped(cls, about["tag"]) else "missing"
            cell = Cell(None, None, state)
            for label, _ in entry.variants():
                row = MethodErrors(label, model, dict.fromkeys(table.corruptions, cell), cell, "")
                yield Ours(table, row, entry.name, about, Chosen.of(entry.model_dump(), model), images)


def _images(data: Mapping[str, Any], shifts: Iterable[str]) -> Iterator[tuple[str, int]]:
    """The number of images under each shift, by the variable of its folder: a key named as it begins, or the first."""
    known = {key: _IMAGES[v] for key, value in data.items() for v in _VARIABLE.findall(str(value)) if v in _IMAGES}
    for shift in shifts:
        own = next((key for key in known if shift.startswith(key)), "source" if shift == CLEAN else "")
        yield shift, known.get(own, next(iter(known.values()), 0))


def _about(loaded: suite.LoadedSuite, config: Any) -> Mapping[str, Any]:
    """What ``plan.json`` says of a source model; without a normalisation that comes with its weights."""
    network = open_network(config, loaded.registry)
    own = {name: list(value) for name in ("mean", "std") if (value := getattr(config, name, None)) is not None}
    return {"tag": network.tag, **network.asked(), **own}


def _is_skipped(cls: type[Adapter], tag: str) -> bool:
    return cls.needs.norm_kinds == ("batch",) and tag.startswith(_WITHOUT_BATCHNORM)


def _tables(loaded: suite.LoadedSuite) -> Iterator[ErrorTable]:
    data = loaded.suite.data
    fields = {**data.model_dump(), "strengths": _STRENGTHS.get(getattr(data, "strengths", ""), "")}
    dataset = _TITLES.get(data.kind, data.kind).format(**fields)
    for each in loaded.suite.evaluations():
        for config, size, severity, mode in itertools.product(
            each.protocol.singles(), each.batch_size, each.severities, each.modes
        ):
            for family, names, level in _families(each, severity):
                setting = _setting(dataset, config, size, mode, level, family)
                yield ErrorTable("", "", setting, "", names, [], data.max_images is not None)


def _families(evaluation: Evaluation, severity: int) -> Iterator[tuple[str, list[str], int]]:
    """(family, names of its shifts and clean, severity) of each table at a severity."""
    shifts = {name: evaluation.data.shift(name, severity) for name in evaluation.corruptions}
    for family in dict.fromkeys(shift.family for shift in shifts.values() if shift.family != CLEAN) or [CORRUPTIONS]:
        own = [name for name, shift in shifts.items() if shift.family in (family, CLEAN)]
        yield family, own, max(int(shifts[name].severity or 0) for name in own)


def _setting(dataset: str, config: ProtocolConfig, size: int, mode: Mode, severity: int, family: str) -> TableSetting:
    parameters = {name: value for name, value in config.parameters().items() if name != "adapt_images"}
    values = {"protocol": config.kind, "parameters": parameters, "severities": [], "batch_size": size}
    base = Setting.of({"dataset": dataset, **vars(mode), **values})
    return TableSetting(base, severity, config.adapt_images[0] or 0, family=family)


# -- numbers and suites ------------------------------------------------------------------------------------------------


Matches = Mapping[str, "list[str] | int"]  # a suite's name to the reasons to differ, or how far its nearest row is


def matches(numbers: Sequence[Published], suites: Sequence[str]) -> list[Matches]:
    """What each number and each suite have in common; nothing of numbers that are not compared."""
    by_suite = {name: list(rows(name)) for name in sorted(suites, key=lambda name: not name.startswith(PAPERS))}
    return [
        {name: _best(number, ours) for name, ours in by_suite.items()} if _is_compared(number) else {}
        for number in numbers
    ]


def places(numbers: Sequence[Published], found: Sequence[Matches]) -> list[Place]:
    """The place of each number: the suite with the fewest reasons to differ, of several the one with most of its table."""
    like = collections.Counter(
        (_table_of(number), name)
        for number, best in zip(numbers, found, strict=True)
        for name, reasons in best.items()
        if reasons == []
    )
    return [_place(number, best, like) for number, best in zip(numbers, found, strict=True)]


def _place(number: Published, best: Matches, like: Mapping[tuple[Any, ...], int]) -> Place:
    matching = {name: reasons for name, reasons in best.items() if isinstance(reasons, list)}
    if not matching:
        return Place("", _why_not(number, [position for position in best.values() if isinstance(position, int)]))
    name = min(matching, key=lambda name: (len(matching[name]), -like[_table_of(number), name]))
    return Place(name, "; ".join(matching[name]))


def _is_compared(number: Published) -> bool:
    return number.error is not None and number.comparable


def _best(number: Published, ours: Iterable[Ours]) -> list[str] | int:
    """The fewest reasons to differ of any row; without a row of the same setting, how far the nearest one is."""
    farthest, fewest = 0, None
    for row in ours:
        found = differences(number, row)
        if isinstance(found, int):
            farthest = max(farthest, found)
            continue
        reasons = [
            *found,
            *(["skipped there: the network has no BatchNorm"] if row.row.mean.state == "skipped" else []),
        ]
        fewest = reasons if fewest is None or len(reasons) < len(fewest) else fewest
    return farthest if fewest is None else fewest


def _why_not(number: Published, positions: Sequence[int]) -> str:
    if not _is_compared(number):
        return "not an error" if number.error is None else "marked as not comparable"
    if number.protocol not in PROTOCOLS:
        return "no counterpart of the protocol"
    kind = _KINDS.get(number.dataset)
    if kind is not None and kind not in installed().names(DATASETS):
        return f"no kind of data for {number.dataset} yet"
    reason, value = nearest(number, positions)
    return f"in no suite: {reason} ({value})"


def _table_of(number: Published) -> tuple[Any, ...]:
    return number.paper, number.dataset, number.model, number.protocol, number.severity


# -- the page ----------------------------------------------------------------------------------------------------------

_SAME, _DIFFERENT = "reproducible", "reproducible, but with a known difference"
_HEAD = """\
# Published numbers, and the suites that reproduce them

Written by `python -m tta_bench.report.coverage > docs/published.md`, from
[published.csv](../results/reference/published.csv) and the shipped [suites](../suites). `tta-bench run SUITE` runs a
suite, once the data and weights of its header are in place; `tta-bench report RUN --reference` puts its numbers beside the
published ones, by the rule of this page. Nothing here says that a suite has been run.

*reproducible*: the suite has the number's data set, network, protocol, batch size and hyperparameters, as far as they are
published. *but*: with a known difference, which the report states beside each number.
"""


def page(numbers: Sequence[Published], matched: Sequence[Matches]) -> str:
    """The page, as Markdown, from what :func:`matches` found."""
    found = places(numbers, matched)
    parts = [_HEAD, *_counts(found, places(numbers, [_general(best) for best in matched]))]
    for paper in dict.fromkeys(number.paper for number in numbers):
        own = [(number, place) for number, place in zip(numbers, found, strict=True) if number.paper == paper]
        parts += [f"## {paper}\n", *_paper(own)]
    return "\n".join(parts)


def counts(found: Iterable[Place]) -> dict[str, int]:
    """How many numbers are reproducible, reproducible with a difference, and in no suite, by reason."""
    names = [_kind(place) for place in found]
    order = dict.fromkeys([_SAME, _DIFFERENT, *names])
    return {name: names.count(name) for name in order}


def _kind(place: Place) -> str:
    if place.suite:
        return _DIFFERENT if place.reason else _SAME
    return re.sub(r" \(.*| for .*", "", place.reason)


def _general(best: Matches) -> Matches:
    return {name: reasons for name, reasons in best.items() if not name.startswith(PAPERS)}


def _counts(found: Sequence[Place], general: Sequence[Place]) -> Iterator[str]:
    every, without = counts(found), counts(general)
    yield f"| numbers | all suites | without `suites/{PAPERS}` |\n| --- | ---: | ---: |"
    for name in dict.fromkeys([*every, *without]):
        yield f"| {name} | {every.get(name, 0)} | {without.get(name, 0)} |"
    yield f"| all | {len(found)} | {len(general)} |\n"


def _paper(own: Sequence[tuple[Published, Place]]) -> Iterator[str]:
    """A paper's sources, and a row for each setting and status."""
    number = own[0][0]
    arxiv = f"arXiv {number.arxiv}. " if number.arxiv else ""
    sources = "; ".join(dict.fromkeys(n.source for n, _ in own))
    yield f"{arxiv}Source: {sources}\n"
    yield "| data set | network | protocol | severity | methods | numbers | suite | status |"
    yield "| --- | --- | --- | --- | --- | ---: | --- | --- |"
    groups = collections.defaultdict[tuple[tuple[object, ...], tuple[str, str]], list[str]](list)
    for n, place in own:
        severity = "–" if n.severity is None else n.severity
        name = f"`{place.suite}`" if place.suite else ""
        groups[(n.dataset, n.model, n.protocol, severity), (name, place.status)].append(n.method)
    for (setting, (name, status)), methods in groups.items():
        told = ", ".join(dict.fromkeys(methods))
        yield f"| {' | '.join(map(str, setting))} | {told} | {len(methods)} | {name} | {status} |"
    yield ""


if __name__ == "__main__":
    every = published.load(published.shipped())
    print(page(every, matches(every, suite.shipped())), end="")
