"""Regions by TotalSegmentator, which runs in its own Python environment.

Both sides exchange NIfTI files in a temporary folder, so that none of its packages has to fit
beside ours.
"""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ct3dlib.cohort.catalog import without_root
from ct3dlib.config import TotalSegmentatorSpec
from ct3dlib.errors import ConfigError, VolumeError
from ct3dlib.regions.label_files import LabelMap, read_label_map
from ct3dlib.regions.labelmap import check_content, check_field
from ct3dlib.regions.provider import Provided, Provider, Request
from ct3dlib.scan.nifti import write_nifti
from ct3dlib.scan.resample import resample_to
from ct3dlib.scan.volume import Volume

logger = logging.getLogger(__name__)

# Linux alone; looked up here, as little may be done between fork and exec.
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1
# What ties a child to our own environment.
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP")


@dataclass(frozen=True)
class TotalSegmentatorProvider(Provider):
    """Calls TotalSegmentator for each volume (Wasserthal et al., doi:10.1148/ryai.230024).

    Args:
        spec: The command and its settings.

    Raises:
        ConfigError: The command cannot be run on this machine.
    """

    spec: TotalSegmentatorSpec
    name: str = "totalsegmentator"

    def __post_init__(self) -> None:
        """Find out at once whether it is there, and its version."""
        logger.info("TotalSegmentator: %s", self.version)

    @cached_property
    def version(self) -> str:
        """What `--version` prints."""
        try:
            done = self._run("--version")
        except OSError as error:
            raise ConfigError(
                f"regions.totalsegmentator.command: {' '.join(self.spec.command)} cannot be run "
                f"({error.strerror}); install TotalSegmentator in an environment of its own and "
                f"give its full path, or take it out of regions.providers"
            ) from error
        if done.returncode:
            raise ConfigError(
                f"regions.totalsegmentator.command: {' '.join(self.spec.command)} --version ended "
                f"with {done.returncode}: {_tail(done.stdout)}"
            )
        return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "unknown version"

    def identity(self, name: str, sources: tuple[str, ...]) -> str:
        """Return the version: another one may find other regions."""
        del name, sources
        return self.version

    def __call__(self, request: Request) -> Provided:
        """Return what TotalSegmentator's task `total` finds.

        Raises:
            VolumeError: `PROVIDER_FAILED`, or what `read_label_map` raises.
        """
        volume = request.volume
        with tempfile.TemporaryDirectory(prefix="ct3d-") as folder:
            try:
                found = self._found(volume, Path(folder))
            except VolumeError as error:
                message = without_root(str(error), Path(folder))  # its name is another each time
                raise VolumeError(error.reason, f"{request.name}: {message}") from error
        moved = resample_to(
            found.volume, affine=volume.affine, shape=volume.shape, fill=0, nearest=True
        )
        return Provided(moved.array.astype(np.uint8), found.known, sure=found.known)

    def _found(self, volume: Volume, folder: Path) -> LabelMap:
        """Return the label map that TotalSegmentator makes of a volume in an empty folder."""
        scan, labels = folder / "scan.nii.gz", folder / "labels.nii.gz"
        write_nifti(scan, volume)
        fast = ["--fast"] if self.spec.fast else []
        done = self._run(
            *("-i", str(scan), "-o", str(labels), "--ml", "--device", self.spec.device), *fast
        )
        if done.returncode or not labels.is_file():
            raise VolumeError(
                "PROVIDER_FAILED",
                f"TotalSegmentator ended with {done.returncode}: {_tail(done.stdout)}",
            )
        found = read_label_map(labels, numbering="totalsegmentator_v2")
        check_field(labels, found.volume, affine=volume.affine, shape=volume.shape)
        check_content(labels, found)
        return found

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end; where we are asked to leave, it dies with all it started."""
        command = [*self.spec.command, *arguments]
        with subprocess.Popen(
            command,
            env={k: v for k, v in os.environ.items() if k not in _OURS},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # a group to end: nnU-Net has processes of its own
            preexec_fn=_die_with_parent if _PRCTL else None,
        ) as process:
            try:
                output, _ = process.communicate()
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(command, process.wait(), output)


def _die_with_parent() -> None:
    """Have the kernel end this process when the one that started it dies without a word."""
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _tail(output: str) -> str:
    """Return the last lines of a program's output."""
    return " | ".join(output.strip().splitlines()[-3:]) or "it printed nothing"
