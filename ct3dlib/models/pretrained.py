"""Networks of others as they publish their weights: torch files, read strictly, on this machine.

Letters: N slices or volumes, C channels, D H W voxels.
"""

import hashlib
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ct3dlib.errors import CheckpointError

State = Mapping[str, Tensor]
Features = list[Float[Tensor, "N _ ..."]]

# Of red, green and blue on [0, 1], which torchvision's weights were trained with.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SMALLEST_SIDE = 64  # pixels; less does not survive AlexNet's strides


def read_state(path: Path) -> tuple[State, str]:
    """Return the tensors of a torch file by name, and the hash of the file.

    `state_dict` around them and `module.` before each name, as wrappers leave them, are taken off.

    Raises:
        CheckpointError: The file is missing, damaged or holds something else.
    """
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        document: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such file; give weights that are on this machine, nothing is downloaded"
        ) from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        # torch's own message advises to run what the file holds.
        raise CheckpointError(
            f"{path}: not a file of weights alone ({type(error).__name__}); get it again, or save "
            f"the network's state_dict()"
        ) from error
    if isinstance(document, Mapping) and isinstance(document.get("state_dict"), Mapping):
        document = document["state_dict"]
    if not isinstance(document, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in document.items()
    ):
        raise CheckpointError(f"{path}: holds no state dict; save the network's state_dict()")
    return {name.removeprefix("module."): value for name, value in document.items()}, sha256


class ImageNetFeatures(nn.Module):
    """Features of grey slices in [0, 1] from a classifier of photographs.

    Read where LPIPS reads them (Zhang et al., arXiv:1801.03924): after the last ReLU of each of
    VGG-16's five blocks, after each of AlexNet's five.

    Args:
        layers: The convolutional part, as torchvision numbers it.
        taps: Layers that are read.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layers: nn.Sequential, taps: Sequence[int]) -> None:
        super().__init__()
        self.layers = layers
        self.taps = frozenset(taps)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, slices: Float[Tensor, "N 1 H W"]) -> Features:
        """Return the features at the taps; slices under 64 pixels are enlarged first."""
        side = min(slices.shape[2:])
        x: Tensor = slices
        if side < _SMALLEST_SIDE:
            size = [-(-n * _SMALLEST_SIDE // side) for n in slices.shape[2:]]
            x = F.interpolate(slices, size, mode="bilinear", align_corners=False)
        x = (x - self.mean) / self.std  # N 3 H W
        features = []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in self.taps:
                features.append(x)
        return features


def alex_features(state: State, path: Path) -> ImageNetFeatures:
    """Return AlexNet (Krizhevsky, arXiv:1404.5997) with torchvision's weights.

    Raises:
        CheckpointError: The weights do not fit; each that does not is named.
    """
    layers = nn.Sequential(
        *_conv(3, 64, kernel=11, stride=4, padding=2),
        nn.MaxPool2d(3, 2),
        *_conv(64, 192, kernel=5, padding=2),
        nn.MaxPool2d(3, 2),
        *_conv(192, 384),
        *_conv(384, 256),
        *_conv(256, 256),
    )
    _take(layers, _convolutional(state), path=path, name="AlexNet")
    return ImageNetFeatures(layers, (1, 4, 7, 9, 11))


def vgg16_features(state: State, path: Path) -> ImageNetFeatures:
    """Return VGG-16 (Simonyan and Zisserman, arXiv:1409.1556) with torchvision's weights.

    Raises:
        CheckpointError: The weights do not fit; each that does not is named.
    """
    layers: list[nn.Module] = []
    before = 3
    for after, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            layers += _conv(before, after)
            before = after
        layers.append(nn.MaxPool2d(2, 2))
    network = nn.Sequential(*layers[:-1])
    _take(network, _convolutional(state), path=path, name="VGG-16")
    return ImageNetFeatures(network, (3, 8, 15, 22, 29))


class MedicalNetFeatures(nn.Module):
    """Features of volumes from a 3D residual network, each volume brought to mean 0, deviation 1.

    Args:
        network: Volumes N 1 D H W to a list of features.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, volumes: Float[Tensor, "N 1 D H W"]) -> Features:
        """Return the features of the stem and the four stages."""
        volumes = volumes.float()
        centred = volumes - volumes.mean(dim=(1, 2, 3, 4), keepdim=True)
        variance = centred.square().mean(dim=(1, 2, 3, 4), keepdim=True)
        return self.network(centred / (variance + 1e-6).sqrt())


class ThinnedAndPadded(nn.Module):
    """A shortcut without weights: every second voxel, and zeros for the channels that are new.

    Type A of He et al., arXiv:1512.03385, section 4.1. That of MONAI stops the gradient.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Float[Tensor, "N C D H W"]) -> Float[Tensor, "N C2 D2 H2 W2"]:
        """Return the shortcut."""
        missing = self.channels - x.shape[1]
        return F.pad(x[:, :, ::2, ::2, ::2], (0, 0, 0, 0, 0, 0, 0, missing))


def medicalnet_features(state: State, path: Path) -> MedicalNetFeatures:
    """Return MedicalNet (Chen et al., arXiv:1904.00625) of 10 or 18 layers, whichever it is.

    The last two stages have strides, as MONAI runs these weights, where MedicalNet dilates.

    Raises:
        CheckpointError: The weights are of another network.
    """
    # MONAI takes seconds to import, and few trainings look through this network.
    from monai.networks.nets.resnet import ResNetFeatures

    used = {k: v for k, v in state.items() if not k.startswith(("conv_seg.", "fc."))}
    stages = [f"layer{number}." for number in range(1, 5)]
    blocks = [len({k.split(".")[1] for k in used if k.startswith(stage)}) for stage in stages]
    match blocks:
        case [1, 1, 1, 1]:
            name = "resnet10"
        case [2, 2, 2, 2]:
            name = "resnet18"
        case _:
            raise CheckpointError(
                f"{path}: layer1 to layer4 have {blocks} blocks, wanted [1, 1, 1, 1] or "
                f"[2, 2, 2, 2]; give MedicalNet's resnet_10 or resnet_18"
            )
    network = ResNetFeatures(name, pretrained=False)
    if name == "resnet18":
        for layer, channels in (
            (network.layer2, 128),
            (network.layer3, 256),
            (network.layer4, 512),
        ):
            layer[0].downsample = ThinnedAndPadded(channels)
    _take(network, used, path=path, name=f"MedicalNet's {name}")
    return MedicalNetFeatures(network)


def _conv(
    before: int, after: int, *, kernel: int = 3, stride: int = 1, padding: int = 1
) -> list[nn.Module]:
    return [nn.Conv2d(before, after, kernel, stride, padding), nn.ReLU()]


def _convolutional(state: State) -> State:
    """Return the weights of a classifier's convolutions, named as in their Sequential."""
    prefix = "features."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _take(module: nn.Module, state: State, *, path: Path, name: str) -> None:
    """Give a module all of its weights and no others."""
    wanted, found = _without_counts(module.state_dict()), _without_counts(state)
    faults = [f"missing {key}" for key in wanted.keys() - found.keys()]
    faults += [f"unknown {key}" for key in found.keys() - wanted.keys()]
    faults += [
        f"{key} is {list(found[key].shape)}, wanted {list(wanted[key].shape)}"
        for key in wanted.keys() & found.keys()
        if found[key].shape != wanted[key].shape
    ]
    if faults:
        raise CheckpointError(
            f"{path}: does not fit {name}: {'; '.join(sorted(faults))}; give a file of {name}"
        )
    module.load_state_dict(found, strict=False)


def _without_counts(state: State) -> State:
    """Return weights without counts of batches, which old files lack and frozen norms ignore."""
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
