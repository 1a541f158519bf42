"""Each method equals the published code, step by step, on reference trajectories; and what the papers change about it."""

from __future__ import annotations

import copy
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import SHARED
from networks import batches, ready, small_model

import tta_bench.torchvision_repair  # noqa: F401
from tta_bench import optimizers
from tta_bench.adapter import Adapter, context_for
from tta_bench.methods.deyo import DeYO
from tta_bench.methods.early_norms import frozen_by_name, frozen_by_structure, lr_resnet, lr_vit
from tta_bench.methods.eata import Eata
from tta_bench.methods.eta import Eta
from tta_bench.methods.norm import Norm
from tta_bench.methods.sar import Sar
from tta_bench.methods.source import Source
from tta_bench.methods.tent import Tent
from tta_bench.models import SourceModel
from tta_bench.testing import replay

METHODS = ("tent", "eta", "eata", "sar")
HERE = pathlib.Path(__file__).parent / "golden"
SETS = {"committed": HERE, **{name: SHARED / "golden" / name for name in ("typical", "recovery", "empty")}}
CASES = [("committed", m, k) for m in METHODS for k in ("vit_ln", "resnet_bn")] + [
    (name, m, k)
    for name in ("typical", "recovery", "empty")
    for m in METHODS
    for k in ("vit_ln", "resnet_gn", "resnet_bn")
]
CASES += [(name, "mgg", "vit_ln") for name in SETS]  # the published code of mgg takes nothing else


def play(
    name: str, method: str, kind: str, dtype: torch.dtype
) -> tuple[np.ndarray, Adapter, list[dict[str, Any]], Any, Any]:
    """(scores, adapter, stats of each batch, the reference, its manifest entry)."""
    import timm

    folder = SETS[name]
    if not folder.is_dir():
        pytest.skip("needs the reference trajectories of CI (folder 'shared' beside the checkout)")
    manifest = json.loads((folder / "manifest.json").read_text())
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in manifest["models"][kind].items()}
    net = timm.create_model(options.pop("model"), pretrained=False, **options)
    net.load_state_dict(safetensors.torch.load_file(folder / f"{kind}.safetensors"))
    case = manifest["cases"][f"{method}.{kind}"]
    values = dict(case["hyperparameters"])
    if method == "mgg":
        values = {"lr": values["lr"], "alignment_weight": values["lam"], "checkpoint": str(folder / "mgg.safetensors")}
    elif method != "tent":
        values["entropy_margin"] = case["entropy_margin"]
    stats: list[dict[str, Any]] = []
    with np.load(folder / "inputs.npz") as inputs:
        test, source = ([torch.from_numpy(b).to(dtype) for b in inputs[part]] for part in ("test", "source"))
    scores, adapter = replay(
        method, values, net.to(dtype), test, source, manifest["config"]["reset_after"],
        after_step=lambda a: stats.append(optimizers.stats(a)),
    )  # fmt: skip
    return scores, adapter, stats, np.load(folder / f"{method}.{kind}.npz"), case


@pytest.mark.parametrize(("name", "method", "kind"), CASES)
def test_a_reference_trajectory_is_reproduced(name: str, method: str, kind: str) -> None:
    scores, adapter, stats, reference, case = play(name, method, kind, torch.float64)
    assert scores.shape == reference["logits"].shape
    assert np.abs(scores - reference["logits"]).max() < 1e-8
    if method == "mgg":
        assert not any(s["refused"] for s in stats)
        for name in ("mean", "std"):
            assert np.abs(adapter.prepared[name].numpy() - reference[f"source_{name}"]).max() < 1e-8
    elif method != "tent":
        assert [s["kept"] for s in stats] == reference["kept"].tolist()
    if method == "sar":
        assert sum(s["recoveries"] for s in stats) == case["recoveries"]
        assert sum(p.numel() for p in adapter.parameters) == int(reference["adapted"])  # type: ignore[attr-defined]
    if method == "eata":
        fisher = torch.cat([v.flatten() for v in adapter.prepared.values()]).numpy()
        assert np.abs(fisher / reference["fisher"] - 1).max() < 1e-8


@pytest.mark.parametrize("kind", ["vit_ln", "resnet_bn"])
def test_tent_in_single_precision(kind: str) -> None:
    scores, _, _, reference, _ = play("typical", "tent", kind, torch.float32)
    assert np.abs(scores - reference["logits"]).max() < 1e-3


@pytest.mark.parametrize(("change", "method"), [({"lr": 0.0051}, "tent"), ({"d_margin": 0.61}, "eta"), ({"fisher_alpha": 51.0}, "eata"),
                                                ({"rho": 0.0501}, "sar"), ({"alignment_weight": 0.401}, "mgg")])  # fmt: skip
def test_the_comparison_notices_a_small_change(
    change: dict[str, float], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = replay
    monkeypatch.setattr("test_methods.replay", lambda m, values, *a, **k: original(m, {**values, **change}, *a, **k))
    folder = "typical" if method == "eta" else "committed"
    scores, _, _, reference, _ = play(folder, method, "vit_ln", torch.float64)
    assert np.abs(scores - reference["logits"]).max() > 1e-8


@pytest.mark.parametrize("rule", [frozen_by_name, frozen_by_structure])
@pytest.mark.parametrize(
    ("name", "scalars"), [("resnet50", 30_592), ("resnet50_gn", 30_592), ("vit_base_patch16_224", 27_648)]
)
def test_sar_adapts_exactly_the_published_set(
    name: str, scalars: int, rule: Callable[[SourceModel], set[torch.nn.Module]]
) -> None:
    import timm

    with torch.device("meta"):
        net = timm.create_model(name, pretrained=False)
    model = SourceModel(net, (0.5,) * 3, (0.5,) * 3)
    frozen = rule(model)
    kept = {n: m for n, m in net.named_modules() if model.norm_kind(m) and m not in frozen}
    assert sum(p.numel() for m in kept.values() for p in m.parameters()) == scalars
    assert not any(word in n for n in kept for word in ("layer4", "blocks.9", "blocks.10", "blocks.11"))
    assert "norm" not in kept


@pytest.mark.parametrize(
    ("frozen", "names"),
    [("names", {"norm"}), ("structure", {"blocks.2.norm1", "blocks.2.norm2", "norm"}), ("none", set())],
)
@pytest.mark.parametrize("cls", [Sar, DeYO])
def test_the_published_names_freeze_only_the_final_norm_of_a_short_vit(
    cls: type[Adapter], frozen: str, names: set[str]
) -> None:
    adapter = ready(cls, small_model("layer"), frozen=frozen)
    layers = {n: m for n, m in adapter.model.net.named_modules() if adapter.model.norm_kind(m)}
    assert {n for n, m in layers.items() if not m.weight.requires_grad} == names  # type: ignore[union-attr]
    adapted = sum(m.weight.numel() + m.bias.numel() for n, m in layers.items() if n not in names)  # type: ignore[operator, union-attr]
    assert sum(p.numel() for p in adapter.parameters) == adapted  # type: ignore[attr-defined]


@pytest.mark.parametrize("cls", [Sar, DeYO])
def test_a_network_whose_norms_are_all_frozen_is_declined(cls: type[Adapter]) -> None:
    model = small_model("batch")
    model.net.layer4, model.net.bn1 = (
        torch.nn.Sequential(model.net.layer1, model.net.layer2, model.net.layer3, model.net.layer4),
        torch.nn.Identity(),
    )  # type: ignore[assignment]
    for stage in ("layer1", "layer2", "layer3"):
        setattr(model.net, stage, torch.nn.Identity())
    context = context_for(model, 8, 32, torch.device("cpu"), 0)
    assert cls.skip(model, cls.Config(), context) == "'frozen: names' freezes every normalisation layer"


def test_learning_rate_rules_for_small_batches() -> None:
    assert [lr_vit(b) for b in (64, 1)] == [1e-3, 2 * 1e-3 / 64]
    assert [lr_resnet(b) for b in (64, 32, 16, 1)] == [2.5e-4, 2.5e-4, 1.25e-4, 2 * 2.5e-4 / 32]
    assert Tent.presets["imagenet_vit_b16"].resolve(1) == {"lr": 1e-3 / 64}


def test_the_entropy_margin_follows_the_models_classes() -> None:
    adapter: Any = ready(Eta, small_model("layer"))
    assert adapter.margin == pytest.approx(0.4 * np.log(10))


def test_variants_differ_in_what_a_reset_forgets() -> None:
    for cls, attribute in ((Eta, "moving_probability"), (Sar, "optimizer")):
        for variant, keeps in (("official", True), ("paper", False)):
            adapter: Any = ready(cls, small_model("layer"), variant=variant, entropy_margin=2.4, lr=0.01, d_margin=1.1) \
                if cls is Eta else ready(cls, small_model("layer"), variant=variant, entropy_margin=2.4, lr=0.01)  # fmt: skip
            for x in batches(2):
                adapter.step(x)
            adapter.reset()
            left = (
                adapter.moving_probability is not None
                if attribute == "moving_probability"
                else bool(adapter.optimizer.state)
            )
            assert left is keeps, (cls, variant)
            assert bool(adapter.reset_keeps) is keeps


def test_sars_variants_differ_in_what_a_recovery_forgets() -> None:
    """The published code keeps SGD's momentum and writes the low moving mean back; the paper forgets both."""
    for variant in ("official", "paper"):
        adapter: Any = ready(
            Sar, small_model("layer"), variant=variant, entropy_margin=2.4, recovery_threshold=100.0, lr=0.01
        )
        before = [p.detach().clone() for p in adapter.parameters]
        adapter.step(batches(1)[0])
        assert adapter.stats()["recoveries"] == 1
        assert all(torch.equal(a, b) for a, b in zip(before, adapter.parameters, strict=True)), "weights are restored"
        assert (adapter.moving_loss is not None, bool(adapter.optimizer.state)) == (variant == "official",) * 2
        assert adapter.kept > 0, "what the step has said stays"


def test_eatas_fisher_is_the_mean_over_batches_of_the_squared_gradient_of_each_mean_loss() -> None:
    """In batches of the test batch's size, with the model's own predictions as labels; a short last batch counts alike."""
    adapter: Any = ready(Eata, small_model("group"), batch_size=8, fisher_images=11)
    assert vars(adapter.source_request()) == {"images": 11, "batch_size": 8}
    source = [*batches(1, size=8), *batches(1, size=3, seed=5)]
    found = adapter.prepare(iter(source))
    expected = [torch.zeros_like(p) for p in adapter.parameters]
    for x in source:
        probabilities = adapter.model(x).log_softmax(1)
        loss = -probabilities.gather(1, probabilities.argmax(1, keepdim=True)).mean()
        for total, gradient in zip(expected, torch.autograd.grad(loss, adapter.parameters), strict=True):
            total += gradient**2 / 2
    assert len(found) == len(expected)
    for number, fisher in enumerate(expected):
        torch.testing.assert_close(found[str(number)], fisher)


@pytest.mark.parametrize(
    ("cls", "values"),
    [(Tent, {"optimizer": "adam", "lr": 1e-3}), (Eta, {"optimizer": "adam", "lr": 1e-3, "d_margin": 0.4}),
     (Eata, {"optimizer": "adam", "lr": 1e-3, "d_margin": 0.4, "fisher_alpha": 1.0, "fisher_images": 2000}), (Sar, {"lr": 1e-3})],
)  # fmt: skip
def test_the_presets_for_cifar_are_the_published_ones(cls: type[Adapter], values: dict[str, Any]) -> None:
    config = cls.Config(**cls.presets["cifar10"].resolve(200))
    assert {name: getattr(config, name) for name in values} == values


def test_the_defaults_are_those_published_for_imagenet() -> None:
    config: Any = Eata.Config()
    assert (config.optimizer, config.lr, config.d_margin, config.fisher_alpha, config.fisher_images) == ("sgd", 2.5e-4, 0.05, 2000.0, 2000)  # fmt: skip
    assert config.optimizer_options["momentum"] == 0.9


def test_sars_variants_differ_on_an_empty_batch() -> None:
    moved = {}
    for variant in ("official", "paper"):
        adapter: Any = ready(
            Sar, small_model("layer"), variant=variant, entropy_margin=2.4, recovery_threshold=-1, lr=0.01
        )
        first, second = batches(2)
        adapter.step(first)
        before = [p.detach().clone() for p in adapter.parameters]
        adapter.margin = -1.0  # nothing is below it
        adapter.step(second)
        moved[variant] = any(not torch.equal(a, b) for a, b in zip(before, adapter.parameters, strict=True))
        assert all(p.isfinite().all() for p in adapter.parameters)
    assert moved == {"official": True, "paper": False}


@pytest.mark.parametrize("cls", [Tent, Eta, Eata, Sar, DeYO, Norm])
def test_batch_statistics_of_one_value_are_declined_before_they_run(cls: type[Adapter]) -> None:
    from networks import SPECS

    from tta_bench.networks.from_timm import build_network

    deep = SPECS["batch"].model_copy(update={"stem": None})  # 32x32 images end in 1x1 maps
    model = SourceModel(build_network(deep), (0.5,) * 3, (0.5,) * 3).eval()
    for network, size, declined in ((model, 1, True), (model, 2, False), (small_model("batch"), 1, False)):
        reason = cls.skip(network, cls.Config(), context_for(network, size, 32, torch.device("cpu"), 0))
        assert (reason == "batch statistics at batch 1 need normalised maps larger than 1x1") is declined


# -- norm --------------------------------------------------------------------------------------------------------------


def statistics(model: SourceModel, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased variance (C,) of what enters the first BatchNorm."""
    seen: dict[str, torch.Tensor] = {}
    hook = model.net.bn1.register_forward_pre_hook(lambda _m, inputs: seen.update(x=inputs[0]))  # type: ignore[union-attr]
    model(x)
    hook.remove()
    return seen["x"].mean((0, 2, 3)), seen["x"].var((0, 2, 3), unbiased=True)


@pytest.mark.parametrize(("config", "alpha"), [({"prior": 24.0}, 0.25), ({"alpha": 0.1}, 0.1), ({"alpha": 0.0}, 0.0)])
def test_the_blend_is_the_published_one_and_stateless(config: dict[str, float], alpha: float) -> None:
    model, [x, other] = small_model("batch"), batches(2)
    adapter = ready(Norm, copy.deepcopy(model), statistics="blend", **config)
    layer: Any = adapter.model.net.bn1
    used: dict[str, torch.Tensor] = {}
    hook = layer.register_forward_pre_hook(lambda m, _: used.update(mean=m.running_mean, variance=m.running_var))
    first = adapter.step(x)
    hook.remove()
    mean, variance = statistics(model, x)
    source: Any = model.net.bn1
    assert torch.allclose(used["mean"], (1 - alpha) * source.running_mean + alpha * mean, atol=1e-6)
    assert torch.allclose(used["variance"], (1 - alpha) * source.running_var + alpha * variance, atol=1e-6)
    assert torch.equal(layer.running_mean, source.running_mean)
    assert torch.equal(layer.running_var, source.running_var)
    adapter.step(other)
    assert torch.equal(adapter.step(x), first)
    if alpha == 0:
        assert torch.allclose(first, model(x), atol=1e-6)


def test_running_statistics_move_a_tenth_and_are_graded_in_evaluation_mode() -> None:
    model, [x] = small_model("batch"), batches(1)
    adapter = ready(Norm, copy.deepcopy(model), statistics="running")
    scores = adapter.step(x)
    mean, variance = statistics(model, x)
    layer: Any = adapter.model.net.bn1
    source: Any = model.net.bn1
    assert torch.allclose(layer.running_mean, 0.9 * source.running_mean + 0.1 * mean, atol=1e-6)
    assert torch.allclose(layer.running_var, 0.9 * source.running_var + 0.1 * variance, atol=1e-5)
    assert torch.equal(scores, adapter.predict(x))
    adapter.reset()
    assert torch.equal(adapter.step(x), scores)


def test_replay_seeds_the_generator() -> None:
    class Noise(Source):
        def step(self, x: torch.Tensor) -> torch.Tensor:
            return torch.rand(len(x), 10, generator=self.context.generator)

    net = small_model("layer").net
    for seed in (0, 3):
        expected = torch.rand(8, 10, generator=torch.Generator().manual_seed(seed)).numpy()
        options = {"seed": seed} if seed else {}
        assert np.array_equal(replay(Noise, {}, net, batches(1), [], **options)[0][0], expected)


def test_replay_refuses_what_a_method_does_not_have() -> None:
    net = small_model("layer").net
    with pytest.raises(ValueError, match="lrr"):
        replay("tent", {"lrr": 1.0}, net, batches(1), [])
    with pytest.raises(ValueError, match="no variant 'paper'"):
        replay("tent", {}, net, batches(1), [], variant="paper")
    before = copy.deepcopy(net.state_dict())
    replay("tent", {"lr": 0.1}, net, batches(2), [])
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items()), "the model given stays as it is"
