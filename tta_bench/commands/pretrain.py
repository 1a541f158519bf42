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
from tta_bench.errors import Problem, UsageError, near_miss, text_of
from tta_bench.files import obstacle_to_writing
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
    device, cache, out = _device(options.device), _cache(options.cache), _folder(options.out, loaded.suite.name)
    sources = plan.sources(loaded)
    chosen = _chosen(options.models, sources)
    entry, data_seed = loaded.registry.entry(options.name), loaded.suite.data.seed
    jobs = {name: Pretraining(entry, settings, loaded.suite.name, data_seed, *sources[name], options.seed)
            for name in chosen}  # fmt: skip
    for job in jobs.values():
        job.source()
    return max([_one(name, job, out, cache, device, console) for name, job in jobs.items()])


def _device(name: str | None) -> torch.device:
    """The device that ``--device`` names, on which something was computed; a GPU by default, if there is one."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.ones(1, device=device).add(1).item()
    except Exception as error:  # each device has errors of its own
        reason = (text_of(error).splitlines() or [type(error).__name__])[0][:200]
        gpus = torch.cuda.device_count()
        hint = f"--device cpu{', or cuda:0' if gpus else ''}; torch finds {gpus or 'no'} CUDA device{'s' * (gpus != 1)}"
        raise UsageError(Problem(f"--device {name} cannot be used: {reason}", hint=hint)) from error
    return device


def _cache(folder: str | None) -> ImageCache:
    root = None if folder == "off" else pathlib.Path(folder or default_root())
    if root is not None and (obstacle := obstacle_to_writing(root.absolute())):
        hint = "choose another with --cache DIR, or --cache off to decode images on every use"
        raise UsageError(Problem(f"the image cache cannot be written: {obstacle}", str(root), hint=hint))
    return ImageCache(root)


def _folder(out: str | None, suite_name: str) -> pathlib.Path:
    folder = pathlib.Path(out or pathlib.Path("checkpoints") / suite_name)
    if obstacle := obstacle_to_writing(folder.absolute()):
        hint = "choose another folder with --out DIR"
        raise UsageError(Problem(f"checkpoints cannot be written: {obstacle}", str(folder), hint=hint))
    return folder


def _one(
    name: str, job: Pretraining, folder: pathlib.Path, cache: ImageCache, device: torch.device, console: Console
) -> int:
    def say(text: str) -> None:
        console.print(f"{name}: {text}", markup=False, soft_wrap=True)

    out = folder / f"{job.name}.safetensors"
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
