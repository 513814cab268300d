"""Progress of long work: a bar on a terminal, a line per interval in a log file.

Imports the standard library only, so that every floor can use it.
"""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
INTERVAL_S = 30.0


def progress(items: Iterable[Item], *, name: str, unit: str, initial: int = 0) -> Iterator[Item]:
    """Yield the items and show how far the work is; silent on ranks other than 0.

    Args:
        items: What is worked on; a rate is shown, and a time left if their number is known.
        name: What the work is, as `volumes 0003`.
        unit: One item in the singular, as `volume`.
        initial: Items that were done before, as the steps before a resume.
    """
    total = initial + len(items) if isinstance(items, Sized) else None
    if os.environ.get("RANK", "0") != "0":
        yield from items
    elif sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=name, unit=unit, initial=initial, total=total)
    else:
        yield from _logged(items, name=name, unit=unit, initial=initial, total=total)


def _logged(
    items: Iterable[Item], *, name: str, unit: str, initial: int, total: int | None
) -> Iterator[Item]:
    """Yield the items and log a line per interval and one at the end."""
    start = last = time.monotonic()
    done = initial
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= INTERVAL_S and done != total:
            last = now
            logger.info("%s: %s", name, _line(done, total, rate=(done - initial) / (now - start)))
    seconds = time.monotonic() - start
    rate = (done - initial) / max(seconds, 1e-9)
    logger.info("%s: %d %ss in %.1f s, %.2f %ss/s", name, done, unit, seconds, rate, unit)


def _line(done: int, total: int | None, *, rate: float) -> str:
    """Return done/total, rate and time left in words."""
    if total is None:
        return f"{done} done, {rate:.2f}/s"
    left = (total - done) / rate
    return f"{done}/{total} ({done / total:.0%}), {rate:.2f}/s, {_clock(left)} left"


def _clock(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
