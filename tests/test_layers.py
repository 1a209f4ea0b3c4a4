"""Imports point downwards: a module uses what lies below its package, and no two use each other."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import raysft

ROOT = Path(raysft.__file__).parent

# From the ground up. A package may import those on lines above its own, and what stands in its own
# folder; two packages on one line do not know each other.
LAYERS = [
    {"errors"},
    {"gc_pause", "interrupts", "ray_calls", "ray_shortcuts", "search_path", "storage"},
    {"job"},
    {"wording"},
    {"data"},
    {"records"},
    {"train", "cluster", "tracking"},
    {"search", "results", "console"},
    {"run", "deploy"},
    {"display"},
    {"entrypoints"},
    {"backends"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: number for number, names in enumerate(LAYERS) for name in names}


def modules() -> dict[str, set[str]]:
    """The modules of raysft that each module imports, also inside of functions."""
    files = {module_of(file): file for file in ROOT.rglob("*.py")}
    return {name: set(imported(file, files)) - {name, "raysft"} for name, file in files.items()}


def module_of(file: Path) -> str:
    parts = ("raysft", *file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(part for part in parts if part != "__init__")


def imported(file: Path, known: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        if isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


def package_of(module: str) -> str:
    return module.split(".")[1]


def test_imports_point_downwards():
    upwards = []
    for name, used in modules().items():
        if name == "raysft":
            continue
        for other in used:
            here, there = package_of(name), package_of(other)
            if here != there and LEVEL[there] >= LEVEL[here]:
                upwards.append(f"{name} imports {other}")
    assert not upwards, "\n".join(sorted(upwards))


def test_no_two_modules_need_each_other():
    try:
        TopologicalSorter(modules()).prepare()
    except CycleError as error:
        raise AssertionError(" needs ".join(error.args[1])) from None


def imported_at_once(module: str) -> set[str]:
    """What importing a module imports, of raysft and of others."""
    path = ROOT.parent / Path(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def test_a_job_without_search_imports_no_tune():
    known, seen = modules(), set()
    waiting = ["raysft.run.driver", "raysft.train.worker", "raysft.train.queue.trial_queue"]
    while waiting:
        module = waiting.pop()
        seen.add(module)
        found = imported_at_once(module)
        assert not [name for name in found if f"{name}.".startswith("ray.tune.")], module
        waiting += [name for name in found if name in known and name not in seen]
    assert "raysft.run.search_thread" in seen
