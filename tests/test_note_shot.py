"""NOTE and SHOT-IM equal the published code, number by number, on reference trajectories; their parts, and what they cost."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from networks import RESNET, SPECS, batches, ready, small_model
from torch import Tensor, nn
from trajectories import play

from tta_bench.adapter import context_for
from tta_bench.data.kinds.digits import load_split
from tta_bench.methods.iabn import InstanceAwareBN, use_instance_aware_statistics
from tta_bench.methods.note import Note
from tta_bench.methods.reservoir import Reservoir
from tta_bench.methods.shot import Shot
from tta_bench.models import SourceModel, load_weights, locate_weights
from tta_bench.networks.from_timm import ModelSpec, build_network
from tta_bench.networks.state_files import read_state
from tta_bench.registry import Registry
from tta_bench.run.loading import to_tensor
from tta_bench.run.meters import PassCounter, StepCounter
from tta_bench.testing import check_method

NOTE = ["note.resnet_bn", "note_small.resnet_bn"]
SHOT = ["shot.vit_ln", "shot.resnet_gn", "shot.resnet_bn", "shot_lame.resnet_bn"]
SMALL = {"memory_size": 6, "update_interval": 5, "lr": 0.01, "bn_momentum": 0.2, "iabn_k": 1.0}
DIGITS = "package:tta_bench.data.kinds/weights/digits_resnet_bn.safetensors"
LAME = Shot.presets["imagenet_resnet50_bn"].resolve(16)


def close(value: Any, expected: Any, tolerance: float = 1e-8) -> bool:
    return bool(np.allclose(value, expected, rtol=0, atol=tolerance, equal_nan=True))


def aware_layers(adapter: Any) -> list[InstanceAwareBN]:
    return [module for module in adapter.model.modules() if isinstance(module, InstanceAwareBN)]


def restorable(adapter: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in adapter.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# -- trajectories ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", NOTE)
def test_a_trajectory_of_note_is_reproduced(case: str) -> None:
    counts, first_layers = list[list[int]](), list[Tensor]()

    def record(adapter: Any) -> None:
        counts.append([len(adapter.memory.classes.get(label, [])) for label in range(10)])
        first = aware_layers(adapter)[0]
        first_layers.append(torch.stack([first.running_mean, first.running_var]).clone())

    scores, adapter, stats, arrays, entry = play(case, after_step=record)
    assert close(scores, arrays["scores"])
    assert counts == arrays["memory_counts"].tolist()
    assert close(torch.stack(first_layers), arrays["first_layer"])
    assert [s["stored"] for s in stats] == arrays["memory_counts"].sum(1).tolist()
    interval = entry["hyperparameters"]["update_interval"]
    seen = [16 * batch for batch in (*range(7), *range(5))]  # since the start, or the reset before batch 7
    assert [s["updates"] for s in stats] == [(images + 16) // interval - images // interval for images in seen]
    untouched = torch.Generator().manual_seed(entry["seed"]).get_state()
    assert torch.equal(adapter.context.generator.get_state(), untouched)


@pytest.mark.parametrize("case", SHOT)
def test_a_trajectory_of_shot_is_reproduced(case: str) -> None:
    losses = list[Tensor]()
    scores, _, stats, arrays, _ = play(case, after_step=lambda adapter: losses.append(torch.stack(adapter.losses)))  # type: ignore[attr-defined]
    assert close(scores, arrays["scores"])
    if case == "shot_lame.resnet_bn":
        assert close([[s["marginal_entropy"]] for s in stats], arrays["marginal_entropy"])
    else:
        assert close(torch.stack(losses), arrays["loss"])
        assert close([s["loss"] for s in stats], arrays["loss"].mean(1))


@pytest.mark.parametrize("case", ["note_small.resnet_bn", "shot.vit_ln", "shot_lame.resnet_bn"])
def test_in_single_precision_a_trajectory_stays_near(case: str) -> None:
    scores, _, _, arrays, _ = play(case, torch.float32)
    assert close(scores, arrays["scores"], 1e-4)


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("note.resnet_bn", {"lr": 0.0010001}),
        ("note.resnet_bn", {"memory_size": 31}),
        ("note.resnet_bn", {"update_interval": 25}),
        ("note.resnet_bn", {"bn_momentum": 0.05001}),
        ("note.resnet_bn", {"iabn_k": 1.5001}),
        ("note.resnet_bn", {"temperature": 1.01}),
        ("note.resnet_bn", {"epochs": 2}),
        ("note_small.resnet_bn", {"skip_threshold": 16}),
        ("shot.vit_ln", {"lr": 0.00050001}),
        ("shot.resnet_gn", {"optimizer_options": {"weight_decay": 1e-4}}),
        ("shot.resnet_bn", {"steps": 2}),
        ("shot_lame.resnet_bn", {"lr": 0.30001}),
        ("shot_lame.resnet_bn", {"optimizer_options": {"momentum": 0.0, "weight_decay": 0.00011}}),
        ("shot_lame.resnet_bn", {"optimizer_options": {"momentum": 0.001, "weight_decay": 0.0001}}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value.partition(".")[0],
)
def test_the_comparison_notices_a_small_change(case: str, change: dict[str, Any]) -> None:
    scores, _, _, arrays, _ = play(case, **change)
    assert not close(scores, arrays["scores"])


# -- rules -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config", "networks"),
    [("note", {}, 1), ("note", SMALL, 1), ("shot", {"steps": 2}, 3), ("shot", {**LAME, "lr": 0.1, "steps": 2}, 1)],
    ids=["note", "note-small", "shot", "shot-lame"],
)
@pytest.mark.faults
def test_both_keep_every_rule(name: str, config: dict[str, Any], networks: int) -> None:
    report = check_method(Registry().load(name), config)
    assert report.findings == []
    assert len(report.networks) - len(report.skipped) == networks


# -- instance-aware batch normalisation --------------------------------------------------------------------------------


def batch_norm(seed: int = 0) -> nn.BatchNorm2d:
    """In double precision, with random values everywhere."""
    layer = nn.BatchNorm2d(4, eps=1e-3).double()
    generator = torch.Generator().manual_seed(seed)
    for tensor in (layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var):
        tensor.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
    return layer


def maps(images: int, height: int, width: int) -> Tensor:
    """Images that differ in mean and spread: (images, 4, height, width), float64."""
    generator = torch.Generator().manual_seed(1)
    scale = torch.linspace(0.2, 3, images, dtype=torch.float64).view(-1, 1, 1, 1)
    return scale * (torch.randn(images, 4, height, width, generator=generator, dtype=torch.float64) + scale - 1)


def soft_shrink(a: float, threshold: float) -> float:
    return max(a - threshold, 0) - max(-(a + threshold), 0)


def by_hand(layer: nn.BatchNorm2d, x: Tensor, mean: Tensor, variance: Tensor, k: float) -> tuple[Tensor, int]:
    """IABN image by image and channel by channel; and how many statistics stayed at the reference."""
    out, shrunk, n = torch.empty_like(x), 0, x[0, 0].numel()
    for image in range(len(x)):
        for c in range(4):
            values, reference, spread = x[image, c], mean[c].item(), variance[c].item()
            own_spread = (values - values.mean()).square().sum().item() / (n - 1)
            by_mean = soft_shrink(values.mean().item() - reference, k * ((spread + layer.eps) / n) ** 0.5)
            by_spread = soft_shrink(own_spread - spread, k * (spread + layer.eps) * (2 / (n - 1)) ** 0.5)
            shrunk += (by_mean == 0) + (by_spread == 0)
            normalised = (values - reference - by_mean) / (max(spread + by_spread, 0) + layer.eps) ** 0.5
            out[image, c] = normalised * layer.weight[c] + layer.bias[c]
    return out.detach(), shrunk


def test_iabn_in_evaluation_mode_moves_the_running_statistics_towards_the_images_own() -> None:
    source, x = batch_norm(), maps(5, 3, 2)
    layer = InstanceAwareBN(copy.deepcopy(source), k=0.7, skip_threshold=1, momentum=0.3).eval()
    expected, shrunk = by_hand(source, x, source.running_mean, source.running_var, 0.7)  # type: ignore[arg-type]
    assert 0 < shrunk < 2 * 5 * 4, "both branches of the soft shrinkage"
    assert close(layer(x).detach(), expected)
    assert close(layer(x[3:4]).detach(), expected[3:4]), "an image's output does not depend on the others"
    assert torch.equal(layer.running_mean, source.running_mean)  # type: ignore[arg-type]
    assert torch.equal(layer.running_var, source.running_var)  # type: ignore[arg-type]


def test_iabn_in_training_mode_refers_to_the_batch_and_keeps_its_statistics() -> None:
    source, x = batch_norm(), maps(5, 3, 2)
    layer = InstanceAwareBN(copy.deepcopy(source), k=0.7, skip_threshold=1, momentum=0.3).train()
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=True)
    expected, shrunk = by_hand(source, x, mean, variance, 0.7)
    assert 0 < shrunk < 2 * 5 * 4
    assert close(layer(x).detach(), expected)
    assert close(layer.running_mean, 0.7 * source.running_mean + 0.3 * mean)  # type: ignore[operator]
    assert close(layer.running_var, 0.7 * source.running_var + 0.3 * variance)  # type: ignore[operator]


@pytest.mark.parametrize("training", [False, True])
def test_maps_in_bfloat16_are_normalised_in_float32_and_stay_in_bfloat16(training: bool) -> None:
    layers = [InstanceAwareBN(batch_norm().float(), 0.7, 1, 0.3).train(training) for _ in range(2)]
    x = maps(5, 3, 2).bfloat16()
    found, expected = layers[0](x), layers[1](x.float())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())
    assert torch.equal(layers[0].running_var, layers[1].running_var)


def test_gradients_flow_through_all_statistics_of_a_batch() -> None:
    layer = InstanceAwareBN(batch_norm(), k=0.7, skip_threshold=1, momentum=0.3).train()
    inputs = (maps(3, 2, 2).requires_grad_(), layer.weight.requires_grad_(), layer.bias.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), inputs)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("threshold", "side"), [(1, 1), (4, 2)])
def test_a_map_up_to_the_threshold_has_the_reference_statistics(threshold: int, side: int, training: bool) -> None:
    source, x = batch_norm(), maps(5, side, side)
    layer = InstanceAwareBN(copy.deepcopy(source), k=0.0, skip_threshold=threshold, momentum=0.3).train(training)
    mean, variance = source.running_mean, source.running_var
    if training:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=True)
    expected = torch.nn.functional.batch_norm(x, mean, variance, source.weight, source.bias, eps=source.eps)
    assert close(layer(x).detach(), expected.detach())
    larger = maps(5, side, side + 1)
    plain = torch.nn.functional.batch_norm(larger, mean, variance, source.weight, source.bias, eps=source.eps)
    assert not close(layer(larger).detach(), plain.detach(), 1e-2)


def test_replaced_layers_keep_weights_statistics_and_fused_activations() -> None:
    fused = ModelSpec(name="fused", architecture="efficientnet_lite0", options={"num_classes": 10})
    net = build_network(fused).eval().double()
    x = batches(1, size=2)[0].double()
    expected, names = net(x), {name.rpartition(".")[2] for name in net.state_dict()}
    own = [m.weight for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    layers = use_instance_aware_statistics(net, k=1e6, skip_threshold=1, momentum=0.01)  # k: no image's own statistics
    assert [layer.weight for layer in layers] == own
    assert all(SourceModel.norm_kind(layer) == "batch" for layer in layers)
    assert not any(type(m) is nn.BatchNorm2d for m in net.modules())
    assert {name.rpartition(".")[2] for name in net.state_dict()} == names
    assert close(net(x).detach(), expected.detach())
    for layer in layers:
        layer.k = 0.0
    assert not close(net(x).detach(), expected.detach(), 1e-3)


@pytest.mark.faults
def test_on_an_ordinary_network_iabn_alone_costs_the_documented_accuracy() -> None:
    options = {**RESNET, "channels": [16, 32, 64, 128]}
    net = build_network(ModelSpec(name="digits", architecture="resnet18", options=options, stem="cifar"))
    load_weights(net, read_state(locate_weights(DIGITS)), DIGITS)
    model, split = SourceModel(net, (0.3,) * 3, (0.36,) * 3).eval(), load_split()
    x = to_tensor(split.test_images.copy(), torch.device("cpu"), torch.float32)
    adapter = ready(Note, copy.deepcopy(model))
    accuracies = []
    for network in (model, adapter.model):
        with torch.no_grad():
            predicted = torch.cat([network(part).argmax(1) for part in x.split(250)])
        accuracies.append(100 * np.mean(predicted.numpy() == split.test_labels))
    assert close(accuracies, [99.0, 97.6], 0.15)


# -- the memory --------------------------------------------------------------------------------------------------------


def image(number: int) -> Tensor:
    return torch.full((1, 1, 1), float(number))


def content(memory: Reservoir) -> dict[int, list[int]]:
    """The numbers of the stored images, by class."""
    return {label: [int(stored) for stored in memory.classes[label]] for label in sorted(memory.classes)}


def filled(size: int, labels: list[int]) -> Reservoir:
    """A memory that was offered image 0, 1, … with these labels, without a draw."""
    memory, generator = Reservoir(size), torch.Generator()
    before = generator.get_state()
    for number, label in enumerate(labels):
        memory.offer(image(number), label, generator)
    assert torch.equal(generator.get_state(), before), "nothing is drawn while there is room"
    return memory


def seed_whose_draws(*wanted: int) -> int:
    """The first seed with which one draw of 0 or 1 after another gives the wanted numbers."""
    for seed in range(1000):
        generator = torch.Generator().manual_seed(seed)
        if all(int(torch.randint(0, 2, (1,), generator=generator)) == number for number in wanted):
            return seed
    raise AssertionError("no such seed")


@pytest.mark.parametrize(
    ("draws", "expected"),
    [
        ((0, 0), {1: [3], 2: [0, 1], 5: [4]}),
        ((0, 1), {1: [2], 2: [0, 1], 5: [4]}),
        ((1, 0), {1: [2, 3], 2: [1], 5: [4]}),
        ((1, 1), {1: [2, 3], 2: [0], 5: [4]}),
    ],
)
def test_a_rarer_class_takes_a_random_place_of_a_random_fullest_class(
    draws: tuple[int, int], expected: dict[int, list[int]]
) -> None:
    memory, seed = filled(4, [2, 2, 1, 1]), seed_whose_draws(*draws)
    generator, drawn = (torch.Generator().manual_seed(seed) for _ in range(2))
    memory.offer(image(4), 5, generator)
    assert content(memory) == expected
    assert memory.predicted == {1: 2, 2: 2, 5: 1}
    for _ in draws:
        torch.randint(0, 2, (1,), generator=drawn)
    assert torch.equal(generator.get_state(), drawn.get_state()), "two draws, no more"


def test_one_fullest_class_is_drawn_all_the_same() -> None:
    memory = filled(3, [2, 2, 1])
    generator, drawn = (torch.Generator().manual_seed(9) for _ in range(2))
    memory.offer(image(3), 1, generator)
    torch.randint(0, 1, (1,), generator=drawn)
    left = [0, 1][1 - int(torch.randint(0, 2, (1,), generator=drawn))]
    assert content(memory) == {1: [2, 3], 2: [left]}
    assert torch.equal(generator.get_state(), drawn.get_state())


def test_of_a_fullest_class_an_image_is_accepted_at_the_rate_of_those_stored_to_those_predicted() -> None:
    accepted = list[bool]()
    for seed in range(60):
        memory = filled(3, [7, 7, 3])
        memory.predicted[7] = 4  # the present image is the fifth: 2/5
        generator, drawn = (torch.Generator().manual_seed(seed) for _ in range(2))
        memory.offer(image(3), 7, generator)
        u = torch.rand(1, dtype=torch.float64, generator=drawn).item()
        accepted.append(u <= 2 / 5)
        expected = [0, 1]
        if accepted[-1]:
            del expected[int(torch.randint(0, 2, (1,), generator=drawn))]
            expected.append(3)
        assert content(memory) == {3: [2], 7: expected}
        assert memory.predicted == {3: 1, 7: 5}
        assert torch.equal(generator.get_state(), drawn.get_state())
    assert 10 < sum(accepted) < 50


def test_a_draw_that_equals_the_rate_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = filled(2, [7, 7])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([2 / 3], dtype=torch.float64))
    memory.offer(image(2), 7, torch.Generator())
    assert 2 in content(memory)[7]


@pytest.mark.parametrize(("size", "classes"), [(64, 50), (12, 50), (16, 1000)])
def test_the_memory_is_bounded_and_balanced_whatever_the_number_of_classes(size: int, classes: int) -> None:
    memory, generator = Reservoir(size), torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(classes).repeat_interleave(2000 // classes), torch.randint(0, classes, (2000,))])
    for number, label in enumerate(labels.tolist(), start=1):
        memory.offer(image(number), label, generator)
        assert len(memory) == len([*memory]) == min(number, size)
        assert len(memory.classes) <= size, "no list is kept for a class that has none"
    occupancy = [len(memory.classes.get(label, [])) for label in range(classes)]
    assert max(occupancy) - min(occupancy) <= 1
    assert sum(memory.predicted.values()) == len(labels)


def test_the_memory_gives_copies_class_by_class_oldest_first() -> None:
    memory, x = Reservoir(9), torch.arange(6.0).view(6, 1, 1, 1)
    for each, label in zip(x, [4, 0, 4, 2, 0, 4], strict=True):
        memory.offer(each, label, torch.Generator())
    x.fill_(9)
    assert [int(stored) for stored in memory] == [1, 4, 3, 0, 2, 5]


# -- NOTE --------------------------------------------------------------------------------------------------------------


def test_consecutive_images_in_one_batch_have_the_numbers_of_images_alone() -> None:
    together, alone = (ready(Note, small_model("batch").double(), **SMALL) for _ in range(2))
    sizes = list[int]()
    together.model.net.register_forward_pre_hook(lambda _m, inputs: sizes.append(len(inputs[0])))
    for x in batches(3):
        scores = together.step(x.double())
        assert close(scores, torch.cat([alone.step(one) for one in x.double().split(1)]))
    trained = [5, 6, 6, 6]
    assert sizes == [5, trained[0], 3, 2, trained[1], 5, trained[2], 1, 4, trained[3], 4]
    memories = [torch.stack([*adapter.memory]) for adapter in (together, alone)]  # type: ignore[attr-defined]
    assert torch.equal(*memories)


def test_an_update_falls_after_the_last_image_of_an_interval_and_counts_for_the_next() -> None:
    adapter: Any = ready(Note, small_model("batch"), **SMALL)
    unadapted = copy.deepcopy(adapter.model)
    first, second = batches(2)
    scores = adapter.step(first)
    assert torch.allclose(scores[:5], unadapted(first[:5]), atol=1e-5)
    assert not torch.allclose(scores[5:], unadapted(first[5:]), atol=1e-3)
    assert torch.allclose(scores[5:], adapter.predict(first[5:]), atol=1e-5)
    assert adapter.stats()["updates"] == 1
    adapter.step(second)
    assert adapter.stats()["updates"] == 2
    assert adapter.images_seen == 16


def test_the_update_is_on_the_whole_memory_with_the_published_loss() -> None:
    config = {**SMALL, "temperature": 2.0, "epochs": 2, "update_interval": 8}
    adapter: Any = ready(Note, small_model("batch").double(), **config)
    copied = copy.deepcopy(adapter.model).train()
    [x] = batches(1)
    adapter.step(x.double())
    images = torch.stack([*adapter.memory])
    probabilities = (copied(images) / 2).exp()
    probabilities = probabilities / probabilities.sum(1, keepdim=True)
    assert len(images) == 6
    assert len(adapter.losses) == 2
    expected = -(probabilities * torch.log(probabilities + 1e-6)).sum() / (6 * 10)
    assert close(adapter.losses[0], expected.item())
    assert adapter.stats()["loss"] == torch.stack(adapter.losses).mean()
    before = aware_layers(ready(Note, small_model("batch").double(), **config))[0].running_mean
    once, twice = copied.net.bn1.running_mean, aware_layers(adapter)[0].running_mean  # type: ignore[union-attr]
    assert close(twice - once, 0.8 * (once - before)), "the first layer's input is the same in both steps"  # type: ignore[operator]


def test_only_instance_aware_layers_learn() -> None:
    adapter: Any = ready(Note, small_model("batch"), **SMALL)
    start = restorable(adapter)
    for x in batches(2):
        adapter.step(x)
    changed = {name for name, value in restorable(adapter).items() if not torch.equal(value, start[name])}
    names = {name for name, m in adapter.model.named_modules() if isinstance(m, InstanceAwareBN)}
    parts = ("weight", "bias", "running_mean", "running_var")
    assert changed == {f"{name}.{part}" for name in names for part in parts}
    assert not adapter.model.training


def draws(adapter: Any) -> list[Any]:
    """What the memory holds after a stream of 5 batches; differs with the draws alone."""
    for x in batches(5):
        adapter.step(x)
    return [*sorted(adapter.memory.classes), *(float(stored.sum()) for stored in adapter.memory)]


def test_streams_draw_differently_and_a_reset_puts_the_generator_back() -> None:
    quiet = {"memory_size": 6, "update_interval": 1000}
    runs = []
    for seed in (5, 5, 6):
        adapter: Any = ready(Note, small_model("batch"), seed=0, **quiet)
        adapter.reset()
        adapter.context.generator.manual_seed(seed)  # as the runner does for a stream
        runs.append([draws(adapter)])
        before = adapter.context.generator.get_state()
        adapter.reset()
        runs[-1].append(draws(adapter))
        assert torch.equal(adapter.context.generator.get_state(), before), "it is left alone"
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert all(first == again for first, again in runs)


def test_a_reset_restores_weights_statistics_memory_optimizer_and_count() -> None:
    adapter: Any = ready(Note, small_model("batch"), **SMALL)
    start = restorable(adapter)
    runs = []
    for _ in range(2):
        runs.append([adapter.step(x) for x in batches(3)])
        assert adapter.optimizer.state
        adapter.reset()
        assert same(restorable(adapter), start)
        assert (len(adapter.memory), adapter.memory.predicted, adapter.images_seen) == (0, {}, 0)
        assert adapter.optimizer.state == {}
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_note_passes_each_image_once_and_its_memory_at_each_update() -> None:
    pristine = small_model("batch")
    counter, steps = PassCounter(pristine), StepCounter()
    adapter: Any = ready(Note, copy.deepcopy(pristine), **SMALL, epochs=3)
    with steps.watching():
        for x in batches(3):
            adapter.step(x)
    trained = 3 * (5 + 6 + 6 + 6)
    assert counter.read() == (24 + trained, trained)
    assert steps.read() == 4 * 3


def test_equal_images_leave_note_finite() -> None:
    adapter: Any = ready(Note, small_model("batch"), **SMALL)
    for _ in range(2):
        assert adapter.step(torch.full((8, 3, 32, 32), 0.5)).isfinite().all()
    assert all(value.isfinite().all() for value in adapter.model.state_dict().values())


# -- what is skipped ---------------------------------------------------------------------------------------------------


class Flat(nn.Module):
    """A network whose only BatchNorm is one-dimensional."""

    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(3), nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x.mean((2, 3))))  # type: ignore[no-any-return]

    def get_classifier(self) -> nn.Module:
        return self.fc


def source_model(net: nn.Module) -> SourceModel:
    return SourceModel(net.requires_grad_(False), (0.5,) * 3, (0.5,) * 3).eval()


def with_single_values() -> SourceModel:
    """The last maps of a ResNet with ImageNet's stem are 1×1 for images of 32 pixels."""
    return source_model(build_network(ModelSpec(name="single", architecture="resnet18", options=RESNET)))


def reason(cls: Any, model: SourceModel, batch_size: int = 8, **config: Any) -> str | None:
    return cls.skip(model, cls.Config(**config), context_for(model, batch_size, 32, torch.device("cpu"), 0))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("config", "skipped"), [({}, False), ({"memory_size": 1}, True), ({"update_interval": 1}, True)]
)
def test_single_values_and_a_memory_of_one_image_are_skipped(config: dict[str, int], skipped: bool) -> None:
    text = "a memory of one image needs normalised maps larger than 1x1" if skipped else None
    assert reason(Note, with_single_values(), batch_size=1, **config) == text
    assert reason(Note, with_single_values(), batch_size=8, **config) == text
    assert reason(Note, small_model("batch"), batch_size=1, **config) is None
    model = small_model("batch") if skipped else with_single_values()
    adapter = ready(Note, model, batch_size=1, **config)
    for x in batches(3, size=1):
        assert adapter.step(x).isfinite().all()


def test_networks_without_complete_batchnorm_layers_are_skipped() -> None:
    assert "no batch normalisation layer" in str(reason(Note, small_model("layer")))
    assert "BatchNorm2d" in str(reason(Note, source_model(Flat())))
    partial = small_model("batch")
    partial.net.bn1 = nn.BatchNorm2d(8, affine=False).eval()
    assert "each with weight, bias" in str(reason(Note, partial))
    partial.net.bn1 = nn.BatchNorm2d(8, track_running_stats=False).requires_grad_(False).eval()
    assert "running statistics" in str(reason(Note, partial))
    assert (
        reason(Shot, source_model(Flat()), variant="lame") == "the model has no BatchNorm2d layer with weight and bias"
    )
    assert "no batch normalisation layer" in str(reason(Shot, small_model("group"), variant="lame"))
    assert [reason(Shot, model) for model in (source_model(Flat()), small_model("group"), small_model("layer"))] == [
        None
    ] * 3


def test_single_values_at_batch_1_are_skipped_where_shot_uses_batch_statistics() -> None:
    model = with_single_values()
    assert "larger than 1x1" in str(reason(Shot, model, batch_size=1, variant="lame"))
    assert reason(Shot, model, batch_size=2, variant="lame") is None
    assert reason(Shot, model, batch_size=1) is None


# -- SHOT --------------------------------------------------------------------------------------------------------------


def test_needs_and_outputs_depend_on_the_variant() -> None:
    official, lame = (Shot.declared(Shot.Config(variant=v)) for v in ("official", "lame"))
    assert (official.needs.norm_kinds, official.outputs) == ((), "logits")
    assert (lame.needs.norm_kinds, lame.outputs) == (("batch",), "probabilities")
    assert official.needs.backward
    assert lame.needs.backward


def test_the_defaults_and_presets_are_the_published_ones() -> None:
    official: Any = Shot.Config()
    assert (official.variant, official.optimizer, official.lr, official.steps) == ("official", "adam", 5e-5, 1)
    assert official.optimizer_options == {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    lame: Any = Shot.Config(**LAME)
    assert (lame.variant, lame.optimizer, lame.lr, lame.steps) == ("lame", "sgd", 1e-3, 1)
    assert lame.optimizer_options == {"momentum": 0.0, "weight_decay": 1e-4, "nesterov": False}
    note: Any = Note.Config(**Note.presets["cifar10"].resolve(64))
    assert (note.optimizer, note.lr, note.epochs, note.bn_momentum, note.iabn_k) == ("adam", 1e-4, 1, 0.01, 4.0)
    assert (note.memory_size, note.update_interval, note.temperature, note.skip_threshold) == (64, 64, 1.0, 1)


@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
def test_official_learns_everything_but_the_last_layer_and_no_statistics(kind: str) -> None:
    adapter: Any = ready(Shot, small_model(kind), lr=1e-3)
    start = restorable(adapter)
    for x in batches(3):
        before = adapter.predict(x)
        assert torch.equal(adapter.step(x), before), "the scores before the update"
    changed = {name for name, value in restorable(adapter).items() if not torch.equal(value, start[name])}
    learned = {name for name, p in adapter.model.named_parameters() if p.requires_grad}
    assert changed == learned, "no buffer"
    assert {name for name, _ in adapter.model.named_parameters()} - learned == {
        name for name, _ in adapter.model.named_parameters() if name.startswith(("net.fc", "net.head"))}  # fmt: skip
    adapter.reset()
    assert same(restorable(adapter), start)
    assert adapter.optimizer.state == {}


def test_of_several_classifiers_all_stay_frozen() -> None:
    options = {**SPECS["layer"].options, "depth": 1}
    net = build_network(ModelSpec(name="two", architecture="deit_tiny_distilled_patch16_224", options=options))
    adapter = ready(Shot, source_model(net))
    frozen = {name for name, p in adapter.model.named_parameters() if not p.requires_grad}
    assert frozen == {f"net.{head}.{part}" for head in ("head", "head_dist") for part in ("weight", "bias")}


def test_lame_learns_batchnorms_affine_parameters_on_batch_statistics_and_predicts_with_the_sources() -> None:
    model = small_model("batch").double()
    adapter: Any = ready(Shot, copy.deepcopy(model), **{**LAME, "lr": 0.3, "steps": 2})
    [x] = batches(1)
    scores = adapter.step(x.double())
    layers = [m for m in model.net.modules() if isinstance(m, nn.BatchNorm2d)]
    for layer in layers:
        layer.train().requires_grad_()
        layer.momentum = 0.0
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    for _ in range(2):
        p = model(x.double()).softmax(1)
        mean = p.mean(0)
        loss = -(p * torch.log(p + 1e-10)).sum(1).mean() + (mean * torch.log(mean + 1e-10)).sum()
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= 0.3 * (gradient + 1e-4 * parameter.data)
    assert close(scores, model.eval()(x.double()).softmax(1).detach())
    assert close(adapter.stats()["marginal_entropy"], -(mean * torch.log(mean + 1e-10)).sum().item())
    assert torch.equal(adapter.predict(x.double()), scores), "scores after the update"
    start, now = restorable(ready(Shot, small_model("batch").double(), **LAME)), restorable(adapter)
    names = {name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    changed = {name for name in start if not torch.equal(start[name], now[name])}
    assert changed == {f"{n}.{part}" for n in names for part in ("weight", "bias", "num_batches_tracked")}
    adapter.reset()
    assert same(restorable(adapter), start)


@pytest.mark.parametrize(("config", "more"), [({"steps": 3}, 0), ({**LAME, "steps": 3}, 1)], ids=["official", "lame"])
def test_shot_passes_each_image_once_a_step_and_lame_once_more(config: dict[str, Any], more: int) -> None:
    pristine = small_model("batch")
    counter, steps = PassCounter(pristine), StepCounter()
    adapter = ready(Shot, copy.deepcopy(pristine), **config)
    with steps.watching():
        for x in batches(2):
            adapter.step(x)
    assert counter.read() == (16 * (3 + more), 16 * 3)
    assert steps.read() == 6


@pytest.mark.parametrize("config", [{}, LAME], ids=["official", "lame"])
def test_the_entropies_of_a_single_image_cancel(config: dict[str, Any]) -> None:
    adapter: Any = ready(Shot, small_model("batch"), batch_size=1, **config)
    for x in batches(2, size=1):
        assert adapter.step(x).isfinite().all()
        assert abs(adapter.losses[0]) < 2e-4


@pytest.mark.parametrize("config", [{}, LAME], ids=["official", "lame"])
def test_certain_predictions_have_finite_gradients(config: dict[str, Any]) -> None:
    model = small_model("batch")
    classifier: Any = model.classifier()
    classifier.weight.mul_(1e4)
    adapter: Any = ready(Shot, model, **config)
    for x in batches(2):
        assert adapter.step(x).isfinite().all()
    scores = adapter.predict(batches(1)[0])
    assert (scores if config else scores.softmax(1)).min() == 0
    assert all(value.isfinite().all() for value in adapter.model.state_dict().values())
