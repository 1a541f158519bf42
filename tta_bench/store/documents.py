"""The JSON files of a run as a whole, checked when they are read: its plan, sessions, tables' index and status.

A checksum tells whether a file is as it was written. The models say what readers rely on, for files without one: earlier
versions wrote none. Keys that they do not name are let pass.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from tta_bench.errors import Problem, UsageError
from tta_bench.files import checksum_of, sealed, write_json

PLAN, RUN, TABLES = "plan.json", "run.json", "tables.json"

_Int = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # pandas holds no larger ones
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Place = tuple[str, _Count, str]


class Document(BaseModel):
    """Base of the models."""

    model_config = ConfigDict(strict=True, extra="allow")


class SettingValues(Document):
    """As :meth:`tta_bench.setting.Setting.of` takes them."""

    model_config = ConfigDict(strict=True, extra="forbid")
    dataset: str
    protocol: str
    batch_size: _Count
    precision: str
    parameters: dict[str, Any]
    severities: list[FiniteFloat]
    mask: str = ""
    compile: str = "off"
    deterministic: bool = True
    varied: dict[str, Any] = {}


class AskedMethod(Document):
    config: dict[str, Any]


class AskedTrial(Document):
    """What a trial's key is the digest of, as far as ``merge`` compares it."""

    method: AskedMethod


class PlannedTrial(Document):
    """A trial of ``plan.json``; :class:`tta_bench.store.schema.Asked` has the meanings."""

    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # it names files
    label: str
    method: str
    variant: str
    preset: str
    preset_missing: str
    config: dict[str, Any]
    config_keyed: dict[str, Any] = {}
    model: str
    setting: str
    setting_values: SettingValues
    dataset: str
    protocol: str
    protocol_parameters: str
    adapt_images: _Count | None
    cost_ratio: FiniteFloat | None
    classes: _Count | None = None
    shifts: Annotated[list[tuple[str, FiniteFloat, str]], Field(min_length=1)]
    families: list[str] = []
    segments: Annotated[list[_Place], Field(min_length=1)]
    cells: list[tuple[_Count, _Count, _Count]]
    seed: _Int
    batch_size: _Count
    images: _Count
    precision: str
    data: str
    asked: AskedTrial

    @model_validator(mode="after")
    def _cells_are_there(self) -> PlannedTrial:
        if not all(segment < len(self.segments) and shift < len(self.shifts) for segment, shift, _ in self.cells):
            raise ValueError("a cell is of no segment or no shift")
        if self.families and len(self.families) != len(self.shifts):
            raise ValueError("families are not as many as shifts")
        return self


class Plan(Document):
    """``plan.json``"""

    numerics_version: int
    suite: str
    notes: list[str]
    all_images: bool
    models: dict[str, dict[str, Any]]
    axes: list[str] = []
    trials: Annotated[list[PlannedTrial], Field(min_length=1)]


class UsedModel(Document):
    name: str
    kind: str


class UsedMethod(Document):
    name: str
    label: str | None = None
    config: dict[str, Any] = {}
    per_model: dict[str, dict[str, Any]] = {}
    grid: dict[str, list[Any]] = {}
    papers: list[str] = []


class UsedData(Document):
    kind: str = ""


class UsedSuite(Document):
    """The suite of a session, as far as reports tell of it."""

    plugins: list[str] = []
    data: UsedData = UsedData()
    models: list[UsedModel] = []
    methods: list[UsedMethod] = []


class Session(Document):
    session: _Count
    tta_bench: str
    packages: dict[str, str]
    command: list[str] = []
    suite: UsedSuite | None = None


class Run(Document):
    """``run.json``"""

    sessions: list[Session]


class Tables(Document):
    """``tables.json``: which trials the written tables are of."""

    sources: str
    tables: dict[str, str]
    stale: _Count
    damaged: list[str]


class Status(Document):
    """``status.json``"""

    state: str
    host: str
    pid: int
    updated: Annotated[FiniteFloat, Field(ge=0)]
    session: str
    workers: list[str]


def write(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Write a file with its checksum, atomically."""
    write_json(path, sealed(content))


def plan(run: pathlib.Path) -> dict[str, Any]:
    """The content of ``plan.json``.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    return read(run / PLAN, Plan)


def sessions(run: pathlib.Path) -> list[dict[str, Any]]:
    """The sessions of ``run.json``.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    own: list[dict[str, Any]] = read(run / RUN, Run)["sessions"]
    return own


def read(path: pathlib.Path, model: type[Document]) -> dict[str, Any]:
    """The content of a file, without its checksum.

    Raises:
        UsageError: it is missing or damaged.
    """
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = "give the whole folder, as 'tta-bench run' printed it last"
        raise UsageError(Problem(f"not a run: it has no {path.name}", str(path.parent), hint=hint)) from error
    except OSError as error:
        raise _damaged(path, f"cannot be read: {error.strerror}") from error
    try:
        content = json.loads(text)
        model.model_validate_json(text)
        checksum = content.pop("checksum", None)
        intact = checksum is None or checksum == checksum_of(content)
    except ValidationError as error:
        raise _damaged(path, f"is damaged: {_first(error)}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "is damaged: it is no JSON") from error
    if not intact:
        raise _damaged(path, "is damaged: it does not match its checksum")
    return content  # type: ignore[no-any-return]


def _first(error: ValidationError) -> str:
    """Where in the file the first fault is, and what it is."""
    first, *_ = error.errors(include_url=False, include_input=False, include_context=False)
    where = ".".join(map(str, first["loc"]))
    return f"{where[:100]}: {first['msg'][:200]}" if where else first["msg"][:200]


def _damaged(path: pathlib.Path, what: str) -> UsageError:
    hint = "run the suite again into this folder: it writes the file anew and keeps the results"
    return UsageError(Problem(what, str(path), hint=hint))
