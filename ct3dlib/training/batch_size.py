"""How many items fit into a device's memory."""

from collections.abc import Callable

import torch


def largest_batch(step: Callable[[int], None], *, limit: int) -> int:
    """Return the largest power of two that a training step fits into memory with.

    Args:
        step: Makes a whole step, gradients and optimizer included, with so many items.
        limit: The largest number that is tried.

    Raises:
        ValueError: `limit` is not positive.
        torch.OutOfMemoryError: Not even one item fits.
    """
    if limit < 1:
        raise ValueError(f"limit must be positive, not {limit}")
    fits, size = 0, 1
    while size <= limit:
        try:
            step(size)
        except torch.OutOfMemoryError:
            if not fits:
                raise
            break
        finally:
            # What a failed step held must not count against the next one.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        fits, size = size, 2 * size
    return fits
