"""``tta-bench data get``: fetch a published data set, verify and unpack it, and print the suite's line for it.

All of a set's own files lie in ``DIR/.tta-bench-get/NAME``: parts of downloads, archives, what is being unpacked, the
lock, and ``state.json``, which says what became of each file. An archive is unpacked there, and what it held is then
renamed into place: ``moving`` is written before the first rename and ``done`` after the last, so a break at any point is
seen, and no folder of the user's is taken for a complete one or replaced.
"""

from __future__ import annotations

import json
import pathlib
import shlex
import shutil
import time
from typing import Any

from rich.console import Console

from tta_bench.data.download import fetch, unpack, wrong_checksum
from tta_bench.data.published_sets import SETS, Download, Remote
from tta_bench.errors import Problem, Stopped, UsageError, near_miss
from tta_bench.files import locked, write_json

WORK = ".tta-bench-get"
UNPACKED = 1.1  # size of what is unpacked, archives being 1: files fill whole blocks
EVERY_S = 5.0  # between two lines of progress


def get(name: str, folder: str) -> int:
    """Fetch data set ``name`` into ``folder``; the same command goes on after a break, and does nothing when all is there.

    Returns:
        The exit code: 0, or 3 where it had to stop; what was fetched is kept.

    Raises:
        UsageError: no such set, it must be fetched by hand, the disk is too small, or other files are in the way.
        KeyboardInterrupt: Ctrl-C; what was fetched is kept.
    """
    if name not in SETS:
        raise UsageError(Problem(f"no published data set {name!r}", "data get", hint=near_miss(name, SETS)))
    published, root, console = SETS[name], pathlib.Path(folder).expanduser().absolute(), Console(stderr=True)
    if not published.files:
        raise UsageError(
            Problem(f"{published.title} must be fetched by hand", published.page, hint=by_hand(published, root))
        )
    try:
        with locked(root / WORK / name, "the download", "wait for it, or choose another folder"):
            _Fetching(published, root, root / WORK / name, console).all()
    except Stopped as stopped:
        console.print(str(stopped), markup=False, highlight=False, soft_wrap=True)
        return 3
    except KeyboardInterrupt:
        console.print("interrupted; what was fetched is kept, and the same command goes on with it")
        raise
    print("\n".join(suite_lines(published, root)))
    return 0


def by_hand(published: Download, root: pathlib.Path) -> str:
    """What to do for a set without address, and the suite's line then."""
    lines = [published.by_hand.replace("DIR", shlex.quote(str(root))), f"expected: {published.layout}"]
    return "\n  ".join([*lines, *suite_lines(published, root)])


def suite_lines(published: Download, root: pathlib.Path) -> list[str]:
    """The suite's line, and the variable of shipped suites, for a set that lies in ``root``."""
    place = str(root / published.root)
    lines = [published.line.format(root=json.dumps(place, ensure_ascii=False))]
    return [*lines, f"export {published.variable}={shlex.quote(place)}"] if published.variable else lines


class _Fetching:
    """One call of the command, under the lock.

    Args:
        published: the set.
        root: the user's folder.
        work: the set's folder of downloads in it.
        console: for progress.
    """

    def __init__(self, published: Download, root: pathlib.Path, work: pathlib.Path, console: Console):
        self._set, self._target, self._work, self._console = published, root / published.folder, work, console
        self._root, self._shown = root, 0.0
        self._state: dict[str, dict[str, Any]] = self._read_state()

    def all(self) -> None:
        left = [remote for remote in self._set.files if not self._is_done(remote)]
        self._check_place(left)
        self._check_space(left)
        for remote in left:
            self._one(remote)

    # -- before anything is fetched ------------------------------------------------------------------------------------

    def _read_state(self) -> dict[str, dict[str, Any]]:
        path = self._work / "state.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}

    def _is_done(self, remote: Remote) -> bool:
        known = self._state.get(remote.name, {})
        return known.get("is") == "done" and all((self._target / entry).exists() for entry in known["entries"])

    def _check_place(self, left: list[Remote]) -> None:
        """
        Raises:
            UsageError: what would be fetched is there already, from elsewhere or partly removed.
        """
        ours = [entry for known in self._state.values() for entry in known["entries"]]
        place = self._root / self._set.root
        foreign = [place] if not ours and place.exists() else []
        rest = [entry for remote in left if self._state.get(remote.name, {}).get("is") == "done"
                for entry in self._state[remote.name]["entries"]]  # fmt: skip
        foreign += [self._target / entry for entry in rest if (self._target / entry).exists()]
        if foreign:
            hint = f"use it as it is ({suite_lines(self._set, self._root)[0]}), move it away, or choose another folder"
            raise UsageError(Problem("is there already, and not known to be complete", str(foreign[0]), hint=hint))

    def _check_space(self, left: list[Remote]) -> None:
        """
        Raises:
            UsageError: the disk is too small for what is left: one archive at a time, and all that they hold.
        """
        left = [remote for remote in left if self._state.get(remote.name, {}).get("is") != "moving"]
        to_fetch = [remote.bytes - self._fetched(remote) for remote in left]
        archives = [remote for remote in left if _is_archive(remote)]
        needed = sum(UNPACKED * remote.bytes for remote in archives)
        needed += max(to_fetch, default=0) if archives else sum(to_fetch)
        free = shutil.disk_usage(self._work).free
        if needed > free:
            message = f"{self._set.title} needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
            raise UsageError(Problem(message, str(self._root), hint="free the disk, or choose another folder"))

    def _fetched(self, remote: Remote) -> int:
        """How many bytes of a file are there."""
        places = [self._work / f"{remote.name}.part", self._work / remote.name, self._root / remote.name]
        return max((place.stat().st_size for place in places if place.exists()), default=0)

    # -- one file ------------------------------------------------------------------------------------------------------

    def _one(self, remote: Remote) -> None:
        scratch = self._work / f"{remote.name}.unpacking"
        if self._state.get(remote.name, {}).get("is") != "moving":
            shutil.rmtree(scratch, ignore_errors=True)  # of an interrupted call
            self._fill(scratch, remote)
            entries = sorted(path.name for path in scratch.iterdir())
            self._refuse_existing(entries)
            self._note(remote, "moving", entries)
        self._target.mkdir(parents=True, exist_ok=True)
        for path in sorted(scratch.iterdir()) if scratch.exists() else []:
            path.replace(self._target / path.name)
        self._note(remote, "done", self._state[remote.name]["entries"])
        shutil.rmtree(scratch, ignore_errors=True)
        (self._work / remote.name).unlink(missing_ok=True)

    def _fill(self, scratch: pathlib.Path, remote: Remote) -> None:
        """Make the folder of what a file holds: an archive's members, or the file itself."""
        brought = self._root / remote.name  # by the user, who may keep it
        fetched = brought if _is_archive(remote) and brought.is_file() else self._work / remote.name
        if fetched == brought and (fault := wrong_checksum(brought, remote)):
            raise UsageError(Problem(fault, str(brought), hint="move it away, and it is fetched"))
        if not fetched.exists():
            fetch(remote, self._work, self._progress)
        self._console.print(f"{remote.name}: {'unpacking' if _is_archive(remote) else 'verified'}", highlight=False)
        if _is_archive(remote):
            unpack(fetched, scratch)
        else:
            scratch.mkdir()
            fetched.replace(scratch / remote.name)

    def _refuse_existing(self, entries: list[str]) -> None:
        if there := [entry for entry in entries if (self._target / entry).exists()]:
            hint = "move it away, or choose another folder"
            raise UsageError(
                Problem("is there already, and would be replaced", str(self._target / there[0]), hint=hint)
            )

    def _note(self, remote: Remote, state: str, entries: list[str]) -> None:
        self._state[remote.name] = {"is": state, "entries": entries}
        write_json(self._work / "state.json", self._state)

    def _progress(self, remote: Remote, there: int) -> None:
        if time.monotonic() - self._shown > EVERY_S or there == remote.bytes:
            self._console.print(
                f"{remote.name}: {there / 2**20:,.0f} of {remote.bytes / 2**20:,.0f} MiB", highlight=False
            )
            self._shown = time.monotonic()


def _is_archive(remote: Remote) -> bool:
    return ".tar" in remote.name
