"""MedSAM2's network, taken apart into what a tracker of many objects at once needs.

The layers are those of transformers' SAM 2; what leads from one to the next is written here,
after Ravi et al., arXiv:2408.00714, section 4 and appendix D, as transformers' own way keeps one
object in a batch. Under autocast, positions, scores, pointers and logits stay float32.

Letters: B slices or tracks, C channels (256), E channels of a memory (64), S S pixels of a
picture, h w pixels of the features (S/16), M memories, P pointers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ct3dlib.regions.medsam2_weights import Weights, fill_, read_weights

SIZE = 512  # pixels, of the pictures that MedSAM2 was trained on
NO_OBJECT = -1024.0  # logit of each pixel where the object is not
_MASK_LOGITS = (-10.0, 10.0)  # of a mask that is given: outside, inside

Levels = tuple[Float[Tensor, "B 256 h w"], Float[Tensor, "B 64 h2 w2"], Float[Tensor, "B 32 h4 w4"]]
Embedded = tuple[Float[Tensor, "B 1 _ 256"], Float[Tensor, "B 256 h w"]]


class Found(NamedTuple):
    """What the network sees of an object in a slice.

    Args:
        logits: Of each pixel, above 0 in the object; `NO_OBJECT` everywhere where it is absent.
        pointer: Sums up which object it is.
        score: Logit of whether the object is in the slice.
    """

    logits: Float[Tensor, "B S4 S4"]
    pointer: Float[Tensor, "B 256"]
    score: Float[Tensor, "B"]


class Network(nn.Module):
    """SAM 2 for pictures of one size.

    Args:
        model: transformers' `Sam2VideoModel` with its weights.
    """

    picture_position: Tensor
    prompt_position: Tensor
    memory_position: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.size: int = self.model.config.image_size
        side = self.size // 16
        tables = {
            "picture_position": _sines(self.model.vision_encoder.neck, 256, side),
            "memory_position": _sines(self.model.memory_encoder, 64, side),
            "prompt_position": self.model.get_image_wide_positional_embeddings().detach(),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def encode(self, pictures: Float[Tensor, "B 3 S S"]) -> Levels:
        """Return the features of pictures, coarse to fine, the finer two as the decoder adds them.

        Args:
            pictures: Normalised as ImageNet's.
        """
        fine, middle, coarse = self.model.vision_encoder(pictures).fpn_hidden_states
        decoder = self.model.mask_decoder
        return coarse, decoder.conv_s1(middle), decoder.conv_s0(fine)

    def find_boxes(self, levels: Levels, boxes: Float[Tensor, "B 4"]) -> Found:
        """Find objects by boxes around them.

        Args:
            levels: Features of a slice for each object.
            boxes: x0, y0, x1, y1, pixels.
        """
        corners = rearrange(boxes, "b (n xy) -> b 1 n xy", xy=2)
        labels = torch.tensor([2, 3], device=boxes.device).expand(len(boxes), 1, 2)
        unseen = levels[0] + self.model.no_memory_embedding.view(1, -1, 1, 1)
        return self._decode((unseen, *levels[1:]), self._embed(corners, labels), several=False)

    def find_masks(self, levels: Levels, masks: Bool[Tensor, "B S S"]) -> Found:
        """Take objects as their masks are given; the network only learns which they are.

        Args:
            levels: Features of a slice for each object.
            masks: None is empty.
        """
        with torch.autocast(masks.device.type, enabled=False):
            small = self.model.mask_downsample(masks[:, None].float())  # B 1 S/4 S/4
        embedded = self._embed(*self._no_points(len(masks)), small)
        pointer = self._decode(levels, embedded, several=False).pointer
        outside, inside = _MASK_LOGITS
        logits = torch.where(masks[:, None], inside, outside)
        size = [side // 4 for side in masks.shape[1:]]
        # The reference, too, remembers a given mask from a quarter of its resolution.
        logits = F.interpolate(logits, size, mode="bilinear", antialias=True)
        return Found(logits[:, 0], pointer, pointer.new_full((len(masks),), inside))

    def find(self, levels: Levels) -> Found:
        """Find objects that were seen before, by what was seen of them.

        Args:
            levels: Features of a slice for each object, the coarsest as `recall` returns them.
        """
        embedded = self._embed(*self._no_points(len(levels[0])))
        return self._decode(levels, embedded, several=True)

    def remember(
        self, coarse: Float[Tensor, "B 256 h w"], found: Found, *, prompted: bool
    ) -> Float[Tensor, "B hw 64"]:
        """Return what is kept of slices and of the objects found in them.

        Args:
            coarse: Features of the slices, without what was seen before.
            found: Objects in them.
            prompted: Keep a sharp mask, as of slices that somebody has looked at.
        """
        size = (self.size, self.size)
        logits = F.interpolate(found.logits[:, None], size, mode="bilinear")
        masks = (logits > 0).float() if prompted else logits.sigmoid()
        config = self.model.config
        masks = masks * config.sigmoid_scale_for_mem_enc + config.sigmoid_bias_for_mem_enc
        memory, _ = self.model.memory_encoder(coarse, masks)  # B 64 h w
        memory = rearrange(memory, "b e h w -> b (h w) e")
        absent = (found.score <= 0)[:, None, None]
        return memory + absent * self.model.occlusion_spatial_embedding_parameter

    def recall(
        self,
        coarse: Float[Tensor, "B 256 h w"],
        memories: Sequence[Float[Tensor, "B hw 64"]],
        pointers: Sequence[Float[Tensor, "B 256"]],
        *,
        ages: Float[Tensor, "P"],
    ) -> Float[Tensor, "B 256 h w"]:
        """Return the features of slices, with what was seen of the object before.

        Args:
            coarse: Features of the slices.
            memories: Of the prompt's slice first, then of slices before, nearest first.
            pointers: In the same order; they may reach further back.
            ages: How far back each pointer lies; 1 is the furthest that is looked at.
        """
        times = self.model.memory_temporal_positional_encoding[:, 0]  # 7 1 64, the prompt's last
        times = torch.cat((times[-1:], times[: len(memories) - 1]))
        positions = rearrange(self.memory_position + times, "m n e -> (m n) 1 e")
        parts = (
            coarse.shape[1] // positions.shape[-1]
        )  # a pointer is as long as 4 pixels of a memory
        memory = torch.cat(tuple(memories), dim=1)
        pointer = torch.stack(tuple(pointers), dim=1).to(memory.dtype)
        pointer = rearrange(pointer, "b p (k e) -> b (p k) e", k=parts)
        memory = torch.cat((memory, pointer), dim=1)
        aged = repeat(self._age_positions(ages), "p e -> (p k) 1 e", k=parts)
        batch = len(coarse)
        seen = self.model.memory_attention(
            current_vision_features=rearrange(coarse, "b c h w -> (h w) b c"),
            current_vision_position_embeddings=self.picture_position[:, None].expand(-1, batch, -1),
            memory=rearrange(memory, "b n e -> n b e"),
            memory_posision_embeddings=torch.cat((positions, aged)).expand(-1, batch, -1),
            num_object_pointer_tokens=len(aged),
        )  # 1 B (h w) C
        return rearrange(seen, "1 b (h w) c -> b c h w", h=coarse.shape[2])

    def _no_points(self, count: int) -> tuple[Tensor, Tensor]:
        """Return a point that is none for each of some objects, and its label."""
        points = self.prompt_position.new_zeros(count, 1, 1, 2)
        return points, torch.full((count, 1, 1), -1, device=points.device)

    def _embed(self, points: Tensor, labels: Tensor, masks: Tensor | None = None) -> Embedded:
        """Return prompts as the decoder takes them."""
        # Coordinates in bfloat16 would be pixels off.
        with torch.autocast(points.device.type, enabled=False):
            return self.model.prompt_encoder(
                input_points=points, input_labels=labels, input_boxes=None, input_masks=masks
            )

    def _decode(self, levels: Levels, embedded: Embedded, *, several: bool) -> Found:
        """Find objects in slices.

        `several` draws three masks and keeps the one that the network believes in most; without
        it, one is drawn, as for a prompt that leaves no choice.
        """
        coarse, middle, fine = levels
        sparse, dense = embedded
        masks, quality, tokens, score = self.model.mask_decoder(
            image_embeddings=coarse,
            image_positional_embeddings=self.prompt_position.expand(len(coarse), -1, -1, -1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=several,
            high_resolution_features=[fine, middle],
        )
        rows, best = torch.arange(len(coarse), device=coarse.device), quality[:, 0].argmax(dim=-1)
        logits, score = masks[rows, 0, best].float(), score[:, 0, 0].float()
        pointer = self.model.object_pointer_proj(tokens[rows, 0, best]).float()
        present = score > 0
        return Found(
            logits.where(present[:, None, None], NO_OBJECT),
            pointer.where(present[:, None], self.model.no_object_pointer),
            score,
        )

    def _age_positions(self, ages: Tensor) -> Tensor:
        """Return sines and cosines of ages, arXiv:1706.03762, section 3.5, projected: P 64."""
        projection = self.model.temporal_positional_encoding_projection_layer
        channel = torch.arange(projection.in_features // 2, device=ages.device)
        periods = 10000 ** (channel // 2 * 2 / len(channel))
        angles = ages[:, None] / periods
        with torch.autocast(ages.device.type, enabled=False):
            return projection(torch.cat((angles.sin(), angles.cos()), dim=-1))


def load_network(weights: Path, sha256: str, *, device: torch.device, size: int = SIZE) -> Network:
    """Return MedSAM2 with the weights of a file, ready to run.

    Args:
        weights: One of MedSAM2's files of SAM 2.1 with hiera-tiny.
        sha256: Of this file; any other is refused before it is parsed.
        device: Where it shall run.
        size: Sides of the pictures, pixels.

    Raises:
        CheckpointError: The file is missing, another one, or does not fit in any tensor.
    """
    return make_network(read_weights(weights, sha256), path=weights, size=size).to(device)


def make_network(weights: Weights, *, path: Path, size: int) -> Network:
    """Return MedSAM2 with weights by SAM 2's names, ready to run on the CPU.

    Args:
        weights: All that the network has.
        path: Where they come from, for messages.
        size: Sides of the pictures, pixels; the shapes of the weights do not depend on it.

    Raises:
        CheckpointError: A weight is missing, unknown or of another shape.
        ValueError: The size is not a multiple of 32.
    """
    if size % 32 or size < 32:
        raise ValueError(f"size is {size} pixels, wanted a multiple of 32")
    model = _build(size)
    fill_(model, weights, path=path)
    return Network(model).eval().requires_grad_(False)


def _build(size: int) -> nn.Module:
    """Return transformers' SAM 2 of MedSAM2's configuration; all else are its defaults."""
    # transformers takes seconds to import, and few region backends look through this network.
    from transformers import (
        Sam2HieraDetConfig,
        Sam2VideoConfig,
        Sam2VideoModel,
        Sam2VideoPromptEncoderConfig,
        Sam2VisionConfig,
    )

    config = Sam2VideoConfig(
        vision_config=Sam2VisionConfig(
            backbone_config=Sam2HieraDetConfig(image_size=[size, size]),
            backbone_feature_sizes=[[size // stride] * 2 for stride in (4, 8, 16)],
        ),
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(image_size=size),
        image_size=size,
        memory_attention_rope_feat_sizes=[size // 16] * 2,
    )
    return Sam2VideoModel(config)


def _sines(owner: Any, channels: int, side: int) -> Tensor:
    """Return the positions of a grid as a part of the model encodes them: (side side) channels."""
    shape = torch.Size((1, channels, side, side))
    table = owner.position_encoding(shape, torch.device("cpu"), torch.float32)
    return rearrange(table[0], "c h w -> (h w) c").clone()
