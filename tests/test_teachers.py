"""CoTTA and RoTTA equal the published code, number by number, on reference trajectories; and what they cost."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from networks import batches, ready, small_model
from torch import Tensor, nn
from trajectories import affine, next_draw, play, reference

from tta_bench.adapter import Adapter
from tta_bench.methods.augmentation import augment
from tta_bench.methods.cotta import Cotta
from tta_bench.methods.memory_bank import MemoryBank
from tta_bench.methods.robust_bn import RobustBN, use_robust_statistics
from tta_bench.methods.rotta import Rotta
from tta_bench.models import SourceModel
from tta_bench.networks.from_timm import ModelSpec, build_network
from tta_bench.run.meters import PassCounter, StepCounter

COTTA = ["cotta.vit_ln", "cotta.resnet_gn", "cotta.resnet_bn", "cotta.resnet_bn.symmetric"]
ROTTA = ["rotta.vit_ln", "rotta.resnet_gn", "rotta.resnet_bn", "rotta.resnet_bn.small"]
REJECTED, FREE, OWN_CLASS, MAJORITY = range(4)  # what became of an image offered to RoTTA's memory


def close(value: Any, expected: Any, tolerance: float = 1e-8) -> bool:
    return bool(np.allclose(value, expected, rtol=0, atol=tolerance, equal_nan=True))


def sums(model: SourceModel) -> np.ndarray:
    return np.array([p.detach().sum().item() for p in model.parameters()])


def statistics(model: SourceModel) -> np.ndarray:
    """Mean, then variance, of every robust BatchNorm."""
    layers = [m for m in model.modules() if isinstance(m, RobustBN)]
    return torch.cat([torch.empty(0), *(s for m in layers for s in (m.running_mean, m.running_var))]).numpy()


# -- augmentation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cotta", "roid"])
def test_the_augmentation_is_the_published_one_draw_by_draw(kind: Any) -> None:
    arrays = reference("augmentation")
    x = torch.from_numpy(arrays["x"])
    for seed, expected, draw in zip(arrays["seeds"], arrays[kind], arrays[f"{kind}_next_draw"], strict=True):
        generator = torch.Generator().manual_seed(int(seed))
        assert close(augment(x, generator, kind), expected)
        assert np.array_equal(torch.rand(4, generator=generator).numpy(), draw)


@pytest.mark.parametrize("kind", ["cotta", "roid"])
def test_an_augmentation_draws_the_same_in_every_precision_and_leaves_its_input(kind: Any) -> None:
    [x] = batches(1)
    before, generators = x.clone(), [torch.Generator().manual_seed(5) for _ in range(2)]
    single, double = (augment(v, g, kind) for v, g in zip((x, x.double()), generators, strict=True))
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert close(single, double, 1e-4)
    assert torch.equal(*(torch.rand(4, generator=g) for g in generators))
    assert torch.equal(x, before)
    assert 0 <= single.min() < single.max() <= 1


# -- trajectories ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", COTTA)
def test_a_trajectory_of_cotta_is_reproduced(case: str) -> None:
    scores, adapter, stats, arrays, _ = play(case)
    assert scores.shape == arrays["logits"].shape
    assert close(scores, arrays["logits"])
    assert np.array_equal(next_draw(adapter), arrays["next_draw"])
    for name in ("loss", "anchor_confidence", "augmented", "augmentations", "restored"):
        assert close([s[name] for s in stats], arrays[name]), name
    for network, name in ((adapter.model, "student"), (adapter.teacher, "teacher")):  # type: ignore[attr-defined]
        assert close(sums(network), arrays[f"{name}_sums_final"]), name
    assert close(affine(adapter.model), arrays["affine_final"])
    assert close(affine(adapter.teacher), arrays["teacher_affine_final"])  # type: ignore[attr-defined]
    assert sum(p.numel() for p in adapter.model.parameters() if p.requires_grad) == int(arrays["adapted"])


class MemoryLog:
    """Records each image offered to RoTTA's memory, and what became of it."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.offered, self.decisions = list[Tensor](), list[int]()
        add = MemoryBank.add

        def logged(memory: MemoryBank, image: Tensor, label: int, uncertainty: float) -> None:
            alive = [*memory]  # an id is unique among live objects only
            before = {label: [id(item) for item in items] for label, items in memory.classes.items()}
            add(memory, image, label, uncertainty)
            assert len(memory) >= len(alive)
            after = {label: [id(item) for item in items] for label, items in memory.classes.items()}
            evicted = [c for c, ids in before.items() if set(ids) - set(after.get(c, ()))]
            accepted = before != after
            self.offered.append(image.clone())
            kind = FREE if not evicted else OWN_CLASS if evicted == [label] else MAJORITY
            self.decisions.append(kind if accepted else REJECTED)

        patch.setattr(MemoryBank, "add", logged)

    def index(self, image: Tensor) -> int:
        """The number of an image in the stream."""
        [number] = [n for n, other in enumerate(self.offered) if torch.equal(image, other)]
        return number


@pytest.mark.parametrize("case", ROTTA)
def test_a_trajectory_of_rotta_is_reproduced(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log, losses, memories = MemoryLog(monkeypatch), list[list[float]](), list[dict[str, list[Any]]]()

    def record(adapter: Any) -> None:
        losses.append(adapter.losses)
        items = [(label, item) for label, items in sorted(adapter.memory.classes.items()) for item in items]
        memories.append({
            "index": [log.index(item.image) for _, item in items],
            "class": [label for label, _ in items],
            "age": [item.age for _, item in items],
            "uncertainty": [item.uncertainty for _, item in items],
        })  # fmt: skip

    scores, adapter, stats, arrays, _ = play(case, after_step=record)
    assert close(scores, arrays["logits"])
    assert np.array_equal(next_draw(adapter), arrays["next_draw"])
    assert log.decisions == arrays["decisions"].flatten().tolist()
    assert [s["updates"] for s in stats] == arrays["updates"].tolist()
    for own, expected in zip(losses, arrays["losses"], strict=True):
        assert close(own, expected[: len(own)])
        assert np.isnan(expected[len(own) :]).all()
    for number, memory in enumerate(memories):
        for name, values in memory.items():
            expected = arrays[f"memory_{name}"][number]
            filled = ~np.isnan(expected) if name == "uncertainty" else expected != -1
            assert close(values, expected[filled]), (name, number)
    assert [s["stored"] for s in stats] == [len(m["index"]) for m in memories]
    student, teacher = adapter.model, adapter.teacher  # type: ignore[attr-defined]
    assert close(affine(student), arrays["affine_final"])
    assert close(affine(teacher), arrays["teacher_affine_final"])
    assert close(statistics(student), arrays["student_statistics_final"])
    assert close(statistics(teacher), arrays["teacher_statistics_final"])
    assert sum(p.numel() for p in student.parameters() if p.requires_grad) == int(arrays["adapted"])


@pytest.mark.parametrize(("case", "distance"), [("cotta.resnet_bn.symmetric", 1e-3), ("rotta.resnet_bn.small", 1e-3)])
def test_in_single_precision_a_trajectory_stays_near(case: str, distance: float) -> None:
    scores, adapter, _, arrays, _ = play(case, torch.float32)
    assert close(scores, arrays["logits"], distance)
    assert np.array_equal(next_draw(adapter), arrays["next_draw"])


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("cotta.vit_ln", {"lr": 0.01001}),
        ("cotta.resnet_bn.symmetric", {"mt": 0.9701}),
        ("cotta.resnet_bn.symmetric", {"rst": 0.0051}),
        ("rotta.resnet_bn.small", {"nu": 0.1001}),
        ("rotta.resnet_bn.small", {"alpha": 0.2001}),
        ("rotta.resnet_bn.small", {"lambda_u": 0.9}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_the_comparison_notices_a_small_change(case: str, change: dict[str, Any]) -> None:
    scores, _, _, arrays, _ = play(case, **change)
    assert not close(scores, arrays["logits"])


# -- repeatability, reset, predict -------------------------------------------------------------------------------------

SMALL: list[tuple[type[Adapter], dict[str, Any]]] = [
    (Cotta, {"n_augmentations": 2, "ap": 2.0, "mt": 0.9, "rst": 0.1}),
    (Cotta, {"n_augmentations": 2, "loss": "cross_entropy", "always_augment": True, "optimizer": "adam", "lr": 1e-3}),
    (Rotta, {"memory_size": 8, "update_frequency": 6, "nu": 0.1}),
]


def restorable(adapter: Any) -> dict[str, Tensor]:
    """Every parameter and buffer of student and teacher."""
    networks = {"student": adapter.model, "teacher": adapter.teacher}
    return {f"{n}.{k}": v.clone() for n, network in networks.items() for k, v in network.state_dict().items()}


@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
@pytest.mark.parametrize(("cls", "config"), SMALL)
def test_a_reset_restores_networks_memory_and_optimizer_but_not_the_generator(
    cls: type[Adapter], config: dict[str, Any], kind: str
) -> None:
    adapter: Any = ready(cls, small_model(kind), **config)
    start = restorable(adapter)
    runs = []
    for _ in range(2):
        adapter.context.generator.manual_seed(3)
        runs.append([adapter.step(x) for x in batches(3)])
        moved = restorable(adapter)
        assert {name.partition(".")[0] for name in start if not torch.equal(start[name], moved[name])} == {
            "student", "teacher"}  # fmt: skip
        drawn = adapter.context.generator.get_state()
        adapter.reset()
        assert torch.equal(adapter.context.generator.get_state(), drawn)
        assert all(torch.equal(value, start[name]) for name, value in restorable(adapter).items())
        assert adapter.optimizer.state == {}
        if cls is Rotta:
            assert (len(adapter.memory), adapter.images_seen) == (0, 0)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True)), "the same bits for the same draws"


@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
@pytest.mark.parametrize(("cls", "config"), SMALL)
def test_predict_is_one_pass_of_the_teacher_that_leaves_everything_alone(
    cls: type[Adapter], config: dict[str, Any], kind: str
) -> None:
    pristine = small_model(kind)
    counter = PassCounter(pristine)
    adapter: Any = ready(cls, pristine, **config)
    first, second = batches(2)
    adapter.step(first)
    before, drawn = restorable(adapter), adapter.context.generator.get_state()
    counter.read()
    scores = adapter.predict(second)
    assert counter.read() == (8, 0)
    assert torch.equal(adapter.context.generator.get_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in restorable(adapter).items())
    if cls is Rotta or not config.get("ap"):  # CoTTA's teacher was not averaged
        assert torch.equal(adapter.step(second), scores)


# -- costs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "forwards"),
    [
        ({"ap": 2.0}, 1 + 1 + 32),  # student, anchor, averaged teacher
        ({"ap": 0.0}, 1 + 1 + 1),  # student, anchor, teacher
        ({"ap": 0.0, "always_augment": True}, 1 + 1 + 32 + 1),  # student, anchor, needless passes, teacher
    ],
    ids=["averaged", "plain", "needless"],
)
def test_every_pass_of_cottas_three_networks_is_counted(config: dict[str, Any], forwards: int) -> None:
    pristine = small_model("batch")
    counter, steps = PassCounter(pristine), StepCounter()
    adapter = ready(Cotta, copy.deepcopy(pristine), **config)
    with steps.watching():
        for x in batches(2):
            adapter.step(x)
    assert counter.read() == (16 * forwards, 16)
    assert steps.read() == 2


def test_rotta_passes_its_memory_through_both_networks_at_each_update() -> None:
    pristine = small_model("batch")
    counter, steps = PassCounter(pristine), StepCounter()
    adapter: Any = ready(Rotta, copy.deepcopy(pristine), memory_size=8, update_frequency=6)
    sizes = []
    update = adapter._update
    adapter._update = lambda: (sizes.append(len(adapter.memory)), update())[1]
    with steps.watching():
        for x in batches(3):
            adapter.step(x)
    assert len(sizes) == steps.read() == 4
    assert counter.read() == (24 + 2 * sum(sizes), sum(sizes))


# -- parts -------------------------------------------------------------------------------------------------------------


def test_the_presets_are_the_published_ones() -> None:
    imagenet: Any = Cotta.Config()
    assert (imagenet.optimizer, imagenet.lr, imagenet.mt, imagenet.rst, imagenet.ap) == ("sgd", 0.01, 0.999, 0.001, 0.1)
    assert (imagenet.n_augmentations, imagenet.loss, imagenet.always_augment) == (32, "symmetric", False)
    assert imagenet.optimizer_options == {"momentum": 0.9, "weight_decay": 0.0, "nesterov": True}
    cifar: Any = Cotta.Config(**Cotta.presets["cifar10"].resolve(200))
    assert (cifar.optimizer, cifar.lr, cifar.rst, cifar.ap, cifar.loss) == ("adam", 1e-3, 0.01, 0.92, "cross_entropy")
    assert cifar.always_augment
    vit: Any = Cotta.Config(**Cotta.presets["imagenet_vit_b16"].resolve(64))
    assert (vit.lr, vit.optimizer_options["nesterov"]) == (5e-3, False)
    rotta: Any = Rotta.Config()
    assert (rotta.optimizer, rotta.lr, rotta.memory_size, rotta.update_frequency) == ("adam", 1e-3, 64, 64)
    assert (rotta.nu, rotta.alpha, rotta.lambda_t, rotta.lambda_u) == (0.001, 0.05, 1.0, 1.0)


@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd", "optimizer_options": {"momentum": 0.5}}])
def test_cottas_sgd_has_nesterovs_momentum_unless_switched_off(options: dict[str, Any]) -> None:
    config: Any = Cotta.Config(**options)
    assert config.optimizer_options["nesterov"]
    assert config.keyed().get("optimizer_options", {})["nesterov"], "it is part of a trial's key"
    assert not Cotta.Config(optimizer_options={"nesterov": False}).keyed()
    assert Cotta.Config(optimizer="adam").optimizer_options["betas"] == (0.9, 0.999)
    with pytest.raises(ValueError, match="optimizer_options"):
        Cotta.Config(optimizer_options=None)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5), (6, 4, 5, 3)])
def test_robust_bn_normalises_with_the_mixture_that_it_keeps(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    source = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(4, eps=1e-3)
    for tensor in (source.weight, source.bias, source.running_mean, source.running_var):
        tensor.data.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    layer, x = RobustBN(copy.deepcopy(source), alpha=0.3), torch.randn(shape)
    over = [d for d in range(len(shape)) if d != 1]
    mean = 0.7 * source.running_mean + 0.3 * x.mean(over)  # type: ignore[operator]
    variance = 0.7 * source.running_var + 0.3 * x.var(over, correction=0)  # type: ignore[operator]
    channels = (1, 4, *[1] * (len(shape) - 2))
    expected = (x - mean.view(channels)) / (variance + 1e-3).sqrt().view(channels)
    expected = expected * source.weight.view(channels) + source.bias.view(channels)
    assert torch.allclose(layer.train()(x), expected, atol=1e-5)
    assert torch.allclose(layer.running_mean, mean)
    assert torch.allclose(layer.running_var, variance)
    assert torch.allclose(layer.eval()(x), expected, atol=1e-5), "evaluation mode uses what training mode has kept"
    assert torch.allclose(layer.running_mean, mean), "and changes nothing"


def test_activations_fused_into_a_batchnorm_survive_its_replacement() -> None:
    fused = ModelSpec(name="fused", architecture="efficientnet_lite0", options={"num_classes": 10})
    net = build_network(fused).eval()
    [x] = batches(1, size=2)
    expected = net(x)
    layers = sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    use_robust_statistics(net, alpha=0.05)
    assert sum(isinstance(m, RobustBN) for m in net.modules()) == layers > 0
    assert torch.allclose(net(x), expected, atol=1e-5)


def test_of_equally_old_and_uncertain_items_the_last_gives_way() -> None:
    memory = MemoryBank(4, 2, 1.0, 1.0)
    for label in (0, 0, 1, 1):
        memory.add(torch.zeros(1), label, 0.5)
        for item in memory:
            item.age = 1
    first, second = memory.classes[0]
    memory.add(torch.ones(1), 0, 0.1)
    assert memory.classes[0][0] is first
    assert second not in memory.classes[0]


def test_a_class_that_loses_its_last_image_is_forgotten() -> None:
    memory = MemoryBank(1, 2, 1.0, 1.0)
    memory.add(torch.zeros(1), 0, 0.6)
    memory.add(torch.ones(1), 1, 0.1)
    assert list(memory.classes) == [1]
    assert [float(item.image) for item in memory] == [1.0]


def test_the_memory_holds_copies_of_images() -> None:
    memory, x = MemoryBank(4, 2, 1.0, 1.0), torch.zeros(2, 3)
    memory.add(x[0], 1, 0.5)
    x.fill_(7)
    assert [item.image.tolist() for item in memory] == [[0, 0, 0]]
