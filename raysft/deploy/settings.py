"""How a model is served, and the refusal of a request, in plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from raysft.errors import RaysftError


@dataclass(frozen=True)
class Settings:
    """What `raysft serve` is asked for."""

    # Loopback: there is no authentication, so a network is the person's own decision.
    host: str = "127.0.0.1"
    port: int = 8000
    """0: any that is free."""
    replicas: int = 1
    max_batch: int = 32
    """Images that go through the network together."""
    batch_wait_ms: float = 5.0
    """How long an image waits for others to share its batch."""
    max_megapixels: int = 50
    max_body_mb: int = 16
    max_images: int = 64
    """Images in one request."""
    queue: int = 256
    """Requests that are accepted and not yet answered."""
    gpus_per_replica: float = 0.0
    trust_code: bool = False
    """Whether a network of a person's own may be imported, also from the current folder."""

    @property
    def max_body(self) -> int:
        """Bytes."""
        return self.max_body_mb * 1024 * 1024

    @property
    def max_pixels(self) -> int:
        """Of an image."""
        return self.max_megapixels * 1_000_000


class ServedImage(TypedDict):
    """The size that images are scaled to."""

    height: int
    width: int


class Limits(TypedDict):
    """What requests are refused for; as in `Settings`."""

    body_mb: int
    images: int
    megapixels: int
    queue: int


class ServedModel(TypedDict):
    """What GET / tells."""

    model: str
    raysft: str
    architecture: str
    classes: tuple[str, ...]
    image: ServedImage
    scores: dict[str, float]
    limits: Limits
    paths: list[str]


class Refused(RaysftError):
    """A request, or one image of it, that gets a reason for an answer; survives pickling between
    processes.
    """

    def __init__(self, status: int, where: str, what: str, todo: str = "") -> None:
        super().__init__(where, what, todo)
        self.status = status  # HTTP's

    # Exceptions are pickled by their args, which are not those of this __init__.
    def __reduce__(self) -> tuple[type[Refused], tuple[int, str, str, str]]:
        return type(self), (self.status, self.where, self.what, self.todo)
