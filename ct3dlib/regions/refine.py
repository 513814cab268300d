"""MedSAM2 over what a provider found: drawn anew, and taken where both agree."""

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ct3dlib.config import Medsam2Spec
from ct3dlib.errors import ConfigError
from ct3dlib.regions.label_map import LABEL_MAP, PromptWindow, region_id
from ct3dlib.regions.medsam2_network import SIZE, Network, load_network
from ct3dlib.regions.pictures import WINDOWS, grey_pictures
from ct3dlib.regions.prompts import prompts_of, slices_of
from ct3dlib.regions.tracker import Prompt, Track, encode, track
from ct3dlib.regions.weights import local_file
from ct3dlib.scan.volume import Volume

logger = logging.getLogger(__name__)

_CHUNK = 8  # slices at a time on the volume's grid
# For tests alone, so that a CPU can run the network in seconds.
_TEST_SIZE = "CT3D_TEST_MEDSAM2_SIZE"


@dataclass(frozen=True, eq=False)
class Refiner:
    """Draws regions anew.

    Args:
        spec: What, and what is taken.
        network: MedSAM2.
        device: Where it runs.
    """

    spec: Medsam2Spec
    network: Network
    device: torch.device

    def __call__(
        self, volume: Volume, labels: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], dict[int, float], frozenset[int]]:
        """Return labels with regions drawn anew.

        A region that is taken grows into what no kept region holds; where two of them meet, the
        larger logit wins.

        Args:
            volume: HU, D H W.
            labels: Ids 0-20 on its grid, without derived ones.

        Returns:
            The labels, the Dice of each region that was drawn with the provider's, and which of
            them were taken.
        """
        drawn = self._draw(volume, labels)
        agreement = _agreement(drawn, labels, self.device)
        # Whatever the threshold, a region is never given up for a drawing that misses it.
        taken = frozenset(
            i for i, value in agreement.items() if value >= self.spec.accept and value
        )
        merged = _merge({i: drawn[i] for i in sorted(taken)}, labels, self.device)
        return merged, agreement, taken

    def _draw(self, volume: Volume, labels: NDArray[np.uint8]) -> dict[int, Float[Tensor, "D h w"]]:
        """Return the logits of each region, at the network's low resolution."""
        drawn: dict[int, Tensor] = {}
        for window, regions in by_window(self.spec.regions).items():
            prompts: list[Prompt] = []
            owner: list[int] = []
            for region in regions:
                found = prompts_of(
                    labels == region,
                    size=self.network.size,
                    kind=self.spec.prompt,
                    margin=self.spec.margin,
                    reach=self.spec.reach,
                )
                prompts += found
                owner += [region] * len(found)
            if not prompts:
                continue
            tracks = self.draw(volume, prompts, WINDOWS[window])
            for region, one in zip(owner, tracks, strict=True):
                logits = drawn.setdefault(region, _nothing(one, len(labels)))
                part = logits[one.start : one.stop]
                torch.maximum(part, largest_part(one.logits), out=part)
        return drawn

    def draw(
        self, volume: Volume, prompts: list[Prompt], window: tuple[float, float]
    ) -> list[Track]:
        """Return what becomes of prompts on slices in one window; each slice is encoded once."""
        slices = slices_of(prompts)
        pictures = grey_pictures([volume.array[z] for z in slices], window, self.network.size)
        features = encode(
            self.network,
            pictures.to(self.device),
            slices,
            batch=self.spec.slices_at_a_time,
            precision=self.spec.precision,
        )
        return track(
            self.network,
            features,
            prompts,
            patience=self.spec.patience,
            precision=self.spec.precision,
        )


def build_refiner(spec: Medsam2Spec) -> Refiner:
    """Return the refiner of a spec, with its weights.

    Raises:
        CheckpointError: The weights are missing or not those that the spec names.
        ConfigError: This machine has no such device, or a region cannot be prompted.
    """
    cuda = torch.cuda.is_available()
    if spec.device == "cuda" and not cuda:
        raise ConfigError(
            "regions.medsam2.device: cuda was asked for and this machine has none; set auto or cpu"
        )
    by_window(spec.regions)
    device = torch.device("cuda" if cuda and spec.device != "cpu" else "cpu")
    size = int(os.environ.get(_TEST_SIZE, SIZE))
    if size != SIZE:
        logger.warning("%s: pictures of %d pixels, for a test", _TEST_SIZE, size)
    network = load_network(local_file(spec.weights), spec.sha256, device=device, size=size)
    return Refiner(spec, network, device)


def by_window(names: tuple[str, ...] | None) -> Mapping[PromptWindow, list[int]]:
    """Return the regions to draw by the window that they are seen in.

    Raises:
        ConfigError: A name is no region's, or one that a box does not prompt.
    """
    windows: dict[PromptWindow, list[int]] = {}
    promptable = [region.name for region in LABEL_MAP if region.prompt is not None]
    for name in promptable if names is None else names:
        if name not in promptable:
            raise ConfigError(
                f"regions.medsam2.regions: {name!r} cannot be prompted; there are "
                f"{', '.join(promptable)}"
            )
        region = region_id(name)
        windows.setdefault(LABEL_MAP[region].prompt or "soft", []).append(region)
    return windows


def _nothing(one: Track, depth: int) -> Float[Tensor, "D h w"]:
    """Return logits of no object for all slices."""
    return one.logits.new_full((depth, *one.logits.shape[1:]), float("-inf"))


def largest_part(logits: Float[Tensor, "z h w"]) -> Float[Tensor, "z h w"]:
    """Return logits with everything but the largest connected part of what is positive put out."""
    positive = (logits > 0).cpu().numpy()
    numbers = np.zeros(positive.shape, np.int32)
    ndimage.label(positive, output=numbers)
    sizes = np.bincount(numbers.ravel())
    sizes[0] = 0
    if np.count_nonzero(sizes) < 2:
        return logits
    other = torch.from_numpy((numbers > 0) & (numbers != sizes.argmax())).to(logits.device)
    return logits.masked_fill(other, -1.0)


def on_slices(logits: Float[Tensor, "z h w"], shape: tuple[int, int]) -> Float[Tensor, "z H W"]:
    """Return low-resolution logits on the volume's slices, bilinear."""
    finite = logits.clamp(min=-32.0)[:, None]
    return F.interpolate(finite, shape, mode="bilinear", align_corners=False)[:, 0]


def _chunks(depth: int) -> Iterator[slice]:
    """Return slices that are worked on together."""
    for start in range(0, depth, _CHUNK):
        yield slice(start, min(start + _CHUNK, depth))


def _agreement(
    drawn: Mapping[int, Float[Tensor, "D h w"]], labels: NDArray[np.uint8], device: torch.device
) -> dict[int, float]:
    """Return the Dice of each region's own drawing with the labels."""
    both = dict.fromkeys(drawn, 0)
    total = dict.fromkeys(drawn, 0)
    height, width = labels.shape[1:]
    for at in _chunks(len(labels)):
        old = torch.from_numpy(labels[at]).to(device)
        for region, logits in drawn.items():
            ours, theirs = on_slices(logits[at], (height, width)) > 0, old == region
            both[region] += int((ours & theirs).sum())
            total[region] += int(ours.sum()) + int(theirs.sum())
    return {region: 2 * both[region] / max(total[region], 1) for region in drawn}


def _merge(
    taken: Mapping[int, Float[Tensor, "D h w"]], labels: NDArray[np.uint8], device: torch.device
) -> NDArray[np.uint8]:
    """Return labels in which some regions are replaced by their drawings."""
    if not taken:
        return labels
    ids = torch.tensor([*taken], dtype=torch.uint8, device=device)
    kept = np.where(np.isin(labels, [*taken]), 0, labels).astype(np.uint8)
    height, width = labels.shape[1:]
    merged = np.empty_like(labels)
    for at in _chunks(len(labels)):
        every = torch.stack([on_slices(logits[at], (height, width)) for logits in taken.values()])
        value, winner = every.max(dim=0)
        new = torch.where(value > 0, ids[winner], 0).cpu().numpy()
        merged[at] = np.where(kept[at] > 0, kept[at], new)
    return merged
