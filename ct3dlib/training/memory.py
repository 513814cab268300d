"""Memory of the process that trains."""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Keep what is freed for the arrays of the next step; where there is no glibc, do nothing.

    Every step takes and frees the same large arrays. By default each is mapped anew and given back
    to the system, which clears every page again: up to a third of the time of a step on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)
