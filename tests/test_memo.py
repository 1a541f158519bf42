"""MEMO, its AugMix views and the blend of BatchNorm's statistics equal the published code on reference trajectories."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from networks import SPECS, batches, ready, small_model
from PIL import Image
from torch import Tensor, nn
from trajectories import Play, play, reference

from tta_bench.adapter import Adapter, context_for
from tta_bench.methods.augmix import OPERATIONS, augmix, draw_view
from tta_bench.methods.blended_bn import blend_statistics
from tta_bench.methods.memo import Memo, marginal_entropy
from tta_bench.methods.norm import Norm
from tta_bench.models import MissingPart, SourceModel
from tta_bench.networks.from_timm import ModelSpec, build_network
from tta_bench.run.meters import PassCounter, StepCounter

MEMO = ["memo.resnet_bn", "memo.resnet_gn", "memo.vit_ln", "memo_steps.resnet_bn", "memo_source_statistics.resnet_bn"]
BLEND = ["bn_alpha_0", "bn_alpha_0.1", "bn_alpha_1", "bn_alpha_single", "bn_prior"]


def close(value: Any, expected: Any, tolerance: float = 1e-8) -> bool:
    return bool(np.allclose(value, expected, rtol=0, atol=tolerance))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- AugMix ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gives_the_published_pixels(name: str) -> None:
    arrays = reference("augmix")
    assert arrays["op_names"].tolist() == list(OPERATIONS)
    [chosen] = np.nonzero(arrays["op_names"][arrays["op_index"]] == name)
    assert len(chosen) >= 2
    for i in chosen:
        level = float(arrays["op_level"][i] * arrays["op_sign"][i])
        found = OPERATIONS[name](Image.fromarray(arrays["images"][arrays["op_image"][i]]), level)
        assert np.array_equal(np.asarray(found), arrays["op_output"][i]), level


def stored_views(kind: str) -> Iterator[tuple[int, Tensor, Tensor, list[list[Any]]]]:
    """(seed, image (3, n, n), the view, what was drawn after the pre-augmentation) of each stored view."""
    arrays = reference("augmix")
    part = "crop" if kind == "crop" else "resized"
    seeds, views, draws = (arrays[f"{part}_{name}"] for name in ("seed", "views", "draws"))
    images = arrays["images"][arrays["crop_image"]] if kind == "crop" else arrays["large_images"].repeat(len(seeds), 0)
    for seed, image, view, drawn in zip(seeds, images, views, draws, strict=True):
        yield int(seed), torch.from_numpy(image).permute(2, 0, 1) / 255, torch.from_numpy(view), json.loads(str(drawn))


@pytest.mark.parametrize("kind", ["crop", "resized_crop"])
def test_whole_views_are_the_published_ones(kind: Any) -> None:
    for seed, image, view, _ in stored_views(kind):
        [found] = augmix(image, 1, kind, seeded(seed))
        assert (found.dtype, found.is_contiguous()) == (torch.float32, True)
        assert close(found, view, 1e-6)


@pytest.mark.parametrize("kind", ["crop", "resized_crop"])
def test_what_is_drawn_is_what_the_published_code_draws(kind: Any) -> None:
    for seed, image, _, draws in stored_views(kind):
        view = draw_view((image.shape[2], image.shape[1]), kind, seeded(seed))
        assert close(view.weights, draws[0][1], 1e-7)
        assert close(view.share, draws[1][1], 1e-7)
        assert [draw for chain in view.chains for draw in drawn_for(chain)] == levels(draws[2:])


def drawn_for(chain: list[tuple[str, float]]) -> Iterator[Any]:
    """A chain in the form of :func:`levels`."""
    yield "depth", len(chain)
    for name, level in chain:
        yield "op", [*OPERATIONS].index(name)
        if name not in ("autocontrast", "equalize"):
            yield "level", abs(level)
        if name not in ("autocontrast", "equalize", "solarize", "posterize"):
            yield "negative", level < 0


def levels(draws: list[Any]) -> list[Any]:
    """The stored draws, with a level for the first uniform number after an operation, and a sign for the second."""
    before = ["", *(name for name, _ in draws)]
    first = [name == "uniform" and previous == "op" for previous, (name, _) in zip(before, draws, strict=False)]
    return [
        ("level", value) if is_level else ("negative", value > 0.5) if name == "uniform" else (name, value)
        for is_level, (name, value) in zip(first, draws, strict=True)
    ]


@pytest.mark.parametrize("kind", ["crop", "resized_crop"])
def test_views_are_drawn_one_after_the_other_in_every_precision(kind: Any) -> None:
    [[x]] = batches(1, size=1)
    before, one_by_one, at_once = x.clone(), seeded(3), seeded(3)
    views = augmix(x, 4, kind, at_once)
    assert torch.equal(views, torch.cat([augmix(x.double(), 1, kind, one_by_one) for _ in range(4)]))
    assert torch.equal(at_once.get_state(), one_by_one.get_state())
    assert torch.equal(x, before)
    assert len({view.sum().item() for view in views}) == 4
    assert 0 <= views.min() < views.max() <= 1


def test_images_are_rounded_to_eight_bits_not_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tta_bench.methods.augmix._pictures", lambda image, view: np.stack([np.asarray(image)] * 4))
    x = torch.tensor([0.0, 0.6, 254.4, 255.0]).div(255).view(1, 2, 2).expand(3, 2, 2)
    [view] = augmix(x, 1, "crop", seeded(0))
    assert close(view * 255, torch.tensor([0.0, 1.0, 254.0, 255.0]).view(1, 2, 2).expand(3, 2, 2), 1e-4)


def test_views_keep_the_shape_of_an_image_that_is_not_square() -> None:
    x = torch.rand(3, 24, 48, generator=seeded(0))
    for kind in ("crop", "resized_crop"):
        assert augmix(x, 3, kind, seeded(1)).shape == (3, 3, 24, 48)  # type: ignore[arg-type]
    ramp = Image.fromarray(np.arange(240, dtype=np.uint8).reshape(1, 240, 1).repeat(60, 0).repeat(3, 2))
    assert np.asarray(OPERATIONS["translate_x"](ramp, 0.99))[5, 0, 0] == 7, "a 30th of the width of 240, cut"
    tall = ramp.transpose(Image.Transpose.TRANSPOSE)
    assert np.asarray(OPERATIONS["translate_y"](tall, 0.99))[0, 5, 0] == 7


def test_where_no_random_crop_fits_the_middle_is_taken() -> None:
    generator, expected = seeded(0), seeded(0)
    view = draw_view((64, 2), "resized_crop", generator)
    assert view.box == (30, 0, 33, 2), "sides in the ratio 4/3, as torchvision"
    for _ in range(20):
        torch.rand(1, generator=expected)
    assert view.flipped is (torch.rand(1, generator=expected).item() < 0.5), "nothing else is drawn"


# -- blended statistics ------------------------------------------------------------------------------------------------


class Watched(Norm):
    """Keeps the statistics that the first BatchNorm used last: (2, C), mean and variance."""

    def setup(self) -> None:
        super().setup()
        self.used = torch.empty(0)
        self.model.net.bn1.register_forward_pre_hook(self._look)  # type: ignore[union-attr]

    def _look(self, layer: Any, inputs: Any) -> None:
        self.used = torch.stack([layer.running_mean, layer.running_var])


@pytest.mark.parametrize("case", BLEND)
def test_a_trajectory_of_the_blend_is_reproduced(case: str) -> None:
    scores, _, records, arrays, _ = play(f"{case}.resnet_bn", method=Watched)
    assert close(scores, arrays["scores"])
    assert close([r["used"].numpy() for r in records], arrays["first_layer"])
    if case == "bn_alpha_0":
        source, *_ = play(f"{case}.resnet_bn", method=Plain)
        assert close(scores, source, 1e-12), "the source model"


class Plain(Norm):
    """The source model under Norm's Config."""

    def setup(self) -> None:
        pass


def test_a_trajectory_of_moving_statistics_is_reproduced() -> None:
    kept: list[np.ndarray] = []

    def keep(adapter: Any) -> None:
        layer = adapter.model.net.bn1
        kept.append(torch.stack([layer.running_mean, layer.running_var]).numpy().copy())

    scores, *_, arrays, _ = play("bn_ema.resnet_bn", after_step=keep)
    assert close(scores, arrays["scores"])
    assert close(kept, arrays["first_layer"])


@pytest.mark.parametrize("case", ["bn_prior", "bn_ema"])
def test_in_single_precision_norm_stays_near(case: str) -> None:
    scores, *_, arrays, _ = play(f"{case}.resnet_bn", torch.float32)
    assert close(scores, arrays["scores"], 1e-4)


@pytest.mark.parametrize(("case", "change"), [("bn_alpha_0.1", {"alpha": 0.10001}), ("bn_prior", {"prior": 16.001})])
def test_the_comparison_notices_a_small_change_of_the_blend(case: str, change: dict[str, Any]) -> None:
    scores, _, _, arrays, _ = play(f"{case}.resnet_bn", **change)
    assert not close(scores, arrays["scores"])


def test_the_first_pass_of_moving_statistics_drops_out_as_training_does() -> None:
    """Only BatchNorm layers were in training mode in Tent's code; without dropout it is the same."""
    model = small_model("batch")
    model.net.layer2.append(nn.Dropout(0.5))  # type: ignore[union-attr,operator]
    adapter, [x] = ready(Norm, model, statistics="running"), batches(1)
    seen: list[bool] = []
    model.net.layer2[-1].register_forward_pre_hook(lambda m, _: seen.append(m.training))  # type: ignore[union-attr,index,operator]
    adapter.step(x), adapter.predict(x)
    assert seen == [True, False, False]


def random_layer() -> nn.BatchNorm2d:
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(4, eps=1e-3).eval()
    for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
        tensor.data.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return layer


def test_a_layer_normalises_with_the_blend_through_which_no_gradient_flows() -> None:
    layer, x = random_layer(), torch.randn(6, 4, 5, 3)
    blended = copy.deepcopy(layer)
    assert blend_statistics(blended, lambda images: images / 20) == 1
    mean = 0.7 * layer.running_mean + 0.3 * x.mean((0, 2, 3))  # type: ignore[operator]
    variance = 0.7 * layer.running_var + 0.3 * x.var((0, 2, 3), unbiased=True)  # type: ignore[operator]
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    scale = layer.weight.view(-1, 1, 1) / (variance + 1e-3).sqrt().view(-1, 1, 1)
    expected = (inputs[0] - mean.view(-1, 1, 1)) * scale + layer.bias.view(-1, 1, 1)
    found = blended(inputs[1])
    assert torch.allclose(found, expected, atol=1e-6)
    blended(2 * x)  # a later pass does not disturb what the backward pass needs
    for output, net in ((expected, layer), (found, blended)):
        output.square().sum().backward()
        assert net.weight.grad is not None
    assert torch.allclose(*(i.grad for i in inputs), atol=1e-4)  # type: ignore[arg-type]
    assert torch.allclose(layer.weight.grad, blended.weight.grad, atol=1e-3)  # type: ignore[arg-type]


def test_a_blend_leaves_the_layer_as_it_is_even_if_it_fails() -> None:
    model = small_model("batch")
    net: Any = model.net
    names, before = [*net.state_dict()], {name: (b, b.clone()) for name, b in net.named_buffers()}
    assert blend_statistics(net, lambda _: 0.5) == sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    [x] = batches(1)
    model(x)
    net.layer1[0].conv1.register_forward_pre_hook(lambda _m, _i: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(x)
    with pytest.raises(RuntimeError):
        net.bn1(torch.ones(2, 5, 3, 3))  # another number of channels
    assert [*net.state_dict()] == names
    for name, buffer in net.named_buffers():
        assert buffer is before[name][0]
        assert torch.equal(buffer, before[name][1])


def test_copies_of_a_blended_network_blend_their_own_statistics() -> None:
    model, [x] = small_model("batch"), batches(1)
    blend_statistics(model.net, lambda _: 0.1)
    twin = copy.deepcopy(model)
    expected = model(x)
    assert torch.equal(twin(x), expected)
    twin.net.bn1.running_mean.add_(1)  # type: ignore[union-attr,operator]
    assert not torch.allclose(twin(x), expected)
    assert torch.equal(model(x), expected)


def test_activations_fused_into_a_batchnorm_are_kept() -> None:
    net = build_network(ModelSpec(name="fused", architecture="efficientnet_lite0", options={"num_classes": 10})).eval()
    [x] = batches(1, size=2)
    expected = net(x)
    assert blend_statistics(net, lambda _: 0.0) == sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) > 0
    assert torch.allclose(net(x), expected, atol=1e-6)


def test_one_value_has_no_variance_and_a_layer_without_statistics_no_blend() -> None:
    layer = random_layer()
    blend_statistics(layer, lambda _: 0.5)
    with pytest.raises(ValueError, match=r"no unbiased variance: input of shape \(1, 4, 1, 1\)"):
        layer(torch.ones(1, 4, 1, 1))
    assert layer(torch.ones(1, 4, 1, 2)).isfinite().all()
    with pytest.raises(MissingPart, match="no running statistics"):
        blend_statistics(nn.BatchNorm2d(4, track_running_stats=False), lambda _: 0.5)


def test_norm_needs_a_batchnorm_of_images() -> None:
    model = small_model("batch")
    for parent in [*model.net.modules()]:
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.BatchNorm1d(child.num_features))
    with pytest.raises(MissingPart, match="the model has no BatchNorm2d layer"):
        ready(Norm, model)


# -- MEMO: trajectories ------------------------------------------------------------------------------------------------


def play_memo(case: str, dtype: torch.dtype = torch.float64, after_step: Callable[[Any], None] | None = None,
              **changes: Any) -> Play:  # fmt: skip
    """Replay a case with its stored views, all of which must be used."""
    steps = 2 if case.startswith("memo_steps") else 1
    queue = iter(torch.from_numpy(reference("memo_views")["views"])[:, :, :steps].flatten(0, 2))

    class Stored(Memo):
        def views(self, x: Tensor) -> Tensor:
            assert x.shape == (3, 32, 32)
            return next(queue)

    played = play(case, dtype, after_step, Stored, **changes)
    assert next(queue, None) is None or changes
    return played


def source_is_there(adapter: Any) -> None:
    state, source = adapter.model.state_dict(), adapter.source.state_dict()
    assert all(torch.equal(value, source[name]) for name, value in state.items())


@pytest.mark.parametrize("case", MEMO)
def test_a_trajectory_of_memo_is_reproduced(case: str) -> None:
    scores, _, records, arrays, _ = play_memo(case, after_step=source_is_there)
    assert close(scores, arrays["scores"])
    losses = np.stack([r["losses"].numpy() for r in records])
    assert close(losses.reshape(arrays["loss"].shape), arrays["loss"])
    assert close([r["loss"] for r in records], losses.mean((1, 2)), 1e-12)


@pytest.mark.parametrize("case", ["memo_steps.resnet_bn", "memo.vit_ln"])
def test_in_single_precision_a_trajectory_of_memo_stays_near(case: str) -> None:
    scores, *_, arrays, _ = play_memo(case, torch.float32)
    assert close(scores, arrays["scores"], 1e-3)


@pytest.mark.parametrize(
    ("case", "change"),
    [("memo.vit_ln", {"lr": 0.00501}), ("memo.resnet_bn", {"prior_strength": 16.01}), ("memo_steps.resnet_bn", {"steps": 1}),
     ("memo_steps.resnet_bn", {"optimizer_options": {"momentum": 0.01}}), ("memo.resnet_bn", {"prior_strength": None})],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)  # fmt: skip
def test_the_comparison_notices_a_small_change(case: str, change: dict[str, Any]) -> None:
    scores, *_, arrays, _ = play_memo(case, **change)
    assert not close(scores, arrays["scores"])


# -- MEMO: behaviour ---------------------------------------------------------------------------------------------------

FEW: dict[str, Any] = {"num_views": 3, "lr": 0.01, "pre_augmentation": "crop"}


def test_an_adaptive_optimizers_moments_run_on_over_the_images() -> None:
    """Against a loop by hand: one AdamW for all images, weights loaded anew for each."""
    model, [x] = small_model("layer"), batches(1, size=3)
    views = torch.rand(3, 2, 4, 3, 32, 32, generator=seeded(0))  # image, step, view
    queue = iter(views.flatten(0, 1))

    class Given(Memo):
        def views(self, x: Tensor) -> Tensor:
            return next(queue)

    adapter: Any = ready(Given, copy.deepcopy(model), optimizer="adamw", lr=1e-3, steps=2)
    net, source = copy.deepcopy(model).requires_grad_(True), copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01)
    expected = []
    for image, steps in zip(x, views, strict=True):
        net.load_state_dict(source)
        for given in steps:
            mean = net(given).softmax(1).mean(0)
            optimizer.zero_grad()
            (-(mean * mean.log()).sum()).backward()
            optimizer.step()
        expected.append(net(image[None]).detach())
    scores = adapter.step(x)
    assert torch.allclose(scores, torch.cat(expected), atol=1e-4)
    assert not torch.allclose(scores, model(x), atol=1e-2)
    assert {int(state["step"]) for state in adapter.optimizer.state.values()} == {6}
    adapter.reset()
    assert adapter.optimizer.state == {}


@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
def test_scores_do_not_depend_on_the_batch_size(kind: str) -> None:
    model, [x] = small_model(kind), batches(1, size=4)
    runs = []
    for size in (4, 3, 1):
        adapter = ready(Memo, copy.deepcopy(model), batch_size=size, seed=2, **FEW)
        runs.append(torch.cat([adapter.step(part) for part in x.split(size)]))
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
def test_every_parameter_moves_within_an_episode_and_comes_back(kind: str) -> None:
    model, moved = small_model(kind), set[str]()
    for parameter in model.parameters():  # where one is zero, so are the gradients of others
        if not parameter.any():
            nn.init.normal_(parameter)
    adapter: Any = ready(Memo, model, **FEW)

    def watch(x: Tensor) -> Tensor:
        source = dict(adapter.source.named_parameters())
        moved.update(name for name, p in adapter.model.named_parameters() if not torch.equal(p, source[name]))
        return Memo.predict(adapter, x)

    adapter.predict = watch
    [x] = batches(1, size=2)
    adapter.step(x)
    names = {name for name, _ in adapter.model.named_parameters()}
    assert names == moved
    source_is_there(adapter)
    assert all(p.grad is None for p in adapter.model.parameters())
    assert adapter.losses.shape == (2, 1)
    assert not adapter.losses.requires_grad


def test_a_reset_forgets_the_moments_but_not_what_was_drawn() -> None:
    adapter: Any = ready(Memo, small_model("batch"), optimizer="adamw", **FEW)
    [x] = batches(1, size=2)
    first = adapter.step(x)
    assert len(adapter.optimizer.state) == len(adapter.parameters)
    drawn = adapter.context.generator.get_state()
    adapter.reset()
    assert torch.equal(adapter.context.generator.get_state(), drawn)
    assert adapter.optimizer.state == {}
    assert not torch.equal(adapter.step(x), first), "other views"
    adapter.reset()
    adapter.context.generator.manual_seed(0)
    assert torch.equal(adapter.step(x), first)


def test_predict_scores_each_image_alone_with_the_source_weights() -> None:
    model, [x, other] = small_model("batch"), batches(2, size=3)
    adapter = ready(Memo, copy.deepcopy(model), prior_strength=4.0, **FEW)
    adapter.step(x)
    drawn = adapter.context.generator.get_state()
    blended = ready(Norm, copy.deepcopy(model), statistics="blend", alpha=0.2)
    expected = torch.cat([blended.step(image) for image in other.split(1)])
    assert torch.allclose(adapter.predict(other), expected, atol=1e-6)
    assert torch.equal(adapter.context.generator.get_state(), drawn)
    source = ready(Memo, copy.deepcopy(model), prior_strength=None, **FEW)
    assert torch.equal(source.predict(other), model(other))


def test_passes_and_steps_are_counted() -> None:
    pristine = small_model("batch")
    counter, steps = PassCounter(pristine), StepCounter()
    adapter = ready(Memo, copy.deepcopy(pristine), num_views=5, steps=2)
    with steps.watching():
        adapter.step(batches(1, size=3)[0])
    assert counter.read() == (3 * (2 * 5 + 1), 3 * 2 * 5)
    assert steps.read() == 3 * 2
    adapter.predict(batches(1, size=3)[0])
    assert counter.read() == (3, 0)


def test_views_are_new_in_every_step_and_not_the_image_itself() -> None:
    [x], seen = batches(1, size=2), []

    class Seen(Memo):
        def views(self, x: Tensor) -> Tensor:
            seen.append((x.clone(), super().views(x)))
            return seen[-1][1]

    ready(Seen, small_model("layer"), steps=2, **FEW).step(x)
    assert [torch.equal(image, x[i // 2]) for i, (image, _) in enumerate(seen)] == [True] * 4
    assert all(views.shape == (3, 3, 32, 32) for _, views in seen)
    views = torch.cat([views for _, views in seen])
    assert len({view.sum().item() for view in views}) == 12
    assert not any(torch.allclose(view, image, atol=1e-2) for view in views for image in x)
    again = seeded(0)
    assert torch.equal(views, torch.cat([augmix(x[i // 2], 3, "crop", again) for i in range(4)]))


def test_the_loss_is_the_entropy_of_the_views_mean_probability() -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], dtype=torch.float64)
    expected = -sum(p * np.log(p) for p in (0.3, 0.525, 0.175))
    assert close(marginal_entropy(probabilities.log() + 7), expected, 1e-12)
    for dtype in (torch.float32, torch.float64):
        impossible = torch.tensor([[0.0, -torch.inf, 0.0], [0.0, -torch.inf, 0.0]], dtype=dtype)
        assert close(marginal_entropy(impossible), np.log(2), 1e-6), "a class without probability adds nothing"


@pytest.mark.parametrize(("prior", "declined"), [(16.0, True), (0.0, True), (None, False)])
def test_maps_of_one_pixel_are_declined_at_every_batch_size(prior: float | None, declined: bool) -> None:
    deep = SPECS["batch"].model_copy(update={"stem": None})  # 32x32 images end in 1x1 maps
    model = SourceModel(build_network(deep), (0.5,) * 3, (0.5,) * 3).eval()
    for size in (1, 8):
        context = context_for(model, size, 32, torch.device("cpu"), 0)
        reason = Memo.skip(model, Memo.Config(prior_strength=prior), context)
        assert (reason == "batch statistics at batch 1 need normalised maps larger than 1x1") is declined
        assert Memo.skip(small_model("batch"), Memo.Config(prior_strength=prior), context) is None


def test_without_a_prior_maps_of_one_pixel_are_no_obstacle() -> None:
    deep = SPECS["batch"].model_copy(update={"stem": None})
    model = SourceModel(build_network(deep), (0.5,) * 3, (0.5,) * 3).eval()
    adapter = ready(Memo, model, prior_strength=None, **FEW)
    assert adapter.step(batches(1, size=2)[0]).isfinite().all()


@pytest.mark.parametrize("weight", [{"alpha": 0.1}, {"prior": 16.0}])
def test_the_blend_declines_a_last_batch_of_one_image_where_maps_are_of_one_pixel(weight: dict[str, float]) -> None:
    """The harness asks about the stream's smallest batch; see test_skipped_rows.py."""
    deep = SPECS["batch"].model_copy(update={"stem": None})
    model = SourceModel(build_network(deep), (0.5,) * 3, (0.5,) * 3).eval()
    config = Norm.Config(statistics="blend", **weight)
    reasons = [Norm.skip(model, config, context_for(model, n, 32, torch.device("cpu"), 0)) for n in (1, 2)]
    assert reasons == ["batch statistics at batch 1 need normalised maps larger than 1x1", None]


# -- MEMO: hyperparameters ---------------------------------------------------------------------------------------------


def configured(preset: str) -> Any:
    return Memo.Config(**Memo.presets[preset].resolve(64))


def test_the_presets_are_the_published_ones() -> None:
    for name in ("imagenet_resnet50_bn", "imagenet_resnet50_gn"):
        config = configured(name)
        assert config == Memo.Config()
        assert (config.optimizer, config.lr, config.optimizer_options["momentum"]) == ("sgd", 2.5e-4, 0.0)
        assert (config.num_views, config.steps, config.prior_strength) == (64, 1, 16)
        assert config.pre_augmentation == "resized_crop"
    cifar = configured("cifar10")
    assert (cifar.optimizer, cifar.lr, cifar.optimizer_options["momentum"]) == ("sgd", 5e-3, 0.0)
    assert (cifar.num_views, cifar.steps, cifar.prior_strength, cifar.pre_augmentation) == (32, 1, None, "crop")
    vit = configured("imagenet_vit_b16")
    assert (vit.optimizer, vit.lr, vit.optimizer_options["weight_decay"]) == ("adamw", 1e-5, 0.01)
    assert (vit.num_views, vit.steps, vit.prior_strength) == (64, 1, 16)


def test_sgd_has_no_momentum_unless_it_is_given_one() -> None:
    assert Memo.Config(optimizer_options={"weight_decay": 1e-4}).optimizer_options["momentum"] == 0.0  # type: ignore[call-arg]
    given: Any = Memo.Config(optimizer_options={"momentum": 0.9, "nesterov": True})  # type: ignore[call-arg]
    assert given.optimizer_options == {"momentum": 0.9, "weight_decay": 0.0, "nesterov": True}
    assert Memo.Config().keyed()["optimizer_options"] == {"momentum": 0.0}
    assert "momentum" not in Memo.Config(optimizer="adamw").optimizer_options  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "value", [{"num_views": 0}, {"steps": 0}, {"prior_strength": -1}, {"pre_augmentation": "none"}]
)
def test_impossible_hyperparameters_are_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(value))):
        Memo.Config(**value)


def test_every_kind_of_network_can_be_adapted() -> None:
    assert Memo.needs.norm_kinds == ()
    adapter: Adapter = ready(Memo, small_model("group"), **FEW)
    assert adapter.needs.backward
