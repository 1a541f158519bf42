"""MGG: its gradient memory layer, the optimizer around it, its meta-gradient, its checkpoints, its place in a run."""

from __future__ import annotations

import io
import itertools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import Outcome
from networks import batches, ready, small_model
from runs import rows_of
from torch import Tensor, nn
from torch.func import functional_call

from tta_bench.methods import alignment, mgg_checkpoint, mgg_memory
from tta_bench.methods.functional import adapt_norm_affine
from tta_bench.methods.mgg import Mgg
from tta_bench.methods.mgg_memory import SHAPES, Memory
from tta_bench.methods.mgg_optimizer import MGG
from tta_bench.methods.mgg_pretraining import MetaTrainer, Pretraining, adapted
from tta_bench.store import results

SHIPPED = "package:tta_bench.methods/weights/digits_c/mgg-{model}.safetensors"
PHI = mgg_memory.initial_parameters(torch.Generator().manual_seed(0))
Cli = Callable[..., Outcome]
SuiteFile = Callable[..., pathlib.Path]


def double(phi: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in phi.items()}


# -- the memory layer --------------------------------------------------------------------------------------------------


def test_the_memory_layer_gives_the_specified_numbers() -> None:
    def table(f: Callable[[int, int], float], columns: int) -> Tensor:
        return torch.tensor([[f(i, j) for j in range(columns)] for i in range(8)], dtype=torch.float64)

    def column(f: Callable[[int], float]) -> Tensor:
        return torch.tensor([f(i) for i in range(8)], dtype=torch.float64)

    phi = {
        "w_q": table(lambda i, j: math.sin(1 + 2 * i + j), 2),
        "w_k": table(lambda i, j: math.cos(1 + 2 * i + j), 2),
        "w_v": table(lambda i, j: math.sin((1 + 2 * i + j) / 2), 2),
        "w_o": column(math.cos)[None],
        "lr_weight": torch.tensor([0.3, -0.2], dtype=torch.float64),
        "lr_bias": torch.tensor([0.1], dtype=torch.float64),
        "token_scale": torch.tensor([0.05], dtype=torch.float64),
        "ln_weight": column(lambda i: 1 + 0.1 * i),
        "ln_bias": column(lambda i: 0.01 * i),
        "post_weight": column(lambda i: 1 - 0.05 * i),
        "post_bias": column(lambda i: 0.02 * i),
        "memory_weight": table(lambda i, j: 0.02 * math.sin(i + 3 * j), 8),
        "memory_bias": column(lambda i: 0.01 * math.cos(i)),
    }
    memory, found = mgg_memory.initial_memory(phi, 1), []
    for u in ((0.742460, 1.410674), (-0.5, 0.8), (0.0, 0.0)):
        delta, memory = mgg_memory.update(phi, torch.tensor(u, dtype=torch.float64)[:, None], memory)
        found.append([delta.item(), memory.weight[0, 0, 0].item(), memory.bias[0, 0].item()])
    expected = [[0.9539344912, -1.3169632767, 7.0944594905], [0.9609266618, -1.3178524692, 7.0959339371],
                [0.9340877460, -1.3178524692, 7.0994546191]]  # fmt: skip
    assert torch.allclose(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-9)


def test_the_optimizer_has_164_parameters() -> None:
    assert sum(value.numel() for value in PHI.values()) == 164
    assert list(PHI) == list(SHAPES)


# -- the optimizer -----------------------------------------------------------------------------------------------------


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]


def descend(optimizer: torch.optim.Optimizer, given: list[nn.Parameter], steps: int, seed: int = 5) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in given:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()


def test_coordinates_are_independent_so_that_any_shapes_go_together() -> None:
    together, alone = parameters((3,), (2, 4), (1,)), parameters((3,), (2, 4), (1,))
    both, generator = MGG(together, 0.1, double(PHI)), torch.Generator().manual_seed(1)
    single = [MGG([p], 0.1, double(PHI)) for p in alone]
    for _ in range(4):
        for p, q in zip(together, alone, strict=True):
            p.grad = q.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        both.step()
        for optimizer in single:
            optimizer.step()
    assert all(torch.allclose(p, q, rtol=0, atol=1e-12) for p, q in zip(together, alone, strict=True))


def test_a_step_is_bounded_by_the_learning_rate_of_its_group() -> None:
    slow, fast = parameters((50,), (50,))
    before = [slow.detach().clone(), fast.detach().clone()]
    optimizer = MGG([{"params": [slow], "lr": 1e-3}, {"params": [fast], "lr": 1.0}], 0.5, double(PHI))
    descend(optimizer, [slow, fast], 1)
    moved = [(p - old).abs().max().item() for p, old in zip((slow, fast), before, strict=True)]
    assert 0 < moved[0] < 1e-3 < moved[1] < 1.0


def test_a_parameter_without_a_gradient_is_left_alone_with_its_memory() -> None:
    given, other = parameters((4,), (6,))
    optimizer = MGG([given, other], 0.1, double(PHI))
    descend(optimizer, [given, other], 2)
    kept, memory = other.detach().clone(), optimizer.state[given]["memory"].clone()
    other.grad, given.grad = None, torch.ones_like(given)
    optimizer.step()
    assert torch.equal(other, kept)
    now = optimizer.state[given]["memory"]
    assert torch.equal(now[:, 4:], memory[:, 4:])
    assert not torch.equal(now[:, :4], memory[:, :4])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_update_that_is_not_finite_is_not_taken_and_is_counted(bad: float) -> None:
    disturbed, calm = parameters((5,)), parameters((5,))
    first, second = MGG(disturbed, 0.1, double(PHI)), MGG(calm, 0.1, double(PHI))
    for optimizer, given in ((first, disturbed), (second, calm)):
        descend(optimizer, given, 3)
        assert optimizer.stats()["refused"] == 0
    disturbed[0].grad = torch.tensor([1.0, bad, 1.0, 1.0, 1.0], dtype=torch.float64)
    first.step()
    assert first.stats()["refused"] == 1
    assert torch.equal(disturbed[0], calm[0])
    for optimizer, given in ((first, disturbed), (second, calm)):
        descend(optimizer, given, 2, seed=9)
    assert torch.equal(disturbed[0], calm[0]), "moments, memory and step count, too, are those of before"
    assert first.stats()["refused"] == 0


def test_its_state_is_saved_and_loaded() -> None:
    given, copy = parameters((3,), (2, 2)), parameters((3,), (2, 2))
    first, second = MGG(given, 0.1, double(PHI)), MGG(copy, 0.1, double(PHI))
    descend(first, given, 3)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    for p, q in zip(given, copy, strict=True):
        q.data.copy_(p.data)
    descend(first, given, 2, seed=8)
    descend(second, copy, 2, seed=8)
    assert all(torch.equal(p, q) for p, q in zip(given, copy, strict=True))


def test_it_says_what_it_cannot_do() -> None:
    [one, other] = parameters((2,), (2,))
    with pytest.raises(ValueError, match="mgg needs a checkpoint: make one with 'tta-bench pretrain mgg SUITE'"):
        MGG([one])
    with pytest.raises(ValueError, match="one dtype"):
        MGG([one, nn.Parameter(torch.zeros(2))], checkpoint=double(PHI))
    with pytest.raises(RuntimeError, match="further parameters"):
        MGG([one], checkpoint=double(PHI)).add_param_group({"params": [other]})


# -- features and their statistics -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "widths"), [("batch", 56), ("group", 192), ("layer", 72)])
def test_source_statistics_are_those_of_all_images_at_once(kind: str, widths: int) -> None:
    model, given = small_model(kind).double(), [b.double() for b in batches(5)]
    mean, std = alignment.source_statistics(model, iter([*given, given[0][:3]]))
    features = torch.cat([alignment.logits_and_features(model, x)[1] for x in [*given, given[0][:3]]])
    assert features.shape == (43, widths)
    assert torch.allclose(mean, features.mean(0), rtol=0, atol=1e-12)
    assert torch.allclose(std, features.std(0), rtol=0, atol=1e-12)
    assert alignment.distance(features, mean, std) < 1e-20


def test_features_are_graded_logits_apart() -> None:
    for kind in ("batch", "group", "layer"):
        model, [x] = small_model(kind), batches(1)
        assert torch.allclose(alignment.logits_and_features(model, x)[0], model(x), atol=1e-6)


# -- the meta-gradient -------------------------------------------------------------------------------------------------


class Objective(nn.Module):
    """The loss as a module, so that ``functional_call`` can give it other parameters."""

    def __init__(self, model: Any, statistics: tuple[Tensor, Tensor]):
        super().__init__()
        self.model, self.statistics = model, statistics

    def forward(self, x: Tensor) -> Tensor:
        return alignment.objective(self.model, x, self.statistics, 0.4)[1]


@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
def test_the_meta_gradient_is_that_of_the_whole_unrolled_expression(kind: str) -> None:
    given = [b.double() for b in batches(5, size=4)]
    model = adapted(small_model(kind).double())
    objective = Objective(model, alignment.source_statistics(model, iter(given[3:])))
    theta = adapt_norm_affine(model)
    names = {p: n for n, p in objective.named_parameters()}
    options: Any = Pretraining(inner_lr=0.05, lr=0.01)
    trainer = MetaTrainer(double(PHI), model, theta, objective.statistics, options)

    n, memory = sum(p.numel() for p in theta), None
    m = v = torch.zeros(n, dtype=torch.float64)
    for number, (x, following) in enumerate(itertools.pairwise(given[:3])):
        start = {names[p]: p.detach().clone().requires_grad_(True) for p in theta}
        trainer.step(x)
        phi = {name: value.detach().clone().requires_grad_(True) for name, value in trainer.phi.items()}
        gradients = torch.autograd.grad(functional_call(objective, start, (x,)), list(start.values()))
        m, v, u = mgg_memory.moments(m, v, torch.cat([g.flatten() for g in gradients]), torch.tensor(number + 1.0))
        delta, after = mgg_memory.update(phi, u, memory or mgg_memory.initial_memory(phi, n))
        memory = Memory(*(part.detach() for part in after))
        changes = zip(start.items(), delta.split([p.numel() for p in theta]), strict=True)
        moved = {name: old.detach() - 0.05 * change.view_as(old) for (name, old), change in changes}
        assert all(torch.allclose(moved[names[p]], p, rtol=0, atol=1e-12) for p in theta), "the same update was taken"

        loss = functional_call(objective, moved, (following,))
        whole = torch.autograd.grad(loss, list(phi.values()), allow_unused=True)
        trainer.pass_back(torch.cat([g.flatten() for g in torch.autograd.grad(objective(following), theta)]))
        for name, expected in zip(phi, whole, strict=True):
            found = trainer.phi[name].grad
            assert (found is None) == (expected is None), name
            if found is not None:
                assert expected.abs().max() > 1e-12, f"{name} gets a gradient at all"
                assert (found - expected).abs().max() < 1e-8 * max(1, expected.abs().max()), name
        initial = [trainer.phi[name].grad for name in ("memory_weight", "memory_bias")]
        assert all((value is None) == (number > 0) for value in initial), "W⁰ and b⁰ learn through the first update"
        trainer.adam.zero_grad()


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_the_published_checkpoint_loads_as_it_is(tmp_path: pathlib.Path) -> None:
    shapes = {"lr_weight": (1, 1, 2), "lr_bias": (1, 1), "ln_weight": (1, 8), "ln_bias": (1, 8),
              "memory_weight": (1, 8, 8), "memory_bias": (1, 1, 8)}  # fmt: skip
    state = {f"seq_modeling_block.{theirs}": PHI[own].reshape(shapes.get(own, PHI[own].shape))
             for own, theirs in mgg_checkpoint._PUBLISHED.items()}  # fmt: skip
    torch.save({"model_state_dict": state, "epoch": 12}, tmp_path / "mgg_ckpt.pth")
    read = mgg_checkpoint.read(str(tmp_path / "mgg_ckpt.pth"))
    assert all(torch.equal(read[name], PHI[name]) for name in SHAPES)
    assert mgg_checkpoint.provenance(str(tmp_path / "mgg_ckpt.pth")) == {}


def test_the_published_statistics_are_deviations_then_means(tmp_path: pathlib.Path) -> None:
    torch.save((torch.full((1, 72), 2.0), torch.full((1, 72), 1.0)), tmp_path / "train_info.pt")
    mean, std = mgg_checkpoint.read_statistics(str(tmp_path / "train_info.pt"))
    assert (mean.shape, mean[0].item(), std[0].item()) == ((72,), 1.0, 2.0)
    safetensors.torch.save_file(PHI, tmp_path / "phi.safetensors")
    adapter: Any = ready(Mgg, small_model("layer"), checkpoint=str(tmp_path / "phi.safetensors"),
                         source_statistics=str(tmp_path / "train_info.pt"))  # fmt: skip
    assert adapter.source_request() is None, "no source images are asked for"
    assert adapter.step(batches(1)[0]).isfinite().all()


@pytest.mark.parametrize(("name", "content"), [("broken.safetensors", b"none"), ("broken.pth", b"none")])
def test_a_damaged_checkpoint_is_named(tmp_path: pathlib.Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is no checkpoint of mgg: .*tta-bench pretrain mgg SUITE"):
        mgg_checkpoint.read(str(tmp_path / name))


def test_a_foreign_checkpoint_says_what_it_lacks(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({k: v for k, v in PHI.items() if k != "w_q"} | {"w_k": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="w_q, w_k missing or of another size"):
        mgg_checkpoint.read(str(path))


# -- in a run ----------------------------------------------------------------------------------------------------------

MODELS = """\
models:
  - name: resnet_bn
    architecture: resnet18
    options: {num_classes: 10, layers: [1, 1, 1, 1], channels: [16, 32, 64, 128]}
    stem: cifar
    weights: "package:tta_bench.data.kinds/weights/digits_resnet_bn.safetensors"
    mean: [0.3, 0.3, 0.3]
    std: [0.36, 0.36, 0.36]
  - name: vit_ln
    architecture: vit_tiny_patch16_224
    options: {num_classes: 10, img_size: 32, patch_size: 4, embed_dim: 64, depth: 6, num_heads: 4}
    weights: "package:tta_bench.data.kinds/weights/digits_vit_ln.safetensors"
    mean: [0.3, 0.3, 0.3]
    std: [0.36, 0.36, 0.36]
"""
METHODS = f"""\
methods:
  - source
  - {{name: mgg, config: {{checkpoint: "{SHIPPED}", source_images: 80}}}}
  - {{name: mgg, label: sgd, config: {{optimizer: sgd, objective: entropy}}}}
  - {{name: mgg, label: foreign, config: {{checkpoint: "{SHIPPED.format(model="resnet_bn")}", source_images: 80}}}}
  - {{name: mgg, label: overflow, config: {{checkpoint: "{SHIPPED}", source_images: 80, alignment_weight: 1.0e+38}}}}
  - {{name: tent, label: tent+mgg, config: {{optimizer: mgg, lr: 1.0e-3, optimizer_options: {{checkpoint: "{SHIPPED}"}}}}}}
  - {{name: eata, label: eata+mgg, config: {{optimizer: mgg, lr: 1.0e-3, optimizer_options: {{checkpoint: "{SHIPPED}"}}}}}}
"""


@pytest.fixture(scope="module")
def run_text() -> str:
    head = "name: small\ndata: {kind: digits, max_images: 100}\n"
    return head + MODELS + METHODS + "batch_size: 40\ncorruptions: [contrast]\nseverities: [5]\nseeds: [0]\n"


@pytest.mark.faults
def test_any_objective_runs_with_any_optimizer_and_the_row_names_the_checkpoint(
    run_cli: Cli, suite_file: SuiteFile, run_text: str, tmp_path: pathlib.Path
) -> None:
    outcome = run_cli("run", suite_file(text=run_text), "--executor", "local", "--cpus-per-trial", 1)
    assert outcome.code == 0, outcome.err
    rows = rows_of(results.load(tmp_path / "results" / "small")).set_index(["model", "label"])
    assert set(rows["status"]) == {"ok"}
    updates = {label: rows.loc[("vit_ln", label), "updates"] for label in ("source", "mgg", "sgd", "tent+mgg")}
    assert updates == {"source": 0, "mgg": 3, "sgd": 3, "tent+mgg": 3}
    own = "vit_ln of digits_c, seed 0, epoch 5 of 40, selection: labelled"
    for label in ("mgg", "tent+mgg", "eata+mgg"):
        assert rows.loc[("vit_ln", label), "checkpoint"] == own
    foreign = own.replace("vit_ln", "resnet_bn") + "; made for another source model"
    assert rows.loc[("vit_ln", "foreign"), "checkpoint"] == foreign
    assert "another" not in rows.loc[("resnet_bn", "foreign"), "checkpoint"]
    assert not rows.loc[("vit_ln", "sgd"), "checkpoint"]
    assert pd.isna(rows.loc[("vit_ln", "sgd"), "stat_refused"])
    assert rows.loc[("vit_ln", "mgg"), "stat_refused"] == 0
    assert rows.loc[("vit_ln", "overflow"), "stat_refused"] == 1, "the mean over batches: every one was refused"
    assert rows.loc[("vit_ln", "overflow"), "error_pct"] == rows.loc[("vit_ln", "source"), "error_pct"]
    assert len(set(rows.loc["vit_ln", "key"])) == 7, "objective, optimizer and checkpoint are part of the key"


def test_a_missing_checkpoint_stops_only_a_run_that_needs_it(
    run_cli: Cli, suite_file: SuiteFile, run_text: str, tmp_path: pathlib.Path
) -> None:
    file = suite_file(text=run_text.replace(SHIPPED, "checkpoints/mgg-{model}.safetensors"))
    outcome = run_cli("run", file, "--executor", "local", "--cpus-per-trial", 1)
    assert outcome.code == 2
    assert "checkpoints/mgg-vit_ln.safetensors" in outcome.err
    assert "make one with 'tta-bench pretrain mgg SUITE'" in outcome.err
    assert not (tmp_path / "results").exists()
    only = ["--only", "method=source|sgd,model=vit_ln"]
    assert run_cli("run", file, "--executor", "local", "--cpus-per-trial", 1, *only).code == 0
    again = run_cli("run", file, "--executor", "local", "--only", "method=mgg")
    assert again.code == 2


def test_an_optimizer_that_needs_a_checkpoint_says_so(run_cli: Cli, suite_file: SuiteFile) -> None:
    for row in ("mgg", "{name: tent, config: {optimizer: mgg, lr: 1.0e-3}}"):
        outcome = run_cli("run", suite_file(("[source, tent]", f"[{row}]")), "--dry-run")
        assert outcome.code == 2
        assert "mgg needs a checkpoint: make one with 'tta-bench pretrain mgg SUITE'" in outcome.err
        assert "Traceback" not in outcome.err


def test_a_reset_forgets_what_was_learnt_at_test_time(tmp_path: pathlib.Path) -> None:
    safetensors.torch.save_file(PHI, tmp_path / "phi.safetensors")
    config = {"checkpoint": str(tmp_path / "phi.safetensors"), "objective": "entropy", "lr": 0.05}
    adapter: Any = ready(Mgg, small_model("group"), **config)
    first = [adapter.step(x) for x in batches(3)]
    assert adapter.optimizer.state[adapter.optimizer._parameters[0]]["step"] == 3
    adapter.reset()
    state = adapter.optimizer.state[adapter.optimizer._parameters[0]]
    assert state["step"] == 0
    assert not state["memory"][:2].any(), "the moments"
    assert torch.equal(state["memory"][-8:, 0], PHI["memory_bias"])
    assert all(torch.equal(adapter.step(x), scores) for x, scores in zip(batches(3), first, strict=True))
