"""Start a module on several ranks, as torchrun does."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence


def run_ranks(module: str, arguments: Sequence[str], *, world_size: int = 2) -> None:
    """Run `python -m module arguments` on every rank and wait; raises with the errors' text."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    failed = [
        f"rank {rank} ended with {process.returncode}:\n{error}"
        for rank, (process, error) in enumerate(zip(processes, errors, strict=True))
        if process.returncode
    ]
    if failed:
        raise RuntimeError("\n".join(failed))
