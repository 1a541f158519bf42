"""``tta-bench pretrain``: hands a method what it may learn from before any test; the harness names no method."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from rich.console import Console

from tta_bench import __version__, suite
from tta_bench.adapter import Config
from tta_bench.data import Dataset, corrupted_source
from tta_bench.data.base import digest
from tta_bench.data.cache import ImageCache, default_root
from tta_bench.data.digests import Digests
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.models import Network
from tta_bench.pretraining import PretrainJob, Stopped
from tta_bench.registry import code_sha256
from tta_bench.suite import plan
from tta_bench.suite.document import parse


@dataclass(frozen=True)
class Options:
    """What the command line says; each field is the option of that name."""

    name: str
    suite: str
    further: Sequence[str] = ()
    models: Sequence[str] = ()
    sets: Sequence[str] = ()
    seed: int = 0
    out: str | None = None
    cache: str | None = None
    device: str | None = None
    plugins: Sequence[str] = ()


def run(options: Options) -> int:
    """Pre-train for each source model in turn; 3 where one had to stop, 130 when interrupted, else 0.

    Raises:
        UsageError: nothing was done.
    """
    console = Console(stderr=True, highlight=False)
    loaded = suite.load(options.suite, sets=options.sets, plugins=options.plugins)
    cls: Any = loaded.registry.load(options.name)
    if not hasattr(cls, "pretrain"):
        raise UsageError(
            Problem(f"method {options.name!r} learns nothing before the test", hint="it needs no pretrain")
        )
    settings = _settings(cls.Pretraining, options.further)
    sources = plan.sources(loaded)
    chosen = _chosen(options.models, sources)
    cache = ImageCache(None) if options.cache == "off" else ImageCache(pathlib.Path(options.cache or default_root()))
    folder = pathlib.Path(options.out or pathlib.Path("checkpoints") / loaded.suite.name)
    code = code_sha256(loaded.registry.entry(options.name))
    makers = {name: functools.partial(_job, options, settings, loaded, code, folder, cache, name, *sources[name])
              for name in chosen}  # fmt: skip
    for _, dataset, _ in (sources[name] for name in chosen):
        corrupted_source(dataset, loaded.suite.data.seed)
    return max([_one(cls, name, make, console) for name, make in makers.items()])


def _one(cls: Any, name: str, make: Callable[[Callable[[str], None]], PretrainJob], console: Console) -> int:
    def say(text: str) -> None:
        console.print(f"{name}: {text}", markup=False, soft_wrap=True)

    job = make(say)
    try:
        say(cls.pretrain(job))
    except Stopped as error:
        say(f"stopped: {error}")
        return 3
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from the last whole epoch")
        raise
    print(job.out, flush=True)
    return 0


def _settings(cls: type[Config], further: Sequence[str]) -> Config:
    """The method's options from ``--option value`` pairs."""
    values: dict[str, Any] = {}
    for flag, value in zip(further[::2], [*further[1::2], ""], strict=False):
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name not in cls.model_fields:
            known = [f"--{field.replace('_', '-')}" for field in cls.model_fields]
            raise UsageError(Problem(f"unknown option {flag!r}", hint=near_miss(flag, known)))
        values[name] = parse(value, flag).data
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise UsageError(
            [Problem(f"--{str(e['loc'][0]).replace('_', '-')}: {e['msg']}") for e in error.errors()]
        ) from error


def _chosen(models: Sequence[str], known: Iterable[str]) -> list[str]:
    names = list(known)
    for model in models:
        if model not in names:
            raise UsageError(Problem(f"--model {model}: the suite has no such model", hint=near_miss(model, names)))
    return list(models) or names


def _job(
    options: Options, settings: Config, loaded: suite.LoadedSuite, code: str, folder: pathlib.Path,
    cache: ImageCache, name: str, network: Network, dataset: Dataset, asked: Mapping[str, Any],
    say: Callable[[str], None],
) -> PretrainJob:  # fmt: skip
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    source = corrupted_source(dataset, loaded.suite.data.seed)
    pristine = network.load().to(device)
    pristine.weights_sha256 = asked["weights_sha256"]
    assert dataset.source is not None
    provenance = {
        "method": options.name,
        "suite": loaded.suite.name,
        "source_model": name,
        "source_model_tag": network.tag,
        "weights_sha256": asked["weights_sha256"],
        "source_data": digest(dataset.source.fingerprint(dataset.source.all_rows(), Digests())),
        "source_images": f"{len(dataset.source.ids)}" + (f", {dataset.source_note}" if dataset.source_note else ""),
        "seed": str(options.seed),
        "options": settings.model_dump_json(),
        "tta_bench": __version__,
        "torch": torch.__version__,
        "device": device.type,
    }
    shape = {
        "model": dict(asked),
        "code": code,
        "strengths": dataset.strengths,
        "data_seed": loaded.suite.data.seed,
    }
    same = {k: v for k, v in provenance.items() if k not in ("tta_bench", "torch", "device")}
    provenance["asked"] = digest([shape, same])
    out = folder / f"{options.name}-{name}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    return PretrainJob(settings, out, device, dataset.side, options.seed, dataset.source.labels, provenance, say,
                       pristine, source, cache)  # fmt: skip
