"""A look at image files: sizes, formats, what will be converted, and files that are no images.

Only headers are read, which takes a small part of the time of decoding; pixels that are damaged are not noticed.
"""

from __future__ import annotations

import multiprocessing
import pathlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace

from tta_bench.data.decoding import conversions, opened
from tta_bench.data.geometry import Geometry, ImageFiles, size_fault
from tta_bench.errors import Problem, UsageError

CHUNK = 500  # files that one call in a worker process looks at
FILES_PER_PROCESS = 2000  # below this, starting a process costs more than it saves


@dataclass
class Look:
    """What the headers of some image files say.

    Attributes:
        images: number of files.
        bytes: their size on disk.
        formats: number of files by format, such as "JPEG".
        sizes: by (width, height) in pixels.
        converted: by kind of conversion to 8-bit RGB.
        faults: of files that a run would refuse, one each.
    """

    images: int = 0
    bytes: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    converted: Counter[str] = field(default_factory=Counter)
    faults: list[Problem] = field(default_factory=list)

    def add(self, other: Look) -> None:
        """Add what other files say."""
        self.images += other.images
        self.bytes += other.bytes
        self.formats += other.formats
        self.sizes += other.sizes
        self.converted += other.converted
        self.faults += other.faults


def look_at(files: ImageFiles, processes: int, progress: Callable[[int], None] = lambda _: None) -> Look:
    """Read the headers of ``files``.

    Args:
        files: the images.
        processes: maximum number of processes; with one, all work is done in this process.
        progress: called with the number of files after each part of them.
    """
    parts = [files.names[start : start + CHUNK] for start in range(0, len(files.names), CHUNK)]
    found = Look()
    workers = min(processes, len(files.names) // FILES_PER_PROCESS)
    if workers < 2:
        for part in parts:
            found.add(_look(files.folder, part, files.geometry, files.side))
            progress(len(part))
    else:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            looks = [pool.submit(_look, files.folder, part, files.geometry, files.side) for part in parts]
            for done in as_completed(looks):
                found.add(done.result())
                progress(done.result().images)
    found.faults.sort(key=lambda problem: problem.where)
    return found


def _look(folder: pathlib.Path, names: Sequence[str], geometry: Geometry, side: int) -> Look:
    found = Look(images=len(names))
    for path in [folder / name for name in names]:
        try:
            found.bytes += path.stat().st_size
            with opened(path) as image:
                found.formats[str(image.format)] += 1
                found.sizes[image.size] += 1
                found.converted.update(conversions(image, path))
                if fault := size_fault(image.size, geometry, side):
                    found.faults.append(replace(fault, where=str(path)))
        except UsageError as error:
            found.faults += error.problems
        except OSError as error:
            found.faults.append(Problem(f"cannot be read: {error.strerror}", str(path), hint="replace or remove it"))
    return found
