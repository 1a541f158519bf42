"""``tta-bench pretrain``: pre-train a method on a suite's source images; the harness names no method."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from rich.console import Console

from tta_bench import suite
from tta_bench.adapter import Config
from tta_bench.data.cache import ImageCache, default_root
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.preparation import CannotGoOn
from tta_bench.pretraining import Pretraining
from tta_bench.suite import plan
from tta_bench.suite.document import parse


@dataclass(frozen=True)
class PretrainOptions:
    """Options of the command; ``method_options`` are those of the method, unparsed."""

    name: str
    suite: str
    method_options: Sequence[str] = ()
    models: Sequence[str] = ()
    sets: Sequence[str] = ()
    seed: int = 0
    out: str | None = None
    cache: str | None = None
    device: str | None = None
    plugins: Sequence[str] = ()


def run(options: PretrainOptions) -> int:
    """Pre-train for each source model in turn; returns 3 if one stopped early, else 0.

    Raises:
        UsageError: invalid input; nothing was run.
    """
    console = Console(stderr=True, highlight=False)
    loaded = suite.load(options.suite, sets=options.sets, plugins=options.plugins)
    cls: Any = loaded.registry.load(options.name)
    if not hasattr(cls, "pretrain"):
        raise UsageError(Problem(f"method {options.name!r} has no pre-training", hint="run it without"))
    settings = _settings(cls.Pretraining, options.method_options)
    sources = plan.sources(loaded)
    chosen = _chosen(options.models, sources)
    entry, data_seed = loaded.registry.entry(options.name), loaded.suite.data.seed
    jobs = {name: Pretraining(entry, settings, loaded.suite.name, data_seed, *sources[name], options.seed)
            for name in chosen}  # fmt: skip
    for job in jobs.values():
        job.source()
    return max([_one(name, job, options, console) for name, job in jobs.items()])


def _one(name: str, job: Pretraining, options: PretrainOptions, console: Console) -> int:
    def say(text: str) -> None:
        console.print(f"{name}: {text}", markup=False, soft_wrap=True)

    cache = ImageCache(None) if options.cache == "off" else ImageCache(pathlib.Path(options.cache or default_root()))
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    out = pathlib.Path(options.out or pathlib.Path("checkpoints") / job.suite) / f"{job.name}.safetensors"
    try:
        say(job.run(out, cache, device, say))
    except CannotGoOn as error:
        say(f"stopped: {error}")
        return 3
    except KeyboardInterrupt:
        say("interrupted; the same command resumes from the last complete epoch")
        raise
    print(out, flush=True)
    return 0


def _settings(cls: type[Config], arguments: Sequence[str]) -> Config:
    """The method's options, parsed from ``--option value`` pairs."""
    values: dict[str, Any] = {}
    for flag, value in zip(arguments[::2], [*arguments[1::2], ""], strict=False):
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
