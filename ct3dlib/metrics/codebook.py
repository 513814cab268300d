"""How much of a codebook is used."""

import math

import numpy as np
from numpy.typing import NDArray


class CodeUsage:
    """Counts of the codes seen so far, over any number of volumes.

    Args:
        codebook_size: Number of codes there are.
    """

    def __init__(self, codebook_size: int) -> None:
        self.codebook_size = codebook_size
        self.codes: NDArray[np.int64] = np.empty(0, np.int64)
        self.counts: NDArray[np.int64] = np.empty(0, np.int64)

    def add(self, indices: NDArray[np.int64]) -> None:
        """Count the indices of one volume, of any shape.

        Raises:
            ValueError: An index is outside [0, codebook_size).
        """
        codes, counts = np.unique(indices, return_counts=True)
        if codes.size and (codes[0] < 0 or codes[-1] >= self.codebook_size):
            raise ValueError(
                f"indices span {codes[0]} to {codes[-1]}, the codebook has 0 to "
                f"{self.codebook_size - 1}"
            )
        merged, position = np.unique(np.concatenate((self.codes, codes)), return_inverse=True)
        total = np.zeros(len(merged), np.int64)
        np.add.at(total, position, np.concatenate((self.counts, counts)))
        self.codes, self.counts = merged, total

    @property
    def tokens(self) -> int:
        """Number of indices counted."""
        return int(self.counts.sum())

    @property
    def usage(self) -> float:
        """Distinct codes over the most there could be, min(codebook_size, tokens); 0 for none."""
        most = min(self.codebook_size, self.tokens)
        return len(self.codes) / most if most else 0.0

    @property
    def perplexity(self) -> float:
        """Codes that would be used if all were used evenly: exp of the entropy; 0 for none."""
        if not self.tokens:
            return 0.0
        shares = self.counts / self.tokens
        return math.exp(-float(np.sum(shares * np.log(shares))))
