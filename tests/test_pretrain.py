"""``tta-bench pretrain``: what it writes, what it sees, how it stops and goes on."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import Outcome
from networks import state_digest

from tta_bench import load_results, suite
from tta_bench.code import file_sha256
from tta_bench.data.cache import ImageCache
from tta_bench.methods import mgg_checkpoint, mgg_pretraining
from tta_bench.methods.mgg_pretraining import MetaTrainer
from tta_bench.suite import plan
from tta_bench.suite.prepare import pretrainings

Cli = Callable[..., Outcome]
SuiteFile = Callable[..., pathlib.Path]

QUICK = ["--images", 8, "--every", 1, "--source-images", 40, "--selection-images", 20, "--selection-batch", 20]
WEIGHTS = "package:tta_bench.data.kinds/weights/digits_resnet_bn.safetensors"
FOLDER_SUITE = f"""\
name: of_folder
data: {{kind: folder, root: "ROOT", preprocess: none, strengths: cifar}}
models:
  - name: resnet_bn
    architecture: resnet18
    options: {{num_classes: 10, layers: [1, 1, 1, 1], channels: [16, 32, 64, 128]}}
    stem: cifar
    weights: "{WEIGHTS}"
    mean: [0.3, 0.3, 0.3]
    std: [0.36, 0.36, 0.36]
methods: [source]
batch_size: 10
corruptions: [clean]
"""


def pretrain(run_cli: Cli, file: object, *options: object, epochs: int = 2, out: str = "cp") -> Outcome:
    return run_cli("pretrain", "mgg", file, *QUICK, "--epochs", epochs, "--out", out, *options)


def phi(folder: str = "cp") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(f"{folder}/mgg-resnet_bn.safetensors")


def said(folder: str = "cp") -> dict[str, str]:
    return mgg_checkpoint.provenance(f"{folder}/mgg-resnet_bn.safetensors")


def test_a_checkpoint_says_how_it_was_made_and_is_made_once(run_cli: Cli, suite_file: SuiteFile) -> None:
    outcome = pretrain(run_cli, suite_file())
    assert outcome.code == 0
    assert outcome.out.strip().endswith("cp/mgg-resnet_bn.safetensors")
    assert "epoch 2 of 2, loss" in outcome.err
    known = said()
    assert known["source_model"] == "resnet_bn"
    assert known["source_model_tag"]
    network = plan.make(suite.load("small.yaml")).materials.models["resnet_bn"]
    assert known["weights_sha256"] == state_digest(network.load().net.state_dict())
    assert known["source_data"]
    assert known["seed"] == "0"
    assert known["epochs"] == "2 of 2"
    assert known["selection"] == "labelled"
    scores = json.loads(known["selection_scores"])
    assert set(scores) == {"1", "2"}
    assert scores[known["selected_epoch"]] == max(scores.values())
    assert not pathlib.Path("cp/mgg-resnet_bn.safetensors.state").exists()
    before = pathlib.Path("cp/mgg-resnet_bn.safetensors").read_bytes()
    assert "already made" in pretrain(run_cli, suite_file()).err
    assert pathlib.Path("cp/mgg-resnet_bn.safetensors").read_bytes() == before
    assert "already made" not in pretrain(run_cli, suite_file(), "--seed", 1).err
    assert said()["seed"] == "1"


@pytest.mark.faults
def test_an_interrupted_run_goes_on_to_the_same_bits(
    run_cli: Cli, suite_file: SuiteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = suite_file()
    assert pretrain(run_cli, file, epochs=4, out="whole").code == 0
    original, steps = MetaTrainer.step, []

    def interrupted(self: MetaTrainer, x: torch.Tensor) -> float:
        steps.append(1)
        if len(steps) == 10:  # in the third epoch of four batches each
            raise KeyboardInterrupt
        return original(self, x)

    monkeypatch.setattr(MetaTrainer, "step", interrupted)
    stopped = pretrain(run_cli, file, epochs=4)
    assert stopped.code == 130
    assert "interrupted; the same command resumes from the last complete epoch" in stopped.err
    outcome = pretrain(run_cli, file, epochs=4)
    assert "going on after epoch 2" in outcome.err
    assert "epoch 2 of 4" not in outcome.err
    whole, resumed = phi("whole"), phi()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert said()["selection_scores"] == said("whole")["selection_scores"]


def test_options_changed_after_an_interruption_start_anew(
    run_cli: Cli, suite_file: SuiteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = suite_file()
    with monkeypatch.context() as patched:
        select, calls = mgg_pretraining._select, []

        def interrupted(*arguments: object) -> float:
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return select(*arguments)  # type: ignore[arg-type]

        patched.setattr(mgg_pretraining, "_select", interrupted)
        assert pretrain(run_cli, file).code == 130
    outcome = pretrain(run_cli, file, "--inner-lr", "2e-4")
    assert "an earlier run with other options was left unfinished; starting anew" in outcome.err
    assert "epoch 1 of 2" in outcome.err


def test_a_loss_that_is_not_finite_stops_it_and_keeps_the_last_good_checkpoint(
    run_cli: Cli, suite_file: SuiteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = suite_file()
    outcome = pretrain(run_cli, file, "--inner-lr", "1e30")
    assert outcome.code == 3
    assert "stopped: the loss is " in outcome.err
    assert "in epoch 1 of 2; there is no checkpoint" in outcome.err
    assert not list(pathlib.Path("cp").glob("*.safetensors"))

    epoch = mgg_pretraining._Data.epoch
    poison = lambda self, n: (x * float("nan") if n == 2 else x for x in epoch(self, n))  # noqa: E731
    monkeypatch.setattr(mgg_pretraining._Data, "epoch", poison)
    outcome = pretrain(run_cli, file)
    assert outcome.code == 3
    assert "stopped: the loss is nan in epoch 2 of 2; the checkpoint of epoch 1 is kept" in outcome.err
    assert said()["epochs"] == "1 of 2"
    assert all(value.isfinite().all() for value in phi().values())
    assert said()["finished"] == "no", "the same command must not call it made"


@pytest.mark.parametrize(("options", "message"), [
    (["--epoch", "3"], "unknown option '--epoch'"),
    (["--epochs", "0"], "--epochs: Input should be greater than or equal to 1"),
    (["--images"], "--images: "),
    (["--model", "resnet"], "--model resnet: the suite has no such model"),
])  # fmt: skip
def test_a_bad_option_is_named_before_anything_runs(
    run_cli: Cli, suite_file: SuiteFile, options: list[str], message: str
) -> None:
    outcome = run_cli("pretrain", "mgg", suite_file(), *options)
    assert outcome.code == 2
    assert message in outcome.err
    assert "nothing was run" in outcome.err


def test_what_cannot_be_pretrained_says_why(run_cli: Cli, suite_file: SuiteFile, digit_folder: pathlib.Path) -> None:
    outcome = run_cli("pretrain", "tent", suite_file())
    assert outcome.code == 2
    assert "method 'tent' has no pre-training" in outcome.err
    outcome = pretrain(run_cli, suite_file(("ROOT", str(digit_folder)), text=FOLDER_SUITE))
    assert outcome.code == 2
    assert "the suite names no source images" in outcome.err
    assert "source_fraction" in outcome.err


def test_it_never_reads_a_test_image(
    run_cli: Cli, suite_file: SuiteFile, digit_folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    test = tmp_path / "undecodable"
    shutil.copytree(digit_folder, test)
    for file in sorted(test.glob("*/*.png"))[1:]:  # planning looks at the first one's size
        file.write_bytes(b"no image")
    text = FOLDER_SUITE.replace("ROOT", f'{test}", source: "{digit_folder}')
    assert pretrain(run_cli, suite_file(text=text), "--source-images", 30, epochs=1).code == 0
    assert said()["source_images"] == "30"
    outcome = pretrain(
        run_cli, suite_file(text=text.replace(f'source: "{digit_folder}"', f'source: "{test}"')), epochs=1
    )
    assert outcome.code == 2, "were they read, it would say so"
    assert "cannot be decoded" in outcome.err or "cannot identify" in outcome.err


def test_one_folder_is_split_and_only_the_rest_is_tested(
    run_cli: Cli, suite_file: SuiteFile, digit_folder: pathlib.Path
) -> None:
    text = FOLDER_SUITE.replace('"ROOT"', f'"{digit_folder}", source_fraction: 0.4')
    file = suite_file(text=text)
    dataset = plan.make(suite.load(str(file))).materials.datasets["resnet_bn"]
    assert dataset.source is not None
    apart, tested = set(dataset.source.ids), set(dataset.ids)
    assert (len(apart), len(tested)) == (12, 18)
    assert not apart & tested
    again = plan.make(suite.load(str(file))).materials.datasets["resnet_bn"]
    assert np.array_equal(again.ids, dataset.ids)
    other = plan.make(suite.load(str(file), sets=["data.seed=1"])).materials.datasets["resnet_bn"]
    assert set(other.ids) != tested
    assert pretrain(run_cli, file, epochs=1).code == 0
    assert said()["source_images"] == "12, a seeded part (0.4) of the folder whose rest is tested on"


# -- as a preparation of a run -----------------------------------------------------------------------------------------

QUICKLY = "{epochs: 2, images: 8, every: 1, source_images: 40, selection_images: 20, selection_batch: 20}"


def preparing(suite_file: SuiteFile, options: str = QUICKLY) -> pathlib.Path:
    return suite_file(("[source, tent]", f"[source, {{name: mgg, config: {{checkpoint: {{pretrain: {options}}}}}}}]"),
                      ("[clean, contrast]", "[contrast]"))  # fmt: skip


def test_a_run_prepares_what_its_trials_need_once(run_cli: Cli, suite_file: SuiteFile) -> None:
    command = ["run", preparing(suite_file), "--executor", "local", "--out", "out"]
    planned = run_cli(*command, "--dry-run")
    assert (planned.code, planned.out) == (0, "")
    assert "preparations to run before trials can be planned: mgg-resnet_bn" in planned.err
    assert not pathlib.Path("out").exists()

    outcome = run_cli(*command)
    assert outcome.code == 0, outcome.err
    assert "mgg-resnet_bn: epoch 2 of 2, loss" in outcome.err
    [made] = pathlib.Path("out/prepared").glob("*.safetensors")
    assert not list(pathlib.Path("out/prepared/unfinished").iterdir())
    torch.set_num_threads(1)  # as it was when the run prepared; its trials had all
    assert pretrain(run_cli, suite_file()).code == 0
    assert all(torch.equal(a, phi()[name]) for name, a in safetensors.torch.load_file(made).items())
    rows = load_results("out", table="segments").set_index("label")
    assert "resnet_bn of small, seed 0" in rows.loc["mgg", "checkpoint"]
    asked = json.loads(pathlib.Path(f"out/trials/{rows.loc['mgg', 'key']}.json").read_text())["asked"]
    assert asked["method"]["config"]["checkpoint"] == {"sha256": file_sha256(made)}

    again = run_cli("run", preparing(suite_file), *command[2:])
    assert "2 finished, 0 to run" in again.err
    assert "epoch" not in again.err


def test_another_option_is_another_preparation(suite_file: SuiteFile) -> None:
    loaded = [suite.load(str(preparing(suite_file, QUICKLY.replace("epochs: 2", f"epochs: {n}")))) for n in (1, 2, 2)]
    jobs = [job for each in loaded for job in pretrainings(each, lambda *_: True).values()]
    files = [job.preparation(ImageCache(None), torch.device("cpu")).file for job in jobs]
    assert files[0] != files[1] == files[2]


@pytest.mark.faults
def test_an_interrupted_preparation_goes_on(
    run_cli: Cli, suite_file: SuiteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["run", preparing(suite_file), "--executor", "local", "--out", "out"]
    original, steps = MetaTrainer.step, []

    def interrupted(self: MetaTrainer, x: torch.Tensor) -> float:
        steps.append(1)
        if len(steps) == 6:  # in the second epoch of four batches each
            raise KeyboardInterrupt
        return original(self, x)

    monkeypatch.setattr(MetaTrainer, "step", interrupted)
    stopped = run_cli(*command)
    assert stopped.code == 130
    assert "interrupted; finished trials are kept. To resume:" in stopped.err
    outcome = run_cli(*command)
    assert outcome.code == 0, outcome.err
    assert "going on after epoch 1" in outcome.err


def test_what_is_not_asked_for_is_not_prepared(run_cli: Cli, suite_file: SuiteFile) -> None:
    outcome = run_cli("run", preparing(suite_file), "--executor", "local", "--out", "out", "--only", "method=source")
    assert outcome.code == 0, outcome.err
    assert not pathlib.Path("out/prepared").exists()


@pytest.mark.parametrize(("part", "asked"), [("config", 1), ("per_model", 0), ("grid", 0)])
def test_what_is_overridden_is_not_prepared(suite_file: SuiteFile, part: str, asked: int) -> None:
    file = "package:tta_bench.methods/weights/digits_c/mgg-vit_ln.safetensors"
    won = {"config": "", "per_model": f", per_model: {{resnet_bn: {{checkpoint: '{file}'}}}}",
           "grid": f", grid: {{checkpoint: ['{file}']}}"}[part]  # fmt: skip
    suite_text = suite_file(("[source, tent]", f"[{{name: mgg, config: {{checkpoint: pretrain}}{won}}}]"))
    assert len(pretrainings(suite.load(str(suite_text)), lambda *_: True)) == asked


def test_a_wrong_option_is_shown_where_it_stands(run_cli: Cli, suite_file: SuiteFile) -> None:
    file = preparing(suite_file, "{epochs: 2, imags: 8}")
    outcome = run_cli("run", file, "--out", "out")
    assert outcome.code == 2
    column = next(line.index("imags") + 1 for line in file.read_text().splitlines() if "imags" in line)
    assert f":{column}: unknown key 'imags'" in outcome.err
    assert "images" in outcome.err


@pytest.mark.faults
def test_a_method_that_learns_nothing_has_no_preparation(run_cli: Cli, suite_file: SuiteFile) -> None:
    file = suite_file(("[source, tent]", "[{name: tent, config: {optimizer: mgg, optimizer_options: {checkpoint: pretrain}}}]"))  # fmt: skip
    outcome = run_cli("run", file, "--out", "out")
    assert outcome.code == 2
    assert "no such file: pretrain" in outcome.err
