"""One way for an input to be bad, or odd and yet good."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Case:
    """An input of its own folder.

    Args:
        name: Folder of the input; no other case has it.
        reason: Code that the one rejected row must have; "" where nothing may be rejected.
        match: Regular expression for the message.
        write: Writes the input into its folder.
        stored: Volumes of the folder that must be stored all the same.
    """

    name: str
    reason: str
    match: str
    write: Callable[[Path], object]
    stored: int = 0


def odd(name: str, write: Callable[[Path], object]) -> Case:
    """Return the case of an input that looks odd and must be stored."""
    return Case(name, "", "", write, stored=1)


def body(shape: tuple[int, int, int] = (12, 20, 24)) -> NDArray[np.int16]:
    """Return HU of a block of soft tissue in air, D H W, both with noise."""
    hu = np.full(shape, -1000.0)
    hu[:, 4:-4, 4:-4] = 40
    hu += np.random.default_rng(0).normal(0, 5, shape)
    return np.rint(hu).astype(np.int16)
