"""A running method reaches no label, path, shift name or later image; planted ones are caught."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from networks import batches, ready, small_model
from plugins import Replaced, supervisor
from torch import Tensor

from tta_bench import suite
from tta_bench.adapter import Adapter
from tta_bench.methods.source import Source
from tta_bench.methods.tent import Tent
from tta_bench.run.runner import Supervisor
from tta_bench.suite import plan
from tta_bench.testing import Secrets, find_leaks

_secrets = Secrets()  # a module's global: the walk does not look there


class Spy(Tent):
    """Looks around in every step."""

    name = "spy"

    def step(self, x: Tensor) -> Tensor:
        scores = super().step(x)
        searched = {"adapter": self, "x": x, "context": self.context, "config": self.config}
        print("\n".join(find_leaks(searched, _secrets)))
        return scores


@pytest.fixture
def trial(cache: pathlib.Path, tmp_path: pathlib.Path, digit_folder: pathlib.Path) -> tuple[plan.Trial, Supervisor]:
    from conftest import DIGITS_SUITE

    text = DIGITS_SUITE.replace("{kind: digits, max_images: 100}", f"{{kind: folder, root: {digit_folder}, "
                                "preprocess: none, strengths: cifar}").replace("batch_size: 40", "batch_size: 12")  # fmt: skip
    (tmp_path / "s.yaml").write_text(text)
    made = plan.make(suite.load(str(tmp_path / "s.yaml")))
    chosen = next(t for t in made.trials if t.method == "tent" and t.stream.shifts[0].name == "contrast")
    return chosen, supervisor(made.materials, cache)


def secrets_of(trial: plan.Trial, bench: Supervisor) -> Secrets:
    data, stream = bench.materials.datasets[trial.model], bench.streams.build(trial.model, trial.stream)
    images = bench.cache.images(bench.materials.cache_entry(trial.model, trial.stream, trial.stream.shifts[0]))
    order = data.labels[stream.image]
    return Secrets(
        labels=[data.labels, order, *(order[i:j] for i, j in zip(stream.bounds[:-1], stream.bounds[1:], strict=True))],
        paths=frozenset([str(data.clean.root), *data.ids]),  # type: ignore[attr-defined]
        shifts=frozenset(["contrast", "contrast-5"]),
        later=images.take(stream.image[stream.bounds[-2] :]),
    )


def printed_by(cls: type[Adapter], trial: tuple[plan.Trial, Supervisor]) -> list[str]:
    wanted, bench = trial
    bench.materials = dataclasses.replace(bench.materials, registry=Replaced(tent=cls))
    result = bench.run(wanted)
    bench.end_child()
    assert result.status == "ok", result.traceback
    return result.log.split("\n")


def test_a_method_reaches_no_label_path_shift_or_later_image(
    trial: tuple[plan.Trial, Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_leaks._secrets", secrets_of(*trial))
    found = [leak for leak in printed_by(Spy, trial) if leak]
    # the last batch is no later image once it is the present one: only x itself may then hold it
    assert [leak for leak in found if not leak.startswith("x:")] == []
    assert found == ["x: a later image"], "the walk did look: in the third step x is what was secret before"


Plant = Callable[[Adapter, Tensor, Secrets], None]


def plant_labels(adapter: Any, x: Tensor, secrets: Secrets) -> None:
    adapter.deep = {"list": [secrets.labels[1]]}


def plant_batch_labels_in_closure(adapter: Any, x: Tensor, secrets: Secrets) -> None:
    hidden = torch.as_tensor(secrets.labels[2].copy())
    adapter.callback = lambda: hidden


def plant_label_iterator(adapter: Any, x: Tensor, secrets: Secrets) -> None:
    def generate(labels: list[int]) -> Iterator[int]:
        yield from labels

    adapter.iterator = generate(secrets.labels[0].tolist())
    next(adapter.iterator)


def plant_path(adapter: Any, x: Tensor, secrets: Secrets) -> None:
    adapter.config_of_data = (pathlib.Path(sorted(secrets.paths)[0]) / "sub",)


def plant_shift(adapter: Any, x: Tensor, secrets: Secrets) -> None:
    adapter.loader = functools.partial(print, shift="contrast-5")


def plant_on_class(adapter: Any, x: Tensor, secrets: Secrets) -> None:
    type(adapter).shared = {"contrast": 1}


def plant_later_image(adapter: Any, x: Tensor, secrets: Secrets) -> None:
    adapter.buffer = torch.as_tensor(secrets.later).permute(0, 3, 1, 2).float() / 255


def plant_view_of_all_images(adapter: Any, x: Tensor, secrets: Secrets) -> None:
    whole = torch.cat([torch.zeros_like(x), (torch.as_tensor(secrets.later).permute(0, 3, 1, 2) / 255).contiguous()])
    adapter.view = whole[: len(x)]  # what a loader that slices shared memory would hand out


PLANTS: dict[Plant, str] = {
    plant_labels: "adapter.deep['list'][0]: label array of 30",
    plant_batch_labels_in_closure: "adapter.callback (closure hidden): label array of 12",
    plant_label_iterator: "label array of 30",
    plant_path: "adapter.config_of_data[0]: file path",
    plant_shift: "adapter.loader.keywords['shift']: shift name 'contrast-5'",
    plant_on_class: "shared (key): shift name 'contrast'",
    plant_later_image: "adapter.buffer: a later image",
    plant_view_of_all_images: "adapter.view: a later image",
}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_secret_is_caught(plant: Plant, trial: tuple[plan.Trial, Supervisor]) -> None:
    class Planted(Source):
        shared: ClassVar[dict[str, int]] = {}

    adapter, [x] = ready(Planted, small_model("batch")), batches(1)
    secrets = secrets_of(*trial)
    assert find_leaks({"adapter": adapter, "x": x}, secrets) == []
    plant(adapter, x, secrets)
    leaks = find_leaks({"adapter": adapter, "x": x}, secrets)
    assert any(PLANTS[plant] in leak for leak in leaks), leaks


def test_x_owns_its_memory(trial: tuple[plan.Trial, Supervisor]) -> None:
    class Measures(Tent):
        def step(self, x: Tensor) -> Tensor:
            print(x.untyped_storage().nbytes() == x.numel() * x.element_size(), bool(x.min() >= 0), bool(x.max() <= 1))
            return self.predict(x)

    assert printed_by(Measures, trial) == ["True True True"] * 3 + [""]
