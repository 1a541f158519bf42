"""The shape of the code: size of packages, length of functions, imports against the flow, and what a change touches.

Usage: ``python benchmarks/house.py [FOLDER]``; FOLDER is a checkout (default: this one), so that two can be compared.
"""

from __future__ import annotations

import argparse
import ast
import pathlib
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator

# the stages that call each package; it may import none of them
CALLERS = {
    "suite": {"commands", "schedule"},
    "schedule": {"commands"},
    "run": {"commands", "schedule"},
    "store": {"commands", "schedule", "report"},
    "report": {"commands"},
    "data": {"commands", "suite", "schedule", "run", "store", "report"},
    "protocols": {"commands", "suite", "schedule", "run", "store", "report"},
    "networks": {"commands", "suite", "schedule", "run", "store", "report"},
    "methods": {"commands", "suite", "schedule", "store", "report"},
}
# words by which a file of the harness knows one particular protocol, kind of data, precision or learned optimizer
KNOWS = {
    "protocol": r'"(reset|continual|mixed)"|adapt_images|graded_after|adapting_most',
    "kind of data": r"(Folder|ImageNetC|CifarC|Digits)Part|\"(imagenet_c|cifar_c|folder|digits)\"|source_fraction|archive",
    "precision mode": r'"float(32|64)"',
    "checkpoint of a method": r"checkpoint_origin|needs_checkpoint|\.provenance",
}


def modules(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """All modules of the package, built-in plugins included."""
    yield from sorted((root / "tta_bench").rglob("*.py"))
    yield from sorted((root / "methods").rglob("*.py"))


def stage(root: pathlib.Path, file: pathlib.Path) -> str:
    """The package that a module belongs to; ``tta_bench`` for those at the top."""
    parts = file.relative_to(root).parts
    return parts[0] if len(parts) == 2 else parts[1]


def function_lengths(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(lines, name) of every function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1, node.name


def imported(tree: ast.AST) -> Iterator[str]:
    """The packages of tta_bench that a module imports, also inside functions; not those for type checkers alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tta_bench"):
            for name in [f"{node.module}.{alias.name}" for alias in node.names]:
                yield name.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("tta_bench."))


def backward(root: pathlib.Path, file: pathlib.Path, tree: ast.AST) -> Iterator[str]:
    """Imports that a module of one stage makes from a stage that calls it."""
    for there in sorted(set(imported(tree)) & CALLERS.get(stage(root, file), set())):
        yield f"{file.relative_to(root)} imports tta_bench.{there}"


def main() -> None:
    """Print the four tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent)
    root = parser.parse_args().root
    size: dict[str, list[int]] = defaultdict(list)
    lengths: list[tuple[int, str]] = []
    back: list[str] = []
    knows: dict[str, list[str]] = defaultdict(list)
    for file in modules(root):
        text = file.read_text()
        tree = ast.parse(text)
        size[stage(root, file)].append(text.count("\n"))
        lengths += [(lines, f"{file.relative_to(root)}:{name}") for lines, name in function_lengths(tree)]
        back += backward(root, file, tree)
        for change, words in KNOWS.items():
            if re.search(words, text):
                knows[change].append(str(file.relative_to(root)))
    for package, lines in sorted(size.items()):
        print(f"{package:<12} {len(lines):>3} modules {sum(lines):>6} lines")
    print(f"{'all':<12} {sum(map(len, size.values())):>3} modules {sum(map(sum, size.values())):>6} lines\n")
    numbers = sorted(lines for lines, _ in lengths)
    p90 = numbers[int(0.9 * len(numbers))]
    print(
        f"functions: {len(numbers)}, median {statistics.median(numbers):g} lines, p90 {p90}, longest {max(lengths)}\n"
    )
    print(f"imports back up: {len(back)}", *back, sep="\n  ")
    for change, files in knows.items():
        print(f"\n{change}: {len(files)} files know one", *files, sep="\n  ")


if __name__ == "__main__":
    main()
