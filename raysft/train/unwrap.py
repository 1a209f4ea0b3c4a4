"""Checkpoints as other programs write them: read without running code, and the tensors of a network
found in them.

Training scripts wrap weights in dictionaries (`state_dict`, `model`, `state_dict_ema`, `teacher`)
and in networks of networks, which prefix their names (`module.`, `_orig_mod.`, `model.`,
`backbone.`). Names are not believed: what fits the network best is taken, and what was unwrapped is
told.
"""

from __future__ import annotations

import pickle
import re
import sys
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from raysft.errors import ModelError

Tensors = Mapping[str, torch.Tensor]

DEPTH = 3  # of dictionaries in dictionaries
COMPILED = "_orig_mod."  # what torch.compile puts into names, at any place in them
# Of several that fit equally well, moving averages are what training scripts deliver; a teacher is
# one by another name.
_AVERAGES = frozenset(
    {"state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "teacher"}
)
_SECOND = frozenset({"student", "encoder_k", "momentum_encoder", "target_encoder"})
# What these programs put beside a network, and no other network has.
_BESIDE = frozenset(
    {
        "projector",
        "projection",
        "projection_head",
        "predictor",
        "prototypes",
        "dino_head",
        "ibot_head",
        "contrastive_head",
        "queue",
        "queue_ptr",
        "n_averaged",
    }
)
# Of Python's own library these are plain values; anything else there could be called to do
# something.
_PLAIN = frozenset(
    {
        "argparse",
        "collections",
        "copyreg",
        "datetime",
        "decimal",
        "enum",
        "fractions",
        "functools",
        "pathlib",
        "types",
        "uuid",
        "_codecs",
    }
)
_TYPES = frozenset(
    f"builtins.{kind}"
    for kind in (
        "bool",
        "bytearray",
        "bytes",
        "complex",
        "dict",
        "float",
        "frozenset",
        "int",
        "list",
        "object",
        "range",
        "set",
        "slice",
        "str",
        "tuple",
    )
)
_UNSUPPORTED = re.compile(r"[Uu]nsupported (?:global: GLOBAL|GLOBAL|class|operand) ([\w.]+)")
_WANTED = re.compile(r"Unsupported global: GLOBAL ([\w.]+) ")
_FILLED = re.compile(r"Can only (append|extend|SETITEM).* but got <class '([^']+)'>")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


# --- reading -----------------------------------------------------------------------------------


class _Object:
    """In place of an object that is no tensor or container: it takes whatever it is made of, and
    drops it.
    """

    kind = ""
    """The full name of its class."""
    is_network = False

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.is_network = isinstance(state, dict) and "_modules" in state


class _List(_Object):
    """In place of a list of another class."""

    def __new__(cls, *given: Any, **named: Any) -> Any:
        return []


class _Dict(_Object):
    """In place of a dictionary of another class, which may hold the weights."""

    def __new__(cls, *given: Any, **named: Any) -> Any:
        return OrderedDict()


def read_checkpoint(path: Path, where: str) -> Any:
    """What a safetensors file holds, or a torch file without running code of it; raises ModelError.

    Objects of other kinds (arguments, whole networks) are read as empty ones, lists and
    dictionaries of other classes as plain ones.
    """
    try:
        content = load_file(path) if _is_safetensors(path) else _read_torch(path, where)
    except ModelError:
        raise
    except Exception as error:  # both readers raise their own kinds for a torn or foreign file
        raise ModelError(
            where,
            f"cannot be read ({_reason(error)})",
            "give a .safetensors file or a plain state dict",
        ) from None
    if isinstance(content, _Object):
        raise _whole(where, "is", content.kind)
    return content


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: with the length of a table in JSON, and that
    table.
    """
    with path.open("rb") as file:
        start = file.read(9)
    return (
        len(start) == 9
        and start[8:] == b"{"
        and int.from_bytes(start[:8], "little") < path.stat().st_size
    )


def _read_torch(path: Path, where: str) -> Any:
    with path.open("rb") as file:
        if file.read(2) == b"PK" and not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile
    stubs: dict[str, type[_Object]] = dict.fromkeys(_other_kinds(path), _Object)
    while True:
        _refuse_callables(stubs, where)
        try:
            kinds: list[Any] = [(_stub(name, base), name) for name, base in stubs.items()]
            with (
                safe_globals(kinds),
                warnings.catch_warnings(),
                path.open("rb") as file,
            ):  # torch believes endings
                warnings.simplefilter(
                    "ignore"
                )  # of TorchScript and protocols, for which there is an error, too
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            text = _COLOUR.sub("", str(error))
            if "persistent_load" in text and stubs:  # as networks were saved before torch 1.6
                raise _whole(where, "holds", [*stubs][-1]) from None
            if not _learn(text, stubs):
                raise


def _stub(name: str, base: type[_Object]) -> type[_Object]:
    module, _, own = name.rpartition(".")
    return type(own, (base,), {"__module__": module, "kind": name})


def _learn(text: str, stubs: dict[str, type[_Object]]) -> bool:
    """Take from what torch says which class is wanted, or that one is a list or a dictionary;
    whether that was new.
    """
    wanted, filled = _WANTED.search(text), _FILLED.search(text)
    if wanted is not None:
        name = wanted.group(1)
        base, name = _Object, name if "." in name else f"builtins.{name}"
    elif filled is not None:
        base, name = (_Dict if filled.group(1) == "SETITEM" else _List), filled.group(2)
    else:
        return False
    known, stubs[name] = stubs.get(name), base
    return known is not base and known in (None, _Object)


def _whole(where: str, verb: str, kind: str) -> ModelError:
    return ModelError(
        where,
        f"{verb} a whole pickled network ({kind[:80]}), which cannot be read without running code",
        "where it was made, save its weights: torch.save(model.state_dict(), file)",
    )


def _other_kinds(path: Path) -> list[str]:
    """Names of what a torch file asks for beyond tensors and containers."""
    try:
        return get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # of a format from before torch 1.6, which does not tell
        return ["argparse.Namespace"]


def _refuse_callables(names: Iterable[str], where: str) -> None:
    for name in names:
        module = name.partition(".")[0]
        if module in sys.stdlib_module_names and module not in _PLAIN and name not in _TYPES:
            raise ModelError(
                where,
                f"cannot be read: it asks for {name[:80]}, which could run code",
                "give a .safetensors file or a plain state dict",
            )


def _reason(error: Exception) -> str:
    """One short line of what torch says in many, with colours and the advice to run what the file
    holds.
    """
    text = _COLOUR.sub("", str(error))
    if "TorchScript" in text:
        return "it is a TorchScript archive, which is a program"
    if "zip archive" in text or isinstance(error, (EOFError, zipfile.BadZipFile)):
        return "it is cut off or damaged"
    if (found := _UNSUPPORTED.search(text)) is not None:
        return (
            "it is not a torch file, or damaged"
            if found.group(1).isdigit()
            else f"it asks for {found.group(1)}"
        )
    lines = [
        line.strip() for line in text.partition("In PyTorch 2.6")[0].splitlines() if line.strip()
    ]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


# --- finding -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Tensors by the names that a network has for them."""

    state: Tensors
    source: str = ""
    """What was unwrapped to get at them, in words; empty for a plain state dict."""


@dataclass(frozen=True)
class _Candidate:
    path: tuple[str, ...]
    tensors: dict[str, torch.Tensor]
    compiled: bool
    prefix: str
    fits: int

    @property
    def rank(self) -> tuple[int, int, int]:
        """The better, the higher: fitting tensors, then what is known of the names, then the fewest
        wrappings.
        """
        words = {*self.path, *self.prefix.split(".")}
        return (
            self.fits,
            bool(words & _AVERAGES) - bool(words & _SECOND),
            -len(self.path) - self.prefix.count("."),
        )

    @property
    def name(self) -> str:
        return ".".join(self.path) or "the file"


def tensors_for(content: Any, own: Tensors, where: str) -> Found:
    """Of the content of a checkpoint the tensors of a network with the state dict `own`; raises
    ModelError for none.
    """
    candidates = [
        candidate
        for path, tensors in _state_dicts(content)
        for candidate in _prefixed(path, tensors, own)
    ]
    if (
        not any(candidate.fits for candidate in candidates)
        and (found := _network_in(content)) is not None
    ):
        raise _whole(where, "holds", found)
    if not candidates:
        raise ModelError(
            where, "is not a state dict", "save it with torch.save(model.state_dict(), file)"
        )
    best = max(candidates, key=lambda candidate: candidate.rank)
    if not best.prefix and not best.compiled and not best.path:
        return Found(best.tensors)
    state = {
        name.removeprefix(best.prefix): value
        for name, value in best.tensors.items()
        if name.startswith(best.prefix)
    }
    return Found(state, _source(best, candidates, len(best.tensors) - len(state)))


def _network_in(content: Any) -> str | None:
    """The kind of the first whole network that a checkpoint holds by a name."""
    values = content.values() if isinstance(content, Mapping) else ()
    return next(
        (value.kind for value in values if isinstance(value, _Object) and value.is_network), None
    )


def is_beside(name: str) -> bool:
    """Whether a tensor is of what self-supervised training puts beside a network."""
    return name.partition(".")[0] in _BESIDE


def _state_dicts(
    content: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, torch.Tensor]]]:
    """(names on the way, tensors) of every dictionary that holds any."""
    if not isinstance(content, Mapping):
        return
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}
    if tensors:
        yield path, tensors
    for name, value in named.items() if len(path) < DEPTH else ():
        yield from _state_dicts(value, (*path, name))


def _prefixed(
    path: tuple[str, ...], tensors: dict[str, torch.Tensor], own: Tensors
) -> Iterator[_Candidate]:
    """A candidate for each prefix with which some tensor fits, or one without any."""
    compiled = any(COMPILED in name for name in tensors)
    named = {name.replace(COMPILED, ""): value for name, value in tensors.items()}
    fits: Counter[str] = Counter()
    for name, value in named.items():
        for at in (0, *(match.end() for match in re.finditer(r"\.", name))):
            if (mine := own.get(name[at:])) is not None and mine.shape == value.shape:
                fits[name[:at]] += 1
    for prefix, number in fits.items() or [("", 0)]:
        yield _Candidate(path, named, compiled, prefix, number)


def _source(best: _Candidate, candidates: list[_Candidate], beside: int) -> str:
    words = [best.name] if best.path else []
    if best.compiled:
        words.append(f"{COMPILED} removed")
    if best.prefix:
        words.append(f"prefix {best.prefix} removed")
    if beside:
        words.append(f"{beside} tensors beside it left out")
    others = [
        f"{other.name}{f' with prefix {other.prefix}' if other.prefix else ''}"
        for other in candidates
        if other is not best and 2 * other.fits > best.fits
    ]
    return ", ".join(words) + (f"; not taken: {', '.join(others)}" if others else "")
