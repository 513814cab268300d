"""How the latents of a model are spread: what a generative model of them is scaled by."""

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray


class ChannelStatistics:
    """Mean and standard deviation of each latent channel, over any number of volumes.

    Sums of squared deviations are joined without cancellation, in float64 (Chan et al., "Updating
    formulae and a pairwise algorithm for computing sample variances", 1979, eq. 2.1).

    Args:
        channels: Of the latents.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.count = 0  # positions seen
        self._mean: NDArray[np.float64] = np.zeros(channels)
        self._squares: NDArray[np.float64] = np.zeros(channels)

    def add(self, latents: Float[np.ndarray, "C *grid"]) -> None:
        """Take in the latents of one volume.

        Raises:
            ValueError: Another number of channels, or a latent that is not finite.
        """
        if len(latents) != self.channels:
            raise ValueError(
                f"latents have {len(latents)} channels, these statistics have {self.channels}"
            )
        values = latents.reshape(self.channels, -1).astype(np.float64)  # C positions
        if not np.isfinite(values).all():
            raise ValueError(
                f"{np.count_nonzero(~np.isfinite(values))} of {values.size} latents are not "
                f"finite; check the volume for NaN, and the type that latents are stored in"
            )
        if values.size:
            mean = values.mean(axis=1)
            squares = np.square(values - mean[:, None]).sum(axis=1)
            self._join(values.shape[1], mean, squares)

    def merge(self, other: "ChannelStatistics") -> None:
        """Take in all that other statistics have seen.

        Raises:
            ValueError: Another number of channels.
        """
        if other.channels != self.channels:
            raise ValueError(
                f"statistics of {other.channels} channels do not merge into {self.channels}"
            )
        if other.count:
            self._join(other.count, other._mean, other._squares)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of each channel.

        Raises:
            ValueError: Nothing was added.
        """
        self._need_any()
        return self._mean

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation of each channel, of the population (divided by the count).

        Raises:
            ValueError: Nothing was added.
        """
        self._need_any()
        return np.sqrt(self._squares / self.count)

    def _join(self, count: int, mean: NDArray[np.float64], squares: NDArray[np.float64]) -> None:
        """Take in positions by their count, mean and sum of squared deviations."""
        total = self.count + count
        shift = mean - self._mean
        self._squares = self._squares + squares + shift**2 * (self.count * count / total)
        self._mean = self._mean + shift * (count / total)
        self.count = total

    def _need_any(self) -> None:
        """Raise unless latents were added."""
        if not self.count:
            raise ValueError(
                "no latents were added, so channels have no mean; encode volumes first"
            )
