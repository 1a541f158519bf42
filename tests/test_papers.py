"""Suites of published settings: each can be planned, its rows are those of the published table, and docs/published.md is current.

No published weights and no published data are at hand. The dry run is real but for three things: networks are built in full size
on torch's meta device, without values, in place of loading weights; and the data have the published layout but few images
(20 of ImageNet-C, 100 of CIFAR in each severity), of 10 classes where the networks for ImageNet have 1,000, and label shift 1,000 draws; no network is timed.
"""

from __future__ import annotations

import collections
import functools
import json
import os
import pathlib
import re
import shlex
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome
from PIL import Image
from runs import verdicts, write_run

from tta_bench import suite
from tta_bench.commands import run
from tta_bench.data.corrupt.corruptions import BENCHMARK
from tta_bench.data.kinds import cifar_c
from tta_bench.data.labels import imagenet_labels
from tta_bench.errors import Problem
from tta_bench.models import Network, open_network
from tta_bench.networks.checkpoints import FromFile
from tta_bench.networks.from_timm import Timm, build_network, check_timm_name
from tta_bench.networks.from_torchvision import Torchvision
from tta_bench.report import coverage, error_tables, evidence, published
from tta_bench.report.coverage import Matches, Place
from tta_bench.report.matching import differences
from tta_bench.report.published import Published
from tta_bench.report.reference import compare
from tta_bench.suite import plan
from tta_bench.suite.plan import Plan
from tta_bench.suite.resolve import ResolvedMethod, resolve
from tta_bench.suite.sources import OpenedModel

Cli = Callable[..., Outcome]
ROOT = pathlib.Path(__file__).resolve().parent.parent
PAPERS = [name for name in suite.shipped() if name.startswith(coverage.PAPERS)]
CLASSES = 10  # of the small ImageNet-C
CIFAR_ROWS = 100  # of each severity


# -- data and networks that stand for the published ones ---------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of all suites: folders of the published layouts, and a checkpoint of MGG."""
    root = tmp_path_factory.mktemp("published")
    image = root / "image.JPEG"
    Image.fromarray(np.zeros((224, 224, 3), np.uint8)).save(image)
    trees = {name: [f"{c}/5/" for c in BENCHMARK] for name in ("IMAGENET_C", "IMAGENET_C_5000")}
    trees |= {name: [""] for name in ("IMAGENET_VAL", "IMAGENET_R", "IMAGENET_A", "IMAGENET_SKETCH")}
    trees["IMAGENET_V2"] = ["imagenetv2-matched-frequency-format-val/"]
    for name, parts in trees.items():
        classes_of = range(CLASSES) if name == "IMAGENET_V2" else imagenet_labels()[:CLASSES]
        for folder in (root / name / f"{part}{each}" for part in parts for each in classes_of):
            folder.mkdir(parents=True)
            for number in range(2):
                os.link(image, folder / f"{number}.JPEG")
    for classes in (10, 100):
        arrays = root / f"CIFAR{classes}_C"
        arrays.mkdir()
        np.save(arrays / "labels.npy", np.tile(np.arange(CIFAR_ROWS) % classes, 5))
        for corruption in BENCHMARK:
            np.save(arrays / f"{corruption}.npy", np.zeros((5 * CIFAR_ROWS, 32, 32, 3), np.uint8))
    binary = root / "CIFAR10_BINARY"
    binary.mkdir()
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (binary / name).write_bytes(b"".join(bytes([number % 10]) + bytes(3072) for number in range(CIFAR_ROWS)))
    weights = ROOT / "methods" / "weights" / "digits_c" / "mgg-vit_ln.safetensors"
    names = [*trees, "CIFAR10_C", "CIFAR100_C", "CIFAR10_BINARY"]
    return {name: str(root / name) for name in names} | {"MODELS": str(root), "MGG_CHECKPOINT": str(weights)}


_built: dict[str, torch.nn.Module] = {}


def unloaded(network: Network) -> torch.nn.Module:
    """The network of a suite in full size, without values. Its tag and its weights' name exist."""
    build: Callable[[], torch.nn.Module]
    if isinstance(network, Timm):
        assert check_timm_name(network.tag) is None
        build = functools.partial(build_network, network.config)
    elif isinstance(network, Torchvision):
        build = network._random
    else:
        assert isinstance(network, FromFile)
        build = network.architecture
    tag = f"{network.tag}, {getattr(network.config, 'classes', 1000)} classes"
    if tag not in _built:
        with torch.device("meta"):
            _built[tag] = build().eval()
    return _built[tag]


def opened(loaded: suite.LoadedSuite, problems: list[Problem]) -> dict[str, OpenedModel]:
    """In place of :func:`tta_bench.suite.sources.open_models`."""
    models = {}
    for config in loaded.suite.models:
        network = open_network(config, loaded.registry)
        net = unloaded(network)
        mean, std = (list(values) for values in network.normalisation(net))
        asked = {"tag": network.tag, "weights_sha256": config.name, "mean": mean, "std": std, **network.asked()}
        classes = network.num_classes(net)
        size, parameters = network.image_size(net), sum(p.numel() for p in net.parameters())
        named = imagenet_labels() if loaded.suite.data.by_labels else None  # then folders are matched to the classes
        classes = CLASSES if classes == 1000 and named is None else classes
        models[config.name] = OpenedModel(network, classes, size, network.geometry(net), parameters, asked, named)
    return models


@pytest.fixture
def planned(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, run_cli: Cli
) -> Callable[..., tuple[Outcome, Plan]]:
    """``tta-bench run SUITE --dry-run``: what it prints, and the plan that it makes."""
    plans: list[Plan] = []
    make = plan.make

    def kept(*given: Any, **options: Any) -> Plan:
        plans.append(make(*given, **options))
        return plans[-1]

    for name, folder in folders.items():
        monkeypatch.setenv(name, folder)
    monkeypatch.setattr(cifar_c, "ROWS", CIFAR_ROWS)
    monkeypatch.setattr(plan, "open_models", opened)
    monkeypatch.setattr(plan, "make", kept)
    monkeypatch.setattr(run, "forecast", lambda *_: "")  # times a forward pass of each network

    def call(name: str, *options: str) -> tuple[Outcome, Plan]:
        outcome = run_cli("run", name, "--dry-run", "--executor", "local", *options)
        assert outcome.code == 0, outcome.err
        return outcome, plans[-1]

    return call


# -- each suite --------------------------------------------------------------------------------------------------------

FEWER_DRAWS = {
    "papers/sar": "protocol.0.samples=1000",
    "papers/deyo": "protocol.2.samples=1000",
}  # 100,000 take half a minute


@pytest.mark.parametrize("name", PAPERS)
def test_a_suite_can_be_planned_and_its_rows_are_those_of_the_page(name: str, planned: Any) -> None:
    outcome, made = planned(name, *(["--set", FEWER_DRAWS[name]] if name in FEWER_DRAWS else []))
    assert f"{len(made.trials)} trials" in outcome.err
    of_plan = {
        (t.label, t.model, severity, setting.dataset, setting.protocol, setting.parameters, setting.batch_size)
        for t in made.trials for severity in t.setting.severities or (0,) for setting in [t.setting.without("samples")]
    }  # fmt: skip
    of_page, asked = set(), {t.model: t.asked["model"] for t in made.trials}
    for row in coverage.rows(name):
        base = row.table.setting.base
        setting = (base.dataset, base.protocol, base.parameters, base.batch_size)
        of_page.add((row.row.label, row.row.model, row.table.setting.severity, *setting))
        assert row.about.items() <= asked[row.row.model].items()
    assert of_page == of_plan


MOMENTUM = {"momentum": 0.9, "weight_decay": 0.0, "nesterov": True}
VIT, NESTEROV = {"lr": 1e-3}, {"lr": 2.5e-4, "optimizer_options": MOMENTUM}
SETTINGS: list[tuple[str, str, str, str, int, dict[str, Any]]] = [
    ("tent", "tent", "WRN-28-10", "reset", 200, {"optimizer": "adam", "lr": 1e-3}),
    ("eata", "eata", "R50-BN", "reset", 64, {"lr": 2.5e-4, "fisher_alpha": 2000.0, "d_margin": 0.05}),
    ("sar", "sar", "ViT-B", "label_shift sar", 64, VIT),
    ("sar", "sar", "ViT-B", "reset sar", 1, {"lr": 1e-3 / 64 * 2}),
    ("sar", "tent", "R50-GN", "reset sar", 1, {"lr": 2.5e-4 / 64 * 2}),
    ("sar", "eata", "R50-BN", "mixed sar", 64, {"lr": 2.5e-4}),
    ("cotta", "cotta", "WRN-28-10", "gradual", 200, {"optimizer": "adam", "lr": 1e-3, "ap": 0.92, "rst": 0.01, "always_augment": True}),
    ("cotta_cifar100", "cotta", "ResNeXt-29", "continual", 200, {"optimizer": "adam", "lr": 1e-3, "ap": 0.72, "rst": 0.01}),
    ("cotta_imagenet", "cotta", "R50-BN", "continual", 64, {"optimizer": "sgd", "lr": 0.01, "ap": 0.1, "rst": 0.001}),
    ("rotta", "rotta", "WRN-28-10", "continual rotta 0.1", 64, {"optimizer": "adam", "lr": 1e-3, "memory_size": 64, "nu": 0.001, "alpha": 0.05}),
    ("rotta_cifar100", "rotta", "ResNeXt-29", "continual rotta 0.1", 64, {"optimizer": "adam", "lr": 1e-3}),
    ("deyo", "deyo", "R50-BN", "reset sar", 64, {"lr": 2.5e-4, "plpd_threshold": 0.3}),
    ("deyo", "deyo", "R50-GN", "mixed sar", 64, {"lr": 2.5e-4, "plpd_threshold": 0.2}),
    ("deyo", "deyo", "ViT-B", "label_shift sar", 64, {"lr": 1e-3, "plpd_threshold": 0.2}),
    ("roid", "tent", "Swin-B", "mixed md", 64, NESTEROV),
    ("roid", "eata", "R50-BN", "continual md", 64, NESTEROV),
    ("roid", "sar", "R50-BN", "continual md", 64, {"lr": 2.5e-4}),
    ("roid", "sar", "Swin-B", "continual md", 64, VIT),
    ("roid", "cotta", "tv-ViT-B16", "continual md", 64, {"lr": 0.01, "optimizer_options": MOMENTUM}),
    ("roid", "roid", "R50-BN", "mixed md", 64, NESTEROV),
    ("roid_correlated", "sar", "tv-ViT-B16", "continual md 0.0", 64, VIT),
    ("roid_correlated", "roid", "Swin-B", "mixed md 0.01", 64, NESTEROV),
    ("roid_cifar10", "eata", "WRN-28-10", "mixed md", 200, {"optimizer": "adam", "lr": 1e-3, "fisher_alpha": 1.0, "d_margin": 0.4}),
    ("roid_cifar10", "roid", "RN26-GN", "continual md 0.0", 200, {"optimizer": "adam", "lr": 1e-3}),
    ("foa", "tent", "ViT-B", "reset", 64, VIT),
    ("foa", "cotta", "ViT-B", "reset", 64, {"lr": 5e-3}),
    ("foa", "foa", "ViT-B", "label_shift", 64, {"num_prompts": 3, "popsize": 27, "fitness_lambda": 0.4, "source_images": 50_000}),
    ("foa", "deyo", "ViT-B", "mixed", 64, VIT),
    ("online_tta", "tent", "R50-BN", "reset", 64, {"lr": 2.5e-4}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "method", "model", "protocol", "batch_size", "values"), SETTINGS)
def test_hyperparameters_are_the_papers(
    name: str, method: str, model: str, protocol: str, batch_size: int, values: dict[str, Any]
) -> None:
    found = [
        row for row in resolved(name) if (row.method.name, row.model, row.batch_size) == (method, model, batch_size)
    ]
    here = [row.config for row in found if protocol in _named(row.evaluation.protocol)]
    assert here, [_named(row.evaluation.protocol) for row in found]
    for config in here:
        assert {key: getattr(config, key) for key in values} == values


@functools.cache
def resolved(name: str) -> list[ResolvedMethod]:
    problems: list[Problem] = []
    rows = resolve(coverage.load(f"papers/{name}"), lambda *_: True, {}, problems)
    assert [problem for problem in problems if "pretrain" not in problem.message] == []
    return rows


def _named(protocol: Any) -> list[str]:
    """``continual rotta 0.1`` of a protocol with single values."""
    deltas = getattr(protocol, "delta", (None,))
    return [" ".join(str(part) for part in (protocol.kind, protocol.variant, d) if part is not None) for d in deltas]


COMMANDS = [line.split("    ")[0] for name in [*PAPERS, "imagenet_c"]
            for line in re.findall(r"^# +tta-bench run (\S+ --only .*)$", suite.find(name).read_text(), re.MULTILINE)]  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_a_header_selects_trials(command: str, planned: Any) -> None:
    name, *options = shlex.split(command)
    sets = ["--set", FEWER_DRAWS[name]] if name in FEWER_DRAWS else []
    outcome, made = planned(name, *options, *sets)
    selected = re.search(r"^ *(\d+) of \d+ trials|(\d+) to run", outcome.err, re.MULTILINE)
    assert selected is not None, outcome.err
    assert 0 < int(selected[1] or selected[2]) < len(made.trials)


@pytest.fixture(scope="module")
def numbers() -> list[Published]:
    return published.load(published.shipped())


@pytest.fixture(scope="module")
def matched(numbers: list[Published]) -> list[Matches]:
    return coverage.matches(numbers, suite.shipped())


@pytest.fixture(scope="module")
def placed(numbers: list[Published], matched: list[Matches]) -> list[tuple[Published, Place]]:
    return list(zip(numbers, coverage.places(numbers, matched), strict=True))


@pytest.mark.parametrize("name", PAPERS)
def test_the_header_says_how_many_numbers_the_suite_has(
    name: str, placed: list[tuple[Published, Place]], matched: list[Matches]
) -> None:
    header = suite.find(name).read_text().split("\nname:")[0]
    said = sum(int(number) for number in re.findall(r"(\d+) (?:published numbers|means)\b", " ".join(header.split())))
    papers = {number.paper for number, place in placed if place.suite == name}
    best = zip(placed, matched, strict=True)
    assert said == sum(isinstance(of.get(name), list) and number.paper in papers for (number, _), of in best)


@pytest.mark.parametrize(
    "name",
    ["papers/tent", "papers/eata",
     *(pytest.param(f"papers/{name}", marks=pytest.mark.faults)
       for name in ("sar", "foa", "online_tta", "roid", "roid_cifar10", "roid_correlated"))],
)  # fmt: skip
def test_a_run_of_the_suite_is_compared_as_the_page_says(
    name: str, numbers: list[Published], tmp_path: pathlib.Path
) -> None:
    """Runs made by hand, one for each of the suite's settings, with the published errors."""
    tables = collections.defaultdict[int, list[Any]](list)
    for ours in coverage.rows(name):
        tables[id(ours.table)].append(ours)
    compared = 0
    for position, table in enumerate(tables.values()):
        base, cells, expected = table[0].table.setting.base, {}, list[tuple[str, ...]]()
        for ours in table:
            for number in numbers:
                if number.error is None or not number.comparable or ours.row.mean.state == "skipped":
                    continue
                if isinstance(reasons := differences(number, ours), list):
                    key = (number.paper, number.method, ours.row.label, ours.row.model, number.corruption)
                    expected.append((*key, "; ".join(reasons)))
                    names = BENCHMARK if number.corruption == "mean" else [number.corruption]
                    for each in names:
                        cells.setdefault((ours.row.label, ours.row.model, f"{each}-5", 0), verdicts(number.error, 100))
        run = write_run(
            tmp_path / str(position), cells, dataset=base.dataset, protocol=base.protocol, batch_size=base.batch_size,
            parameters={n: json.loads(value) for n, value in base.parameters}, images=max(table[0].images.values()),
            models={ours.row.model: ours.about for ours in table},
            session={"suite": coverage.load(name).suite.model_dump(mode="json")},
        )  # fmt: skip
        found = evidence.gather([run])
        rows = [
            (c.paper, row) for c in compare(found, error_tables.tables(found), published.shipped()) for row in c.rows
        ]
        measured = [(paper, r.method, r.label, r.model, r.corruption, r.reason) for paper, r in rows]
        assert sorted(measured) == sorted(expected)
        assert all(row.measured is not None for _, row in rows)
        compared += len(rows)
    assert compared


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_is_current(numbers: list[Published], matched: list[Matches]) -> None:
    page = coverage.page(numbers, matched)
    assert (ROOT / "docs" / "published.md").read_text() == page, (
        "python -m tta_bench.report.coverage > docs/published.md"
    )


def test_every_number_is_in_one_group_of_the_page(placed: list[tuple[Published, Place]]) -> None:
    rows = re.findall(
        r"^\|(?: [^|]* \|){5} (\d+) \|[^|]*\|[^|]*\|$", (ROOT / "docs" / "published.md").read_text(), re.MULTILINE
    )
    assert sum(map(int, rows)) == len(placed)
    assert sum(coverage.counts(place for _, place in placed).values()) == len(placed)


def test_what_has_no_suite_has_a_reason(placed: list[tuple[Published, Place]]) -> None:
    for number, place in placed:
        assert place.suite or place.reason
        assert not place.suite or (number.error is not None and number.comparable)
    by_paper = {number.paper: place.suite for number, place in placed if place.status == "reproducible"}
    assert by_paper.items() >= {"Tent": "papers/tent", "EATA": "papers/eata", "SAR": "papers/sar"}.items()
    general = {name for name in (place.suite for _, place in placed) if name and not name.startswith("papers/")}
    assert general <= {"imagenet_c"}, "a paper's numbers are in its own suite"


def test_a_suite_changes_the_page(numbers: list[Published]) -> None:
    """Without FOA's suite its numbers under mixed corruptions are in no suite."""
    mixed = [number for number in numbers if number.paper == "FOA" and number.protocol == "mixed_shifts"]
    [with_it], [without] = (
        {place.status for place in coverage.places(mixed, coverage.matches(mixed, names))}
        for names in (["papers/foa", "imagenet_c"], ["imagenet_c"])
    )
    assert (with_it, without) == ("reproducible", "in no suite: of another protocol (mixed_shifts)")
