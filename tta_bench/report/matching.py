"""Whether a published number and a row of the run measure the same thing, and why they may differ all the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tta_bench.data.corrupt.corruptions import BENCHMARK
from tta_bench.report.evidence import CLEAN
from tta_bench.report.published import Published
from tta_bench.report.table import CORRUPTIONS, JOINED, Cell, ErrorTable, MethodErrors


@dataclass(frozen=True)
class Counterpart:
    """What a suite has under ``protocol:`` for a published protocol.

    Attributes:
        kind: the registered name.
        parameters: values other than the defaults, as in a :class:`tta_bench.setting.Setting`.
        batch_size: None where the publication's differs between data sets or is not known.
    """

    kind: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int | None = None


# Names of protocols in the file of published numbers. Other names have no counterpart.
PROTOCOLS = {
    "reset": Counterpart("reset"),
    "reset_per_corruption": Counterpart("reset"),
    "reset_per_corruption_bs64": Counterpart("reset", batch_size=64),
    "stream_bs64": Counterpart("reset", batch_size=64),  # of a single shift
    "in_distribution": Counterpart("reset"),  # of clean images alone
    "episodic_offline": Counterpart("reset"),
    "episodic_online": Counterpart("reset", {"adapt": {"eta": 1.0, "cost_ratio": "measure"}}),
    "continual": Counterpart("continual", {"variant": "md"}),
    "lifelong_no_reset": Counterpart("continual"),
    "correlated_sorted": Counterpart("continual", {"variant": "md", "delta": 0.0}),
    "mixed_domains": Counterpart("mixed", {"variant": "md"}),
    "mixed_correlated_dir0.01": Counterpart("mixed", {"variant": "md", "delta": 0.01}),
    "mixed_shifts": Counterpart("mixed"),
    "label_shift": Counterpart("label_shift"),
    "label_shift_ir500000": Counterpart("label_shift", {"variant": "sar"}, batch_size=64),
}
# Weights as the file names them: tags of the same weights.
_WEIGHTS = {
    "torchvision ResNet50 IMAGENET1K_V1": ("resnet50.tv_in1k", "torchvision/resnet50.IMAGENET1K_V1"),
    "resnet50_gn": ("resnet50_gn.a1h_in1k",),  # the only ones that timm has had under this name
}
# Source models as papers name them: tags of the same architecture, up to a dot.
_ARCHITECTURES = {
    "R50-BN": ("resnet50", "torchvision/resnet50"),
    "R50-GN": ("resnet50_gn",),
    "ViT-B": ("vit_base_patch16_224",),
    "tv-ViT-B16": ("torchvision/vit_b_16", "vit_base_patch16_224"),
    "Swin-B": ("swin_base_patch4_window7_224", "torchvision/swin_b"),
    "WRN-28-10": ("WRN-28-10",),
    "WRN-40-2-AugMix": ("WRN-40-2",),
    "RN26-GN": ("ResNet-26-GN",),
}
_PREPROCESSING = {
    "0.5/0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "ImageNet mean/std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True)
class Chosen:
    """Hyperparameters of a row that its suite sets.

    Attributes:
        names: of those set.
        papers: publications whose hyperparameters they are, as the suite says.
    """

    names: Sequence[str] = ()
    papers: Sequence[str] = ()

    @classmethod
    def of(cls, entry: Mapping[str, Any], model: str) -> Chosen:
        """Those of an entry of a suite's ``methods`` for a source model."""
        own = {**entry.get("config", {}), **entry.get("per_model", {}).get(model, {}), **entry.get("grid", {})}
        return cls(list(own), entry.get("papers", []))


@dataclass(frozen=True)
class Ours:
    """A row of a table, with its method and source model: measured, or of a suite that was not run.

    Attributes:
        method: registered name.
        about: the source model, as in ``plan.json``.
        chosen: hyperparameters that the suite sets.
        images: number of images of each column of the table.
    """

    table: ErrorTable
    row: MethodErrors
    method: str
    about: Mapping[str, Any]
    chosen: Chosen
    images: Mapping[str, int]


# Published data sets that are shifts of a data set here: its name and the columns that count as theirs.
_SHIFTS = {
    "ImageNet-R": ("ImageNet", ("imagenet_r",)),
    "ImageNet-A": ("ImageNet", ("imagenet_a",)),
    "ImageNet-Sketch": ("ImageNet", ("imagenet_sketch",)),
    "ImageNet-V2": (
        "ImageNet",
        ("imagenet_v2_matched_frequency", "imagenet_v2_threshold_0.7", "imagenet_v2_top_images"),
    ),
    "ImageNet-val-clean": ("ImageNet", ("clean",)),
}
_WITH_CORRUPTIONS = {"ImageNet-C": "ImageNet"}  # published data sets whose corruptions another one has, too


def _dataset(number: Published, ours: Ours) -> list[str] | None:
    name = ours.table.setting.dataset
    if number.dataset in _SHIFTS:
        if name != _SHIFTS[number.dataset][0] or (column := column_of(number, ours)) is None:
            return None
        return [*_variant(number, column), *_mask(ours, column), *_images(number, ours)]
    if name == f"{number.dataset} (generated)":
        return ["generated corruptions", *_images(number, ours)]
    if name == _WITH_CORRUPTIONS.get(number.dataset) and ours.table.setting.family not in (CORRUPTIONS, JOINED):
        return None
    return _images(number, ours) if name in (number.dataset, _WITH_CORRUPTIONS.get(number.dataset)) else None


def column_of(number: Published, ours: Ours) -> str | None:
    """The column of a number that is of no corruption; of several, the first."""
    names = _SHIFTS[number.dataset][1] if number.dataset in _SHIFTS else (number.corruption,)
    return next((name for name in names if name in ours.row.cells), None)


def _variant(number: Published, column: str) -> list[str]:
    several = len(_SHIFTS[number.dataset][1]) > 1
    return [f"here {column.replace('_', ' ')}, published variant not stated"] if several else []


def _mask(ours: Ours, column: str) -> list[str]:
    """Published numbers of variants with some of the classes are over these."""
    unmasked = ours.table.setting.base.mask == "none" and column in ("imagenet_r", "imagenet_a")
    return ["graded among all classes of the model, published among the variant's"] if unmasked else []


def _images(number: Published, ours: Ours) -> list[str]:
    mixed = ["runs that differ"] if ours.table.mixed else []
    column = column_of(number, ours)
    images = max(ours.images.values()) if column is None or column not in ours.images else ours.images[column]
    if ours.table.partial:
        return [f"a subset of {images:,} images", *mixed]
    other = number.images is not None and number.images != images
    return [f"{images:,} images, published {number.images:,}", *mixed] if other else mixed


def _severity(number: Published, ours: Ours) -> list[str] | None:
    """Clean images are in the table of every severity, and counted once (:func:`tta_bench.report.reference.compare`)."""
    if column_of(number, ours) == CLEAN and number.dataset in _SHIFTS:
        return []
    published = number.severity or 0 if number.dataset in _SHIFTS else number.severity
    return [] if published == ours.table.setting.severity else None


def _counterpart(number: Published, ours: Ours) -> list[str] | None:
    return [] if number.protocol in PROTOCOLS else None


def _protocol(number: Published, ours: Ours) -> list[str] | None:
    setting, published = ours.table.setting, PROTOCOLS[number.protocol]
    parameters = {name: json.loads(value) for name, value in setting.base.parameters}
    if (published.kind, _rule(published.parameters)) != (setting.protocol, _rule(parameters)):
        return None
    reasons = [f"adapted on the first {setting.adapt_images} images"] if setting.adapt_images else []
    if published.batch_size not in (None, setting.batch_size):
        reasons.append(f"batch size {setting.batch_size}, published {published.batch_size}")
    variant, followed = parameters.get("variant"), published.parameters.get("variant")
    if variant != followed:
        reasons.append(f"order of images: {variant or 'own'}, published {followed or 'not stated'}")
    ratio = (parameters.get("adapt") or {}).get("cost_ratio", "measure")
    return reasons + ([f"cost ratio {ratio}, published measured"] if ratio != "measure" else [])


def _rule(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters without those that may differ between a number and its counterpart.

    These are the variant (another random order by the same rule), the order of dominating classes (random, too), and the
    cost ratio (machines differ).
    """
    rule = {name: value for name, value in parameters.items() if name not in ("variant", "class_order")}
    if "adapt" in rule:
        rule["adapt"] = {name: value for name, value in rule["adapt"].items() if name != "cost_ratio"}
    return rule


def _model(number: Published, ours: Ours) -> list[str] | None:
    tag = str(ours.about.get("tag", ""))
    weights = _WEIGHTS.get(number.weights, (number.weights,) if number.weights else ())
    changed = ours.about.get("options") or ours.about.get("stem")  # another network than its tag says
    if tag in weights and not changed:
        return _preprocessing(number, ours)
    named = ours.row.model == number.model
    if named and not weights:
        return _preprocessing(number, ours)
    architectures = [each.partition(".")[0] for each in weights] or _ARCHITECTURES.get(number.model, ())
    if not named and (changed or tag.partition(".")[0] not in architectures):
        return None
    other = f"other weights, published {number.weights}" if weights else "published weights not stated"
    return [other, *_preprocessing(number, ours)]


def _preprocessing(number: Published, ours: Ours) -> list[str]:
    known = _PREPROCESSING.get(number.preprocessing)
    if known is None or "mean" not in ours.about or "std" not in ours.about:
        return []
    same = all(
        abs(a - b) < 1e-3
        for values, expected in zip((ours.about["mean"], ours.about["std"]), known, strict=True)
        for a, b in zip(values, expected, strict=True)
    )
    return [] if same else [f"other preprocessing, published {number.preprocessing}"]


def _method(number: Published, ours: Ours) -> list[str] | None:
    if not number.method_id or number.method_id != ours.method:
        return None
    chosen = [] if number.paper in ours.chosen.papers else ours.chosen.names
    return [f"set in the suite: {', '.join(chosen)}"] if chosen else []


def _corruption(number: Published, ours: Ours) -> list[str] | None:
    return None if cell_of(number, ours) is None else []


def cell_of(number: Published, ours: Ours) -> Cell | None:
    """The run's cell; a published mean is over the 15 corruptions of ImageNet-C, and has none where the run lacks one."""
    if number.corruption != "mean":
        return ours.row.cells.get(column_of(number, ours) or "")
    cells = ours.row.cells
    if not set(BENCHMARK) <= set(cells):
        return None
    if set(cells) <= {"clean", *BENCHMARK}:
        return ours.row.mean
    means = [mean for name in BENCHMARK if (mean := cells[name].mean) is not None]
    state = next((cells[name].state for name in BENCHMARK if cells[name].state != "ok"), "ok")
    seeds = min(cells[name].seeds for name in BENCHMARK)
    return Cell(sum(means) / len(means) if means else None, None, state, seeds=seeds)


_Condition = Callable[[Published, Ours], "list[str] | None"]

# Conditions, in order: description of a number that violates one, the number's attribute to name, the condition.
CONDITIONS: list[tuple[str, str, _Condition]] = [
    ("of another data set", "dataset", _dataset),
    ("of another severity", "severity", _severity),
    ("of a protocol without a counterpart here", "protocol", _counterpart),
    ("of another protocol", "protocol", _protocol),
    ("of another source model", "model", _model),
    ("of a method that was not run", "method", _method),
    ("of a corruption, or a mean over corruptions, that the run has not", "corruption", _corruption),
]


def differences(number: Published, ours: Ours) -> list[str] | int:
    """Why a number and a row of the same setting may differ all the same, empty where nothing is known to.

    Where they are not of the same setting: the position of the first of ``CONDITIONS`` that does not hold.
    """
    reasons: list[str] = []
    for position, (_, _, condition) in enumerate(CONDITIONS):
        found = condition(number, ours)
        if found is None:
            return position
        reasons += found
    return reasons


def nearest(number: Published, positions: Sequence[int]) -> tuple[str, str]:
    """(why the number has no counterpart, its attribute to name), by the row that is nearest.

    Args:
        number: without a counterpart.
        positions: for each row, of the first of ``CONDITIONS`` that does not hold.
    """
    if number.error is None:
        return "that are no error", ""
    if not number.comparable:
        return "marked as not comparable", ""
    if not positions:
        return "of settings that were not run", ""
    description, attribute, _ = CONDITIONS[max(positions)]
    return description, str(getattr(number, attribute) if getattr(number, attribute) is not None else "none")
