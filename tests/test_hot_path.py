"""No step of a built-in method waits for the device, but where a published rule needs a number on the host.

The number of waits in a step is counted on the CPU, on a pretended device (``waits.py``), and on a GPU where there is one.
"""

from __future__ import annotations

import math
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from networks import batches, ready, small_model
from torch import Tensor
from waits import Waits

from tta_bench import optimizers
from tta_bench.adapter import Adapter, context_for
from tta_bench.methods.eta import Eta
from tta_bench.methods.functional import mean_of
from tta_bench.methods.sar import Sar
from tta_bench.registry import Registry
from tta_bench.run.loading import to_tensor
from tta_bench.run.meters import PassCounter, StepCounter

WAITS = {  # in one step, and why
    "source": (0, ""),
    "norm": (0, ""),
    "tent": (0, ""),
    "eta": (1, "a batch of which nothing is selected takes no optimizer step"),
    "eata": (1, "as `eta`"),
    "sar": (1, "the recovery: the moving mean of the loss decides whether the model is reset"),
    "mgg": (0, ""),
    "deyo": (2, "the second pass is of the confident images alone; if none of them is selected there is no step"),
    "rdumb": (1, "as `eta`"),
    "cotta": (1, "the source model's mean confidence decides whether the teacher is averaged"),
    "rotta": (1, "the memory is balanced over the predicted classes"),
    "roid": (1, "only the kept images are augmented and pass the network again"),
    "cmf": (1, "as `roid`"),
    "note": (1, "the memory is balanced over the predicted classes"),
    "shot": (0, ""),
    "memo": (1, "Pillow makes the views of an image on the CPU"),
    "t3a": (1, "the number of supports that stay"),
    "lame": (1, "the updates go on until the energy stands still: one wait for every 10 of them"),
    "foa": (1, "CMA-ES runs on the CPU and is told the fitness of every candidate"),
}
SHIPPED = "package:tta_bench.methods/weights/digits_c/mgg-vit_ln.safetensors"
SELECTING = {"batch": {"entropy_margin": 1.8, "lr": 0.01}, "layer": {"entropy_margin": 0.7, "lr": 0.01}}  # about half
CASES: list[tuple[str, str, dict[str, Any], int]] = [  # method, norm layers, hyperparameters, waits of each of three steps
    *((name, kind, {}, WAITS[name][0]) for name in ("source", "tent", "shot", "t3a") for kind in ("batch", "layer")),
    *((name, kind, SELECTING[kind] | {"d_margin": 0.99}, 1) for name in ("eta", "eata") for kind in ("batch", "layer")),
    *(("norm", "batch", {"statistics": statistics}, 0) for statistics in ("batch", "blend", "running")),
    ("tent", "group", {"optimizer": "adam", "steps": 2}, 0),
    ("eta", "layer", {"entropy_margin": -1.0}, 1),
    ("rdumb", "layer", SELECTING["layer"] | {"d_margin": 0.99, "reset_every": 2}, 1),
    *(("sar", kind, SELECTING[kind] | {"frozen": "none"}, 1) for kind in ("batch", "layer")),
    ("sar", "layer", SELECTING["layer"] | {"recovery_threshold": 100.0}, 1),
    ("sar", "layer", {"entropy_margin": -1.0}, 1),
    ("sar", "layer", SELECTING["layer"] | {"variant": "paper"}, 2),  # which makes no second pass where nothing is selected
    ("mgg", "layer", {"checkpoint": SHIPPED, "source_images": 16}, 0),
    ("mgg", "batch", {"objective": "entropy", "checkpoint": SHIPPED}, 0),
    *(("deyo", "layer", {"deyo_margin": 0.9, "plpd_threshold": 0.0, "aug_type": how, "occlusion_size": 8,
                         "row_start": 8, "column_start": 8}, 2) for how in ("patch", "pixel", "occ")),
    ("deyo", "layer", {"deyo_margin": -1.0}, 1),
    *(("cotta", "batch", {"n_augmentations": 2, "ap": ap}, 1) for ap in (0.0, 2.0)),
    ("cotta", "layer", {"n_augmentations": 2, "always_augment": True, "loss": "cross_entropy"}, 1),
    *(("rotta", kind, {"memory_size": 6, "update_frequency": 8}, 1) for kind in ("batch", "layer")),
    *((name, kind, {}, 1) for name in ("roid", "cmf") for kind in ("batch", "layer")),
    ("note", "batch", {"memory_size": 6, "update_interval": 8}, 1),
    ("shot", "batch", {"variant": "lame"}, 0),
    ("memo", "layer", {"num_views": 2, "steps": 2}, 1),
    ("memo", "batch", {"num_views": 2}, 1),
    ("t3a", "layer", {"filter_k": -1}, 1),
    *(("lame", "layer", {"affinity": affinity}, 1) for affinity in ("rbf", "linear", "knn")),
    ("foa", "layer", {"num_prompts": 2, "popsize": 5, "source_images": 16}, 1),
]  # fmt: skip


def adapter_on(device: str, name: str, kind: str, config: dict[str, Any]) -> Adapter:
    """A method before ``setup``, with a model on ``device``."""
    cls: type[Adapter] = Registry().load(name)
    model, place = small_model(kind), torch.device(device)
    return cls(model.to(place), cls.Config(**config), context_for(model, 8, 32, place, 0))


def set_up(adapter: Adapter) -> None:
    adapter.setup()
    adapter.remember()
    if adapter.source_request() is not None:
        adapter.prepared = adapter.prepare(iter(x.to(adapter.context.device) for x in batches(2, seed=9)))


def each_case(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize(("name", "kind", "config", "expected"), CASES)(test)


@each_case
def test_a_step_waits_as_often_as_its_published_rules_need(
    name: str, kind: str, config: dict[str, Any], expected: int
) -> None:
    adapter, images = adapter_on("cpu", name, kind, config), batches(3, size=2 if name == "memo" else 8)
    log = Waits([*adapter.model.parameters(), *adapter.model.buffers(), *images])
    with log:
        set_up(adapter)
    for x in images:
        log.waits.clear()
        with log:
            adapter.step(x)
        assert len(log.waits) == expected, log.waits
    with log:
        statistics = optimizers.stats(adapter)
    assert len(log.waits) == expected, f"stats() waits: {log.waits[expected:]}"
    assert statistics is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gpu_converts_pixels_in_one_kernel_as_in_three(dtype: torch.dtype) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    images = to_tensor(pixels, torch.device("cuda"), dtype)
    planes = torch.from_numpy(pixels).cuda().permute(0, 3, 1, 2).contiguous()
    assert images.is_contiguous()
    assert torch.equal(images, planes.to(dtype).div_(255))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_case
def test_a_gpu_says_the_same(name: str, kind: str, config: dict[str, Any], expected: int) -> None:
    """A wait that lets the device go on (``transfer.fetch``) is none for CUDA, so that there may be fewer."""
    adapter = adapter_on("cuda", name, kind, config)
    set_up(adapter)
    images = [x.cuda() for x in batches(3)]
    adapter.step(images[0])  # fills the allocators' caches
    torch.cuda.set_sync_debug_mode("warn")
    try:
        for x in images[1:]:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                adapter.step(x)
            found = [str(w.message) for w in caught if "synchronizing CUDA operation" in str(w.message)]
            assert len(found) <= expected, [f"{w.filename}:{w.lineno}" for w in caught]
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_every_built_in_method_is_in_the_table_and_in_the_documentation() -> None:
    built_in = {entry.name for entry in Registry().entries() if entry.target.startswith("tta_bench.")}
    assert built_in == set(WAITS) == {name for name, *_ in CASES}
    document = (pathlib.Path(__file__).parents[1] / "docs" / "methods.md").read_text()
    for name, (waits, rule) in WAITS.items():
        row = f"| `{name}` | {waits} | {rule} |"
        assert waits == 0 or row in document, row


# -- masks in place of selections --------------------------------------------------------------------------------------


def test_values_that_are_not_selected_have_no_part_in_a_mean_and_no_gradient() -> None:
    values = torch.tensor([1.0, math.inf, 3.0, math.nan], requires_grad=True)
    mean = mean_of(values, torch.tensor([True, False, True, False]))
    mean.backward()
    assert (mean.item(), values.grad.tolist()) == (2.0, [0.5, 0.0, 0.5, 0.0])  # type: ignore[union-attr]
    values.grad = None
    nothing = mean_of(values, torch.zeros(4, dtype=torch.bool))
    nothing.backward()
    assert nothing.isnan()
    assert values.grad.tolist() == [0.0] * 4  # type: ignore[attr-defined]


@pytest.mark.parametrize(("margin", "some"), [(0.7, True), (-1.0, False)])
@pytest.mark.parametrize(("cls", "passes"), [(Eta, 1), (Sar, 2)])
def test_an_image_that_is_not_selected_is_not_counted_as_backwarded(
    cls: type[Adapter], passes: int, margin: float, some: bool
) -> None:
    model = small_model("layer")
    counter, steps = PassCounter(model), StepCounter()
    still = {"rho": 0.0} if cls is Sar else {}  # its second pass selects the same images
    adapter = ready(cls, model, entropy_margin=margin, lr=1e-6, **still)
    with steps.watching():
        adapter.step(batches(1)[0])
    kept = int(adapter.stats()["kept"])
    assert 0 < kept < 8 if some else kept == 0
    assert counter.read() == (8 * passes, passes * kept)
    assert steps.read() == (1 if cls is Sar else int(some)), "the published code of SAR steps on nothing, too"


# -- what is counted ---------------------------------------------------------------------------------------------------

DEVICE, HOST = torch.arange(6.0), torch.arange(6.0)
PLACE = torch.device("cpu")


def branch(x: Tensor) -> None:
    if x.sum() > 0:
        pass


def in_backward(x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    leaf.register_hook(lambda gradient: gradient * gradient.sum().item())
    leaf.sum().backward()


@pytest.mark.parametrize(
    ("action", "waits"),
    [
        (lambda x: x.sum().item(), ["_local_scalar_dense"]),
        (lambda x: float(x[2]), ["_local_scalar_dense"]),
        (branch, ["_local_scalar_dense"]),
        (in_backward, ["_local_scalar_dense"]),
        (lambda x: x.tolist(), ["tolist"]),
        (lambda x: x.cpu(), ["cpu"]),
        (lambda x: (2 * x).numpy(), ["numpy"]),
        (lambda x: x.nonzero(), ["nonzero"]),
        (lambda x: torch.where(x > 2), ["nonzero"]),
        (lambda x: x[x > 2], ["index"]),
        (lambda x: x[[0, 2]], ["index"]),
        (lambda x: x.clone().index_put_((x > 2,), x.sum()), ["index_put_"]),
        (lambda x: x.masked_select(x > 2), ["masked_select"]),
        (lambda x: x.unique(), ["_unique2"]),
        (lambda x: torch.equal(x, x + 1), ["equal"]),
        (lambda x: torch.tensor([1.0], device=PLACE) + x, ["tensor"]),
        (lambda x: x + x.new_tensor([1.0]), ["new_tensor"]),
        (lambda x: HOST.to(x) + x, ["to"]),
        (lambda x: x.clone().copy_(HOST), ["copy_"]),
        (lambda x: HOST.clone().copy_(x), ["copy_"]),
        (lambda x: x + HOST.to(PLACE, non_blocking=True), []),
        (lambda x: (x.masked_fill(x > 2, 0).sum() / (x > 2).sum()).add(torch.tensor(1.0)), []),
        (lambda x: x[torch.arange(3, device=PLACE)], []),
        (lambda x: [torch.rand(3).tolist(), HOST.sum().item(), HOST[HOST > 2].numpy()], []),
    ],
)
def test_what_would_wait_on_a_gpu_is_seen(action: Callable[[Tensor], Any], waits: list[str]) -> None:
    with Waits([DEVICE]) as log:
        action(DEVICE)
    assert [name.partition(" ")[0] for name in log.waits] == waits


def test_an_operation_between_host_and_device_is_an_error_as_on_a_gpu() -> None:
    with Waits([DEVICE]), pytest.raises(AssertionError, match=r"add.*on the host, of shape \(6,\): an error on a GPU"):
        DEVICE + HOST
