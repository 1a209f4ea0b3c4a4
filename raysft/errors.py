"""Everything raysft raises on purpose, each with one line for a person: where, what, what to do.

RaysftError
├── UserError            the call, the job file or the data is wrong (exit status 2)
│   ├── JobError         a job file
│   │   └── JobErrors    several of them at once
│   ├── DataError        images, archives, shards
│   ├── ModelError       a network or its weights
│   └── ResourceError    more asked for than the cluster has
├── RunError             a run failed (exit status 1)
│   └── StorageFullError no room for what a run writes; it can be resumed
└── TrialError           one trial failed; the run goes on
    └── DivergedError    its loss is not a number any more
"""

from __future__ import annotations

from collections.abc import Sequence


class RaysftError(Exception):
    """A problem with its place and its remedy; survives pickling between processes."""

    exit_code = 1

    def __init__(self, where: str, what: str, todo: str = "") -> None:
        # All of them are its args, by which an exception is pickled.
        super().__init__(where, what, todo)
        self.where, self.what, self.todo = where, what, todo

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"

    @property
    def reason(self) -> str:
        """What is wrong and what to do, where the place is said already."""
        return self.what + (f"; {self.todo}" if self.todo else "")

    @property
    def problems(self) -> tuple[RaysftError, ...]:
        """The single problems this error stands for, itself where there is one."""
        return (self,)


class UserError(RaysftError):
    """What a person gave is wrong; nothing was started."""

    exit_code = 2


class JobError(UserError):
    """One thing wrong in a job file."""


class JobErrors(JobError):
    """Several things wrong in a job file, to be shown together."""

    def __init__(self, problems: Sequence[JobError]) -> None:
        first = problems[0]
        super().__init__(first.where, first.what, first.todo)
        self._problems = tuple(problems)

    # Its args are those of the first problem: pickled by them, the others would be lost.
    def __reduce__(self) -> tuple[type[JobErrors], tuple[tuple[JobError, ...]]]:
        return type(self), (self._problems,)

    def __str__(self) -> str:
        return "\n".join(map(str, self._problems))

    @property
    def problems(self) -> tuple[RaysftError, ...]:
        """The single problems, one line each."""
        return self._problems


class DataError(UserError):
    """Images, an archive or a data set that cannot be used."""


class ModelError(UserError):
    """A network that is not known, or weights that do not fit it."""


class ResourceError(UserError):
    """More CPUs or GPUs asked for than there are."""


class RunError(RaysftError):
    """A run that ended without a model."""


class StorageFullError(RunError):
    """No room for what a run writes; it can be resumed when there is some."""

    def __init__(self, where: str) -> None:
        super().__init__(
            where,
            "no space is left to write to",
            "make room, then resume the run with `raysft resume`",
        )

    def __reduce__(self) -> tuple[type[StorageFullError], tuple[str]]:
        return type(self), (self.where,)


class TrialError(RaysftError):
    """A trial that ended without a result; its run goes on."""


class DivergedError(TrialError):
    """A trial whose loss is not a number any more."""


def describe_error(error: BaseException, line: int = 0) -> str:
    """Kind and one line of an error of someone else: its first line, or its last (-1) where Ray
    carried it over.
    """
    # One line: libraries put tables, hints and whole tracebacks into their messages.
    lines = [text for text in str(error).splitlines() if text.strip()]
    return f"{type(error).__name__}: {lines[line].strip()}" if lines else type(error).__name__
