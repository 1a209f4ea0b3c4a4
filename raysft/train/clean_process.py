"""Leaves a worker process as it was before a run, for the next one."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch


@contextmanager
def clean_process(import_from: str) -> Iterator[None]:
    """Undo what a run changes in its process: folders, environment, torch's settings, imports.

    import_from: the folder of the person's own modules. They are imported anew by the next run,
    which may come from another folder with other modules of the same names.
    """
    search_path, folder, environment = [*sys.path], os.getcwd(), dict(os.environ)
    modules = set(sys.modules)
    settings = _torch_settings()
    try:
        yield
    finally:
        sys.path[:] = search_path
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        _forget_modules(modules, Path(import_from))
        _restore(settings)
        # Networks sit in cycles, and a GPU's memory is asked for by the next run.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _forget_modules(known: set[str], import_from: Path) -> None:
    for name in set(sys.modules) - known:
        module = sys.modules[name]
        if not name.startswith("raysft.") and _is_own(module, import_from):
            del sys.modules[name]


def _is_own(module: ModuleType, import_from: Path) -> bool:
    """Whether a module lies in the person's folder, an environment of packages there aside."""
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_relative_to(import_from):
        return False
    # Libraries with parts in C do not survive a second import.
    return "site-packages" not in Path(file).parts


def _torch_settings() -> tuple[torch.dtype, str, bool, bool]:
    return (
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
    )


def _restore(settings: tuple[torch.dtype, str, bool, bool]) -> None:
    dtype, precision, benchmark, deterministic = settings
    torch.set_default_dtype(dtype)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = benchmark
    torch.use_deterministic_algorithms(deterministic)
