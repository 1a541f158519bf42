"""Store the numbers of the pinned runs anew, and say how far they are from those that were stored.

    python tests/pinned/store.py

For a change that is meant to move numbers: raise ``tta_bench.NUMERICS_VERSION`` first.
"""

from __future__ import annotations

import pathlib
import tempfile

import reference


def main() -> None:
    """Make, compare, store."""
    with tempfile.TemporaryDirectory() as scratch:
        made = reference.make(list(reference.RUNS), pathlib.Path(scratch))
    if (reference.FOLDER / "made_with.json").exists():
        before = reference.stored()
        print(reference.changes(before, made))
        if before.made_with == made.made_with and reference.differences(before, made):
            print("numbers moved, NUMERICS_VERSION did not: raise it and store again")
    reference.store(made)


if __name__ == "__main__":
    main()
