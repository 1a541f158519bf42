"""Small SQLite files in the user's cache folder; where one is unusable, what it held is found out again."""

from __future__ import annotations

import contextlib
import pathlib
import sqlite3
from collections.abc import Callable
from typing import Any


class Memory:
    """One table in a file.

    Args:
        path: the file.
        table: the statement that makes the table.

    Attributes:
        trouble: why the file cannot be used, or empty.
    """

    def __init__(self, path: pathlib.Path, table: str):
        self._path, self._table, self.trouble = path, table, ""

    def query(self, statement: Callable[[sqlite3.Connection], Any]) -> Any:
        """The result of a query, committed; None where the file is unusable, with the reason in ``trouble``."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(self._path, timeout=30)) as memory, memory:
                memory.execute(self._table)
                return statement(memory)
        except (OSError, sqlite3.Error) as error:
            self.trouble = f"{self._path}: {error}"
            if type(error) is sqlite3.DatabaseError:  # corrupt, not merely busy or unreachable
                self._path.unlink(missing_ok=True)
            return None
