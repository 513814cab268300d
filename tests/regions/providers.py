"""A provider that answers what a test tells it to."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ct3dlib.errors import Ct3dError
from ct3dlib.regions.provider import Provided, Provider, Request


@dataclass
class Told(Provider):
    """Answers the same for every volume, or raises, and keeps what it was asked."""

    labels: NDArray[np.uint8] | None = None
    known: frozenset[int] = frozenset()
    sure: frozenset[int] = frozenset()
    name: str = "told"
    error: Ct3dError | None = None
    asked: list[Request] = field(default_factory=list)

    def identity(self, name: str, sources: tuple[str, ...]) -> str:
        return f"{self.name} of {name} {sources}"

    def __call__(self, request: Request) -> Provided:
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        assert self.labels is not None
        return Provided(self.labels, self.known, self.sure)
