"""The conformance suite passes every built-in method, and names the rule that a broken one breaks."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Outcome
from torch import Tensor

from tta_bench.adapter import Adapter, Config, Needs, constant
from tta_bench.errors import UsageError
from tta_bench.methods.functional import adapt_norm_affine
from tta_bench.methods.source import Source
from tta_bench.registry import Registry
from tta_bench.testing import check_method, conformance

SHIPPED = "package:tta_bench.methods/weights/digits_c/mgg-vit_ln.safetensors"


@pytest.mark.parametrize(
    "name",
    ["source", "norm", "tent", "eta", "eata", "sar", "mgg", "deyo", "rdumb", "cotta", "rotta", "roid", "cmf", "foa", "lame",
     "t3a"],  # note, shot and memo: in their own files
)  # fmt: skip
@pytest.mark.faults
def test_every_built_in_method_keeps_every_rule(name: str) -> None:
    report = check_method(Registry().load(name))
    assert report.findings == []
    assert len(report.rules) == 15


@pytest.mark.faults
def test_memo_keeps_every_rule_with_few_views() -> None:
    """With its 64 views that takes minutes."""
    assert check_method(Registry().load("memo"), {"num_views": 2}).findings == []


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have methods checked on one of the networks only, which takes a third of the time."""

    def call(network: str) -> None:
        monkeypatch.setattr(conformance, "NETWORKS", {network: conformance.NETWORKS[network]})

    return call


@pytest.mark.parametrize(("name", "config"), [("norm", {"statistics": "blend"}), ("norm", {"statistics": "running"}),
                                              ("eata", {"variant": "paper"}), ("sar", {"variant": "paper"}),
                                              ("deyo", {"aug_type": "pixel", "deyo_margin": 2.4, "plpd_threshold": -1.0}),
                                              ("rdumb", {"reset_every": 2}), ("cmf", {"variant": "paper", "q": 1.6}),
                                              ("tent", {"optimizer": "adam", "steps": 2}),
                                              ("tent", {"optimizer": "mgg", "optimizer_options": {"checkpoint": SHIPPED}}),
                                              ("mgg", {"optimizer": "sgd"}),
                                              ("cotta", {"loss": "cross_entropy", "always_augment": True, "optimizer": "adam",
                                                         "n_augmentations": 2, "ap": 0.9}),
                                              ("memo", {"optimizer": "adamw", "lr": 1e-3, "steps": 2, "num_views": 2}),
                                              ("rotta", {"memory_size": 12, "update_frequency": 5}),
                                              ("lame", {"affinity": "knn", "force_symmetry": True}), ("lame", {"affinity": "linear"}),
                                              ("t3a", {"filter_k": -1}), ("t3a", {"filter_k": -1, "variant": "keep_all"}),
                                              ("mgg", {"objective": "entropy", "checkpoint": SHIPPED})])  # fmt: skip
@pytest.mark.faults
def test_so_do_their_other_forms(on: Callable[[str], None], name: str, config: dict[str, Any]) -> None:
    on("batch" if name in ("norm", "cotta", "rotta") else "layer")
    assert check_method(Registry().load(name), config).findings == []


class Learns(Adapter):
    """A sound base for broken methods: minimises the squared logits through the norm layers."""

    needs = Needs(backward=True)

    def setup(self) -> None:
        self.optimizer = torch.optim.SGD(adapt_norm_affine(self.model), lr=0.01, momentum=0.9)

    def step(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        logits.square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return logits.detach()  # type: ignore[no-any-return]


class WrongShape(Source):
    def step(self, x: Tensor) -> Tensor:
        return self.predict(x).argmax(1)


class GlobalRandomness(Source):
    def step(self, x: Tensor) -> Tensor:
        return self.predict(x) + torch.rand(1)


class ForgetsToReset(Learns):
    def reset(self) -> None:
        self.model.net.load_state_dict(self.start)

    def setup(self) -> None:
        super().setup()
        self.start = {k: v.clone() for k, v in self.model.net.state_dict().items()}


class KeepsInSecret(Learns):
    reset_keeps = ("seen",)

    def setup(self) -> None:
        super().setup()
        self.seen = 0

    def step(self, x: Tensor) -> Tensor:
        self.seen += 1
        return super().step(x)

    def reset(self) -> None:
        super().reset()
        self.seen = 0


class RewindsTheGenerator(Source):
    def step(self, x: Tensor) -> Tensor:
        return self.predict(x) + torch.rand(1, generator=self.context.generator)

    def reset(self) -> None:
        super().reset()
        self.context.generator.manual_seed(7)


class Draws(Source):
    """Sound: draws in setup, in every step and in predict, under a name of its own."""

    def setup(self) -> None:
        self.rng = self.context.generator
        self.start = torch.rand(1, generator=self.rng)

    def step(self, x: Tensor) -> Tensor:
        return self.predict(x) + self.start

    def predict(self, x: Tensor) -> Tensor:
        return super().predict(x) + torch.rand(1, generator=self.rng)


class PredictAdapts(Learns):
    def predict(self, x: Tensor) -> Tensor:
        return self.step(x)


class HasATeacher(Learns):
    """Sound: keeps a teacher and a memory that reach no score."""

    def setup(self) -> None:
        super().setup()
        self.teacher = copy.deepcopy(self.model).requires_grad_(False)
        self.memory: list[Tensor] = []

    def step(self, x: Tensor) -> Tensor:
        self.memory.append(x[0].clone())
        with torch.no_grad():
            for average, parameter in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
                average.lerp_(parameter, 0.5)
        return super().step(x)


class ForgetsItsTeacher(HasATeacher):
    def reset(self) -> None:
        teacher = copy.deepcopy(self.teacher)
        super().reset()
        self.teacher.load_state_dict(teacher.state_dict())


class ForgetsItsMemory(HasATeacher):
    def reset(self) -> None:
        memory = [*self.memory]
        super().reset()
        self.memory.extend(memory)


class PredictMovesStatistics(HasATeacher):
    def predict(self, x: Tensor) -> Tensor:
        self.teacher.train()(x)
        return super().predict(x)


class PredictsAnotherKind(Source):
    outputs = "probabilities"

    def step(self, x: Tensor) -> Tensor:
        return self.predict(x).softmax(1)

    def predict(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(x)


class SaysLogits(Source):
    def step(self, x: Tensor) -> Tensor:
        return self.predict(x).softmax(1)


class ReusesItsBuffer(Source):
    def setup(self) -> None:
        self.buffer = torch.zeros(64, 10)

    def step(self, x: Tensor) -> Tensor:
        self.buffer[: len(x)] = self.predict(x)
        return self.buffer[: len(x)]


class NeedsFullBatches(Source):
    def step(self, x: Tensor) -> Tensor:
        return self.predict(x) * torch.ones(self.context.batch_size, 1)


class DividesByTheSelected(Source):
    def step(self, x: Tensor) -> Tensor:
        scores = self.predict(x)
        reliable = scores.softmax(1).amax(1) > 0.2
        return scores - scores[reliable].mean(0)


class DividesBySpread(Source):
    def step(self, x: Tensor) -> Tensor:
        scores = self.predict(x)
        return scores / (scores - scores.mean(0)).abs().max()


class KeepsNaN(Source):
    def setup(self) -> None:
        self.mean = torch.zeros(10)

    def step(self, x: Tensor) -> Tensor:
        scores = self.predict(x)
        self.mean = 0.9 * self.mean + 0.1 * scores.mean(0)
        return scores - self.mean

    def reset(self) -> None:
        self.mean = self.mean * 0


class SecretlyBackward(Learns):
    needs = Needs()


class AsksWithoutSaying(Source):
    def source_request(self) -> Any:
        from tta_bench.adapter import SourceRequest

        return SourceRequest(8, 8)


class ChangesTheFrozen(Source):
    def step(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.model.classifier().bias.add_(0.01)
        return self.predict(x)


class ChangesTheConstant(Source):
    def setup(self) -> None:
        self.frozen = constant(copy.deepcopy(self.model))

    def step(self, x: Tensor) -> Tensor:
        self.frozen.classifier().bias.data.add_(0.01)
        return self.predict(x)


class KnowsTheCorruptions(Source):
    def setup(self) -> None:
        self.rates = {"gaussian_noise": 0.1, "other": 0.2}


class ChangesItsStats(Source):
    def setup(self) -> None:
        self.count = 0

    def step(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.predict(x)

    def stats(self) -> dict[str, float]:
        return {f"step{self.count}": 1.0}


class DeclinesAll(Source):
    needs = Needs(min_batch=10_000)


BROKEN: dict[type[Adapter], tuple[str, str]] = {
    WrongShape: ("scores_have_the_right_shape", "returned (8,), expected (8, 10)"),
    GlobalRandomness: ("deterministic", "draw from context.generator"),
    ForgetsToReset: ("reset_restores", "differ from a fresh adapter's by"),
    KeepsInSecret: ("reset_restores", "reset_keeps names 'seen', but reset() changed it"),
    RewindsTheGenerator: ("reset_restores", "reset() rewound context.generator"),
    PredictAdapts: ("predict_changes_nothing", "predict() changed"),
    ForgetsItsTeacher: ("reset_restores", "after reset() teacher.net.bn1.weight differs from a fresh adapter's"),
    ForgetsItsMemory: ("reset_restores", "after reset() memory.0 is left, which a fresh adapter does not have"),
    PredictMovesStatistics: ("predict_changes_nothing", "predict() changed teacher.net.bn1.running_mean"),
    PredictsAnotherKind: (
        "scores_are_of_the_declared_kind",
        "outputs is 'probabilities', but predict() returned logits",
    ),
    SaysLogits: ("scores_are_of_the_declared_kind", "outputs is 'logits', but step() returned probabilities"),
    ReusesItsBuffer: ("no_look_ahead", "return a copy"),
    NeedsFullBatches: ("other_batch_sizes", "RuntimeError"),
    DividesByTheSelected: ("everything_filtered_out", "of 80 scores are not finite"),
    DividesBySpread: ("constant_images", "images of 0.5"),
    KeepsNaN: ("nan_is_healed_by_reset", "differ from a fresh adapter's by inf"),
    SecretlyBackward: ("needs_are_true", "24 images were backwarded and 3 updates"),
    AsksWithoutSaying: ("needs_are_true", "source_request() asks for some"),
    ChangesTheFrozen: ("only_declared_parameters_change", "yet changed by"),
    ChangesTheConstant: ("only_declared_parameters_change", "frozen.net.fc.bias requires no gradient, yet changed by"),
    KnowsTheCorruptions: ("no_secret_in_reach", "shift name 'gaussian_noise'"),
    ChangesItsStats: ("stats_keep_their_keys", "changed its keys"),
    DeclinesAll: ("runs_somewhere", "skipped everywhere"),
}


@pytest.mark.parametrize("cls", BROKEN, ids=lambda cls: cls.__name__)
def test_a_broken_method_is_caught_by_its_rule_with_the_numbers(on: Callable[[str], None], cls: type[Adapter]) -> None:
    on("batch")
    rule, message = BROKEN[cls]
    findings = check_method(cls).findings
    assert any(message in f.message for f in findings if f.rule == rule), findings


def test_the_sound_base_of_the_broken_ones_passes(on: Callable[[str], None]) -> None:
    on("batch")
    assert check_method(Learns).findings == []
    assert check_method(Draws).findings == []
    assert check_method(HasATeacher).findings == []


def test_required_fields_can_be_given(on: Callable[[str], None]) -> None:
    on("batch")

    class Demands(Source):
        class Config(Config):
            strength: float

    with pytest.raises(UsageError, match="strength"):
        check_method(Demands)
    assert check_method(Demands, {"strength": 1.0}).findings == []


@pytest.mark.faults
def test_check_on_the_command_line(run_cli: Callable[..., Outcome], tmp_path: pathlib.Path) -> None:
    good = run_cli("check", "norm")
    assert good.code == 0
    assert "skipped on the layer-norm network: the model has no batch normalisation layer" in good.out
    assert "norm: 0 of 15 rules broken, on 1 networks" in good.out
    (tmp_path / "bad.py").write_text(
        "from tta_bench.adapter import Adapter\nclass Bad(Adapter):\n    name = 'bad'\n    def step(self, x): return x\n"
    )
    bad = run_cli("check", "bad", "--plugin", "bad.py")
    assert bad.code == 3
    assert "broken  scores_have_the_right_shape" in bad.out
    assert "returned (8, 3, 32, 32), expected (8, 10)" in bad.out
    assert run_cli("check", "tnet").code == 2
