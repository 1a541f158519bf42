"""What ``tta-bench methods`` and ``tta-bench plugins`` print."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable

import pytest
from conftest import item

from tta_bench import suite
from tta_bench.suite import plan

METHODS = ("source", "norm", "tent", "eta", "eata", "sar", "mgg", "cotta", "rotta")


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", METHODS)
def test_every_screen_fits_its_width_and_describes_every_field(
    shown: Callable[..., str], name: str, columns: int
) -> None:
    output = shown("methods", name, columns=columns)
    assert all(len(line) <= columns for line in output.splitlines())
    assert "broken" not in output
    assert "``" not in output
    lines = output.partition("\nHyperparameters\n")[2].splitlines()
    for number, line in enumerate(lines):
        if re.match(r"  \S", line):
            assert lines[number + 1].startswith("      "), f"{line!r} has no description below it"


def test_bullets_of_a_docstring_stay_bullets(shown: Callable[..., str]) -> None:
    output = shown("methods", "sar")
    bullets = [line for line in output.splitlines() if line.startswith("- ")]
    assert [line[:26] for line in bullets] == [
        "- a recovery, in the code,", "- a batch from which every", "- the code's constructor t", "- the paper freezes the la",
    ]  # fmt: skip
    assert "  in the code, with zero gradients, so that the momentum moves the weights; in\n" in output
    assert "the paper):\n\n- a recovery" in output


def test_a_hyperparameter_has_type_default_and_description(shown: Callable[..., str]) -> None:
    sar, mgg = shown("methods", "sar"), shown("methods", "mgg")
    assert item(sar, "rho:") == "rho: float, ≥ 0, default 0.05 radius of the sharpness-aware perturbation."
    assert item(sar, "variant:").startswith("variant: official | paper, default official what a recovery resets")
    assert item(sar, "lr:") == "lr: float, default 0.00025 learning rate.", "described by the base class"
    assert "default {momentum: 0.9, nesterov: false, weight_decay: 0.0}" in item(sar, "optimizer_options:")
    assert item(mgg, "checkpoint:").startswith("checkpoint: file | null, required of the learned optimizer")


def test_options_of_pretrain_are_described(shown: Callable[..., str]) -> None:
    output = shown("methods", "mgg")
    assert "Options of 'tta-bench pretrain mgg'" in output
    assert item(output, "--epochs:") == "--epochs: int, ≥ 1, default 40 passes over them."
    assert "default [speckle_noise, spatter, gaussian_blur, saturate]" in item(output, "--corruptions:")
    both = [item(output, f"--selection-{name}:") for name in ("lr", "batch")]
    assert all(text.endswith("α and batch size there, as at test time.") for text in both), "one text for two fields"


def test_a_preset_is_shown_as_a_suite_resolves_it(
    shown: Callable[..., str], suite_file: Callable[..., pathlib.Path]
) -> None:
    file = suite_file(("methods: [source, tent]", "methods: [tent]"), ("batch_size: 40", "batch_size: 64"),
                      ("    stem: cifar", "    stem: cifar\n    preset: cifar10"))  # fmt: skip
    config = plan.make(suite.load(str(file))).trials[0].config
    text = item(shown("methods", "tent"), "cifar10:")
    assert f"optimizer {config['optimizer']}, lr {config['lr']}" in text
    assert config["optimizer_options"]["betas"] == [0.9, 0.999]
    assert "optimizer_options {betas: [0.9, 0.999], eps: 1.0e-08, weight_decay: 0.0}" in text
    assert "From Tent's code (cfgs/tent.yaml), batch 200." in text
    assert item(shown("methods", "tent"), "imagenet_vit_b16:").startswith("imagenet_vit_b16: lr 0.001 (1e-3·batch/64)")


def test_a_preset_of_a_method_that_needs_a_checkpoint_is_not_broken(shown: Callable[..., str]) -> None:
    assert item(shown("methods", "mgg"), "imagenet_vit_b16:").startswith("imagenet_vit_b16: the defaults From MGTTA's")


STRANGER = '''\
"""Mine [bold] and <angled>.

- one *star
- two
"""
from pydantic import Field
from tta_bench.adapter import Adapter, Config, Preset

class Mine(Adapter):
    """Takes [B, C] scores
    on two lines.

    More."""
    name = "mine"
    presets = {"good": Preset({"size": 3}, "a paper"), "bad": Preset({"size": "x"}, "another")}

    class Config(Config):
        """Attributes: size: of a step, in pixels; weights, biases: of what is kept."""
        size: int
        weights: tuple[float, ...] = (1.0, 2.0)
        biases: dict[str, float] | None = None
        told: float = Field(1e-3, gt=0, description="Said by the field.")
        silent: bool = False

    def step(self, x):
        return x
'''


def test_a_strangers_method_is_shown_as_it_is_written(shown: Callable[..., str]) -> None:
    pathlib.Path("mine.py").write_text(STRANGER)
    output = shown("methods", "mine", "--plugin", "mine.py")
    assert "Mine [bold] and <angled>.\n\n- one *star\n- two\n" in output
    assert item(output, "size:") == "size: int, required of a step, in pixels"
    assert item(output, "weights:") == "weights: list of float, default [1.0, 2.0] of what is kept."
    assert item(output, "biases:") == "biases: mapping | null, default null of what is kept."
    assert item(output, "told:") == "told: float, > 0, default 0.001 Said by the field."
    assert item(output, "silent:") == "silent: bool, default false"
    assert item(output, "good:") == "good: size 3 From a paper."
    assert item(output, "bad:").startswith("bad: broken: Input should be a valid integer")
    listed = " ".join(shown("methods", "--plugin", "mine.py").split())
    assert "Takes [B, C] scores on two lines." in listed
    assert "More" not in listed
    assert "Takes [B, C] scores on two lines." in shown("plugins", "--plugin", "mine.py", columns=120)
