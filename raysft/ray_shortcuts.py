"""The one door to what Ray has inside: every use of it beyond its public interface.

Each is a `Shortcut`. It is looked for when it is first needed, never at import, so that a class of
Ray with a new name breaks no command; without it raysft goes the public way, and says so once. To
be looked at with every new series of Ray: `raysft doctor` tells which of them are missing.
"""

from __future__ import annotations

import inspect
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.train.v2._internal.execution.context import TrainContext
    from ray.train.v2.api.callback import RayTrainCallback

    Coordinator = ActorHandle[object]

T_co = TypeVar("T_co", covariant=True)

DISABLE = "RAYSFT_NO_RAY_SHORTCUTS"  # for tests: 1 has everything go the public way

# Settings of Ray's core, of which only the first has a page in its documentation. A tenth of two
# busy cores went into these, which nobody sees without Ray's dashboard.
_QUIET_SETTINGS = {
    "RAY_enable_metrics_collection": "0",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
}
_RAYLET_PID = "RAY_RAYLET_PID"
_HTTP_STATUS = "Request failed with status code "
_DASHBOARD = "dashboard/dashboard.py"
_WORKER_TITLE = "ray::"


class NotThereError(Exception):
    """Ray has a shortcut no longer, or in another form."""


class Shortcut(Generic[T_co]):
    """One thing inside of Ray, and what it costs to do without it."""

    def __init__(self, name: str, without: str, find: Callable[[], T_co]) -> None:
        self.name = name
        self.without = without
        self.asked = False
        self._find = find
        self._found: list[T_co] = []
        self._problem = ""

    def get(self) -> T_co | None:
        """What Ray has there; None where the public way is to be taken."""
        self.asked = True
        if os.environ.get(DISABLE):
            return None
        if not self._found and not self._problem:
            try:
                self._found.append(self._find())
            # Whatever Ray's insides raise that have changed: there is a public way, and it is told.
            except Exception as error:
                self._problem = f"{type(error).__name__}: {error}"
        return self._found[0] if self._found else None

    def __str__(self) -> str:
        reason = f"{DISABLE} is set" if os.environ.get(DISABLE) else self._problem
        return f"{self.name} ({reason}): {self.without}"


def missing_shortcuts() -> list[str]:
    """Those that this Ray does not have, each with the reason and what that costs."""
    return [str(shortcut) for shortcut in SHORTCUTS if shortcut.get() is None]


def describe_shortcuts() -> str:
    """How many of them this Ray has, and which are missing: the doctor's line."""
    missing = missing_shortcuts()
    counted = f"{len(SHORTCUTS) - len(missing)} of {len(SHORTCUTS)}"
    return "; ".join([counted, *(f"without {text}" for text in missing)])


def describe_fallbacks(elastic: bool) -> list[str]:
    """What a run says: the shortcuts that this process or a worker has to do without."""
    # Workers ask for it, who cannot tell anyone.
    needed: list[Shortcut[object]] = [PREEMPTION]
    if elastic:
        needed.append(RECOUNT)  # other runs have no use for it
    for shortcut in SHORTCUTS:
        if shortcut.asked and shortcut is not RECOUNT and shortcut not in needed:
            needed.append(shortcut)
    return [f"Ray shortcut missing: {shortcut}" for shortcut in needed if shortcut.get() is None]


# --- a slot's start -----------------------------------------------------------------------------


def start_coordinator() -> Coordinator | None:
    """Start the actor that Ray Train's controllers register with, before any of them.

    A controller would start it itself, and wait a second and a half for it before it starts
    workers. None where they have to.
    """
    start = COORDINATOR.get()
    return start() if start is not None else None


def recount_nodes(coordinator: Coordinator | None) -> None:
    """Have the coordinator count the nodes now; by itself it does so every 20 seconds.

    Until then it lets an elastic slot start workers on a node that is dead, which fails after a
    minute.
    """
    recount = RECOUNT.get()
    if recount is not None and coordinator is not None:
        recount(coordinator)


def _find_coordinator() -> Callable[[], Coordinator]:
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as module

    inspect.signature(module.get_or_create_autoscaling_coordinator).bind()
    return module.get_or_create_autoscaling_coordinator


def _find_recount() -> Callable[[Coordinator], None]:
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as module

    # Ray 2.60 is the first that counts when it is asked to.
    _expect(module._AutoscalingCoordinatorActor.get_reserved_resources, "recompute")

    def recount(coordinator: Coordinator) -> None:
        coordinator.get_reserved_resources.remote("raysft", recompute=True)

    return recount


class Trainer(Protocol):
    """What a slot needs of a trainer of Ray Train."""

    def fit(self) -> object:
        """Hold the worker group until its workers return."""


def slot_trainer() -> Callable[..., Trainer]:
    """The class of trainers that start a slot, with the arguments of Ray's `TorchTrainer`.

    Ray's torch backend would make one process group of all workers, where every team needs its own;
    and neither the controller nor the start of a slot should have to import torch.
    """
    return TRAINER.get() or _public_trainer()


def _find_trainer() -> Callable[..., Trainer]:
    """A plain data-parallel trainer, without two helper actors that cost a second and a half of CPU
    each when every second counts.
    """
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    # One hands out Ray Data's data sets, of which a slot is given none. The other removes the
    # placement group of a controller that died; here the whole run goes on without that slot, and
    # Ray removes it with the driver's job.
    helpers = (DatasetsCallback, PlacementGroupCleanerCallback)
    _expect(DataParallelTrainer._create_default_callbacks)

    class SlotTrainer(DataParallelTrainer):
        def _create_default_callbacks(self) -> list[RayTrainCallback]:
            callbacks = super()._create_default_callbacks()
            return [callback for callback in callbacks if not isinstance(callback, helpers)]

    return SlotTrainer


def _public_trainer() -> Callable[..., Trainer]:
    """Ray's `TorchTrainer`, with a backend that leaves process groups to the teams."""
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig, TorchTrainer

    class NoProcessGroup(TorchConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return Backend

    return partial(TorchTrainer, torch_config=NoProcessGroup())


# --- in a worker --------------------------------------------------------------------------------


def preemption_announced() -> bool:
    """In a worker: whether Ray Train has heard that a machine of this worker group will be taken
    away.

    Ray's public `get_preemption_info` waits until all workers of the group ask, and teams do not
    march in step; so this reads what it would hand out. The public way is open to a worker that is
    alone in its group.
    """
    context = PREEMPTION.get()
    if context is not None:
        return context().preemption_context.preemption_info is not None
    from ray import train

    if train.get_context().get_world_size() > 1:
        return False
    return train.get_preemption_info() is not None


def _find_preemption() -> Callable[[], TrainContext]:
    from ray.train.v2._internal.execution import context as module
    from ray.train.v2._internal.execution.preemption import PreemptionContext

    _expect(module.TrainContext, "preemption_context")
    _expect(PreemptionContext, "preemption_info")
    return module.get_train_context


# --- a Ray of one run on this machine -----------------------------------------------------------


def quiet_settings() -> dict[str, str]:
    """Environment variables that keep Ray's core from measuring itself.

    A Ray that does not know one of them ignores it, so they are given unasked.
    """
    return {} if os.environ.get(DISABLE) else dict(_QUIET_SETTINGS)


def _find_quiet_settings() -> bool:
    for name in _QUIET_SETTINGS:
        _expect_in_library(name.removeprefix("RAY_"))
    return True


@contextmanager
def without_attendants() -> Iterator[None]:
    """Have Ray start without its dashboard's server, autoscaler and log monitor, which a Ray of one
    run has no use for.

    They took a tenth of the CPU of a run's start, and Ray waits a second for the server.
    """
    inside = ATTENDANTS.get()
    if inside is None:
        yield
        return
    parameter, services = inside
    given = parameter.RayParams, services.start_api_server
    # Ray starts them from within its own functions, which have no argument for it.
    vars(parameter)["RayParams"] = partial(given[0], no_monitor=True, include_log_monitor=False)
    vars(services)["start_api_server"] = lambda *args, **kwargs: ("", None)
    try:
        yield
    finally:
        vars(parameter)["RayParams"], vars(services)["start_api_server"] = given


def _find_attendants() -> tuple[ModuleType, ModuleType]:
    from ray._private import parameter, services

    _expect(parameter.RayParams, "no_monitor", "include_log_monitor")
    _expect(services.start_api_server)
    return parameter, services


def outlive_raylet() -> bool:
    """Have this process go on when its raylet is killed; False where it has to end Ray first.

    When it cannot talk to its raylet any more, Ray's library asks whether that has died, by this
    variable, else by whether its own parent is process 1, as it may be in a container; and then it
    ends this process with status 1, results or not. Ray sets it for workers itself.
    """
    if OUTLIVE.get() is None:
        return False
    os.environ[_RAYLET_PID] = str(os.getpid())
    return True


def _find_raylet_pid() -> str:
    from ray._private.ray_constants import RAY_INTERNAL_FLAGS

    if _RAYLET_PID not in RAY_INTERNAL_FLAGS:
        raise NotThereError(f"Ray reads no {_RAYLET_PID}")
    return _RAYLET_PID


def ray_init_in(folder: Path) -> Callable[..., object] | None:
    """Ray's `init` for a Ray that keeps its files in a folder; None where it cannot be told."""
    if FOLDER.get() is None:
        return None
    import ray

    return partial(ray.init, _temp_dir=str(folder))


def _find_folder() -> str:
    import ray

    # `ray.init` takes it as one of any keywords, so its signature does not tell.
    if '"_temp_dir"' not in inspect.getsource(ray.init):
        raise NotThereError("ray.init has no _temp_dir")
    return "_temp_dir"


def is_worker_title(word: str) -> bool:
    """Whether a process of Ray's has given itself this title in place of its command line.

    Without it a worker is known by its parents and by its environment, which such a title
    overwrites.
    """
    return not os.environ.get(DISABLE) and word.startswith(_WORKER_TITLE)


def _find_worker_title() -> str:
    _expect_in_library(_WORKER_TITLE)
    return _WORKER_TITLE


# --- a cluster ----------------------------------------------------------------------------------


def head_resource() -> str | None:
    """The resource that the head alone has; None where the head is to be known by its address."""
    return HEAD.get()


def _find_head_resource() -> str:
    from ray._common.constants import HEAD_NODE_RESOURCE_NAME

    return str(HEAD_NODE_RESOURCE_NAME)


def is_dashboard(command: list[str]) -> bool:
    """Whether a process of this machine, by its command line, serves the dashboard of a Ray.

    Without it only a dashboard at its usual port is found.
    """
    if os.environ.get(DISABLE):
        return False
    return any(word.endswith(_DASHBOARD) for word in command)


def _find_dashboard() -> str:
    return _expect_in_file("_private/services.py", '"dashboard.py"') and _DASHBOARD


def status_in_text(error: RuntimeError) -> int | None:
    """The HTTP status in an error of Ray's job client, which keeps it nowhere but in the text."""
    if os.environ.get(DISABLE) or not str(error).startswith(_HTTP_STATUS):
        return None
    number, colon, _ = str(error)[len(_HTTP_STATUS) :].partition(": ")
    return int(number) if colon and number.isdecimal() else None


def _find_http_status() -> str:
    return _expect_in_file(
        "dashboard/modules/dashboard_sdk.py", f"{_HTTP_STATUS}{{r.status_code}}: "
    )


# --- looking ------------------------------------------------------------------------------------


def _expect(function: Callable[..., object], *parameters: str) -> None:
    """Raise NotThereError where a function of Ray does not have the parameters it is given."""
    known = inspect.signature(function).parameters
    absent = [name for name in parameters if name not in known]
    if absent:
        raise NotThereError(f"{function.__qualname__} has no {', '.join(absent)}")


def _folder_of_ray() -> Path:
    found = find_spec("ray")
    if found is None or found.origin is None:
        raise NotThereError("there is no Ray")
    return Path(found.origin).parent


def _expect_in_file(file: str, text: str) -> str:
    if text not in (_folder_of_ray() / file).read_text(encoding="utf-8"):
        raise NotThereError(f"ray/{file} has no {text}")
    return text


def _expect_in_library(text: str) -> None:
    """Raise NotThereError where Ray's core has not this text in it; takes some 20 ms."""
    with (
        (_folder_of_ray() / "_raylet.so").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library,
    ):
        if library.find(text.encode()) < 0:
            raise NotThereError(f"Ray's core knows no {text}")


COORDINATOR = Shortcut("early coordinator", "slots start 1.5 s later", _find_coordinator)
RECOUNT = Shortcut(
    "recount of nodes",
    "an elastic slot may take a minute longer to go on after a node has died",
    _find_recount,
)
TRAINER = Shortcut(
    "trainer without helpers", "slots take 3 s more of CPU and memory to start", _find_trainer
)
PREEMPTION = Shortcut(
    "preemption notice",
    "a slot of several workers goes on from its last checkpoint when a machine is taken away",
    _find_preemption,
)
ATTENDANTS = Shortcut("start without attendants", "Ray starts 1 s later", _find_attendants)
QUIET = Shortcut(
    "settings against self-measurement",
    "a tenth of two cores goes into Ray's own metrics",
    _find_quiet_settings,
)
OUTLIVE = Shortcut(
    "driver that outlives its raylet", "a run takes seconds more to end", _find_raylet_pid
)
FOLDER = Shortcut("folder of a run's Ray", "Ray keeps its files in /tmp/ray", _find_folder)
TITLE = Shortcut(
    "titles of workers", "workers of a killed run may outlive it for a minute", _find_worker_title
)
HEAD = Shortcut("resource of the head", "the head is known by its address", _find_head_resource)
DASHBOARD = Shortcut(
    "command of the dashboard", "--address auto finds port 8265 alone", _find_dashboard
)
STATUS = Shortcut(
    "HTTP status of the job client",
    "errors of a cluster are told in Ray's words",
    _find_http_status,
)

SHORTCUTS: tuple[Shortcut[object], ...] = (
    COORDINATOR,
    RECOUNT,
    TRAINER,
    PREEMPTION,
    ATTENDANTS,
    QUIET,
    OUTLIVE,
    FOLDER,
    TITLE,
    HEAD,
    DASHBOARD,
    STATUS,
)
