"""Feature vectors of slices from a frozen network of others, read from a local file.

Letters: N slices, C channels, F features, H W pixels, h w the grid of a feature map.
"""

import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.export.passes import move_to_device_pass

from ct3dlib.config import GenerationSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.models.pretrained import alex_features, read_state, vgg16_features

_HOW_TO_EXPORT = (
    "export the network with torch.export.export in eval mode, batch, height and width as "
    "Dim.DYNAMIC, and write it with torch.export.save"
)
# All that torch.export.load was seen to raise for files that it did not write, or that are cut.
_DAMAGE = (
    *(RuntimeError, ValueError, KeyError, AttributeError, AssertionError, EOFError, OSError),
    *(pickle.UnpicklingError, zipfile.BadZipFile),
)


@dataclass(frozen=True, eq=False)
class SliceNetwork:
    """A network that gives each slice one vector, and how slices are shown to it.

    Args:
        network: Slices N C H W in [0, 1] to N F, or to a map N F h w whose mean is taken.
        channels: 1, or 3 to which grey slices are repeated.
        spec: Size of the slices, and which ones of a volume are looked at.
        device: Where the network is.
    """

    network: Callable[[Tensor], Any]
    channels: int
    spec: GenerationSpec
    device: torch.device

    @torch.inference_mode()
    def features(self, slices: Float[Tensor, "N 1 H W"]) -> Float[Tensor, "N F"]:
        """Return the feature vectors of slices, on the CPU.

        Resizing has an antialiasing filter, without which distances measure it (Parmar et al.,
        arXiv:2104.11222).

        Args:
            slices: In [0, 1].

        Raises:
            CheckpointError: The network refuses slices of this size, or gives something else than
                one finite vector or map a slice.
        """
        x: Tensor = slices.to(self.device)
        if self.spec.size is not None:
            size = (self.spec.size, self.spec.size)
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        x = x.expand(-1, self.channels, -1, -1)
        try:
            found = self.network(x)
        except (RuntimeError, AssertionError) as error:
            raise CheckpointError(
                f"{self.spec.weights}: refuses slices of shape {list(x.shape)} ({error}); set "
                f"generation.size to the pixels that it takes, or {_HOW_TO_EXPORT}"
            ) from error
        return self._vectors(found, len(x)).float().cpu()

    def _vectors(self, found: Any, count: int) -> Float[Tensor, "N F"]:
        """Return what the network gave as vectors, once it is that."""
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if not isinstance(found, Tensor) or found.ndim not in (2, 4) or len(found) != count:
            raise CheckpointError(
                f"{self.spec.weights}: gives {shape} for {count} slices, wanted [{count}, F] or "
                f"[{count}, F, h, w]; export the network without its classifier"
            )
        vectors = found if found.ndim == 2 else found.mean((2, 3))
        if not vectors.isfinite().all():
            raise CheckpointError(
                f"{self.spec.weights}: gives features that are not finite; its weights are damaged "
                f"or its range is another one than [0, 1]"
            )
        return vectors


def load_slice_network(spec: GenerationSpec, device: torch.device) -> SliceNetwork | None:
    """Load the network that a spec names from its local file; None where it names none.

    Raises:
        CheckpointError: The file is missing or damaged, or holds another network.
    """
    if spec.network is None or spec.weights is None:
        return None
    path = Path(spec.weights)
    match spec.network:
        case "exported":
            network, channels = _read_exported(path, device)
            return SliceNetwork(network, channels, spec, device)
        case "alex":
            maps = alex_features(read_state(path)[0], path)
        case "vgg16":
            maps = vgg16_features(read_state(path)[0], path)
    maps = maps.eval().to(device)
    return SliceNetwork(lambda slices: maps(slices)[-1], 1, spec, device)


def _read_exported(path: Path, device: torch.device) -> tuple[Callable[[Tensor], Any], int]:
    """Return an exported network on a device, and how many channels it takes."""
    try:
        with path.open("rb") as file:
            program = torch.export.load(file)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such file; give a network that is on this machine, nothing is downloaded"
        ) from error
    except _DAMAGE as error:
        raise CheckpointError(
            f"{path}: not a file of torch.export ({type(error).__name__}); {_HOW_TO_EXPORT}"
        ) from error
    names = program.graph_signature.user_inputs
    inputs = [node.meta["val"] for node in program.graph.nodes if node.name in names]
    shapes = [list(value.shape) for value in inputs if isinstance(value, Tensor)]
    if len(inputs) != 1 or [shape[1:2] for shape in shapes] not in ([[1]], [[3]]):
        taken = ", ".join(str(shape) for shape in shapes) or "no tensor"
        raise CheckpointError(
            f"{path}: takes {taken}, wanted one tensor [N, 1, H, W] or [N, 3, H, W]; "
            f"{_HOW_TO_EXPORT}"
        )
    return move_to_device_pass(program, device).module(), shapes[0][1]
