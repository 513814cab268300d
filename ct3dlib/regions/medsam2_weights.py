"""MedSAM2's weights: read from its file, renamed to transformers' SAM 2 tensor by tensor.

MedSAM2 (Ma et al., arXiv:2504.03600) is SAM 2.1 with the hiera-tiny encoder (Ravi et al.,
arXiv:2408.00714) trained on, and its files name tensors as SAM 2's own code does.
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ct3dlib.errors import CheckpointError
from ct3dlib.scan.reading import file_sha256

Weights = dict[str, Tensor]

_SHOWN = 5
_FETCH = "give MedSAM2_latest.pt of MedSAM2's authors with its sha256, or set regions.medsam2: null"

_MLP = r"object_pointer_proj|mask_decoder\.(?:\w+_head|output_hypernetworks_mlps\.\d)"
_BLOCK = r"(?:vision_encoder\.backbone\.blocks|mask_decoder\.transformer\.layers)\.\d+"

# Each rule works on what the ones before it left.
_RULES = (
    # parts
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.", "vision_encoder.neck."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^obj_ptr_proj\.", "object_pointer_proj."),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
    (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
    (r"^no_obj_ptr$", "no_object_pointer"),
    (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    # attention, norms and perceptrons wherever they are
    (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
    (r"\.out_proj\.", ".o_proj."),
    (rf"^({_BLOCK}|memory_attention\.layers\.\d)\.norm(\d)\.", r"\1.layer_norm\2."),
    (r"^memory_attention\.norm\.", "memory_attention.layer_norm."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (rf"^({_BLOCK}\.mlp)\.layers\.0\.", r"\1.proj_in."),
    (rf"^({_BLOCK}\.mlp)\.layers\.1\.", r"\1.proj_out."),
    (rf"^({_MLP})\.layers\.0\.", r"\1.proj_in."),
    (rf"^({_MLP})\.layers\.2\.", r"\1.proj_out."),
    (rf"^({_MLP})\.layers\.1\.", r"\1.layers.0."),
    # image encoder
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"(\.neck\.convs\.\d)\.conv\.", r"\1."),
    # prompt encoder
    (r"\.pe_layer\.positional_encoding_gaussian_matrix$", ".shared_embedding.positional_embedding"),
    (r"\.point_embeddings\.(\d)\.weight$", r".point_embed.weight.\1"),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    # mask decoder
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    # memory encoder
    (r"^memory_encoder\.pix_feat_proj\.", "memory_encoder.feature_projection."),
    (r"^memory_encoder\.fuser\.", "memory_encoder.memory_fuser."),
    (r"(\.memory_fuser\.layers\.\d)\.gamma$", r"\1.scale"),
    (r"(\.memory_fuser\.layers\.\d)\.dwconv\.", r"\1.depthwise_conv."),
    (r"(\.memory_fuser\.layers\.\d)\.norm\.", r"\1.layer_norm."),
    (r"(\.memory_fuser\.layers\.\d)\.pwconv(\d)\.", r"\1.pointwise_conv\2."),
    *((rf"\.encoder\.{3 * i}\.", f".layers.{i}.conv.") for i in range(4)),
    *((rf"\.encoder\.{3 * i + 1}\.", f".layers.{i}.layer_norm.") for i in range(4)),
    (r"\.encoder\.12\.", ".final_conv."),
)

_POINTS = "prompt_encoder.point_embed.weight"
_FREQUENCIES = "prompt_encoder.shared_embedding.positional_embedding"


def read_weights(path: Path, sha256: str) -> Weights:
    """Return the tensors of a MedSAM2 file by the names they have in it, on the CPU.

    The file is parsed only if its hash is the one that was asked for, and no code in it is run.

    Raises:
        CheckpointError: The file is missing, has another hash, is damaged or of another kind.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; {_FETCH}")
    if (found := file_sha256(path)) != sha256.lower():
        raise CheckpointError(
            f"{path}: its sha256 is {found}, wanted {sha256}; fetch the file again, or state its "
            f"hash if you trust it"
        )
    try:
        document: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        # torch's own message advises to run what the file holds.
        raise CheckpointError(
            f"{path}: not a torch file of tensors alone ({type(error).__name__}); {_FETCH}"
        ) from error
    weights = document.get("model") if isinstance(document, Mapping) else None
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{path}: holds no weights under 'model'; {_FETCH}")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: {name} is a {type(value).__name__}, wanted a tensor; {_FETCH}"
            )
    return dict(weights)


def rename(name: str) -> str:
    """Return transformers' name of a tensor of SAM 2; one that no rule knows keeps its own."""
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name


def convert(weights: Mapping[str, Tensor], *, path: Path) -> Weights:
    """Return a MedSAM2 file's tensors under transformers' names.

    The four embeddings of points become one tensor, and the frequencies of positions are there
    twice, for prompts and for pictures.

    Args:
        weights: By SAM 2's names.
        path: Of the file, for messages.

    Raises:
        CheckpointError: Two names become one.
    """
    sources: dict[str, str] = {}
    for source in weights:
        name = rename(source)
        if name in sources:
            raise CheckpointError(f"{path}: {sources[name]} and {source} are both {name}; {_FETCH}")
        sources[name] = source
    converted = {name: weights[source] for name, source in sources.items()}
    points = sorted(name for name in converted if name.startswith(f"{_POINTS}."))
    if len({converted[name].shape[1:] for name in points}) == 1:
        converted[_POINTS] = torch.cat([converted.pop(name) for name in points])
    if _FREQUENCIES in converted:
        converted["shared_image_embedding.positional_embedding"] = converted[_FREQUENCIES]
    return converted


def fill_(module: nn.Module, weights: Mapping[str, Tensor], *, path: Path) -> None:
    """Load a MedSAM2 file's tensors into transformers' SAM 2, all of them or none.

    Args:
        module: Its weights are replaced.
        weights: By SAM 2's names; all must be used.
        path: Of the file, for messages.

    Raises:
        CheckpointError: Tensors are missing, left over or of another shape; the message counts
            those that fit and names those that do not.
    """
    found, wanted = convert(weights, path=path), module.state_dict()
    listed = {
        "missing": [name for name in wanted if name not in found],
        "unknown": [name for name in found if name not in wanted],
        "of another shape": [
            f"{name} {list(found[name].shape)} for {list(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in found and found[name].shape != tensor.shape
        ],
    }
    if any(listed.values()):
        fit = len(wanted) - len(listed["missing"]) - len(listed["of another shape"])
        raise CheckpointError(
            f"{path}: not the weights of MedSAM2, which is SAM 2.1 with hiera-tiny: {fit} of "
            f"{len(wanted)} tensors fit; "
            + "; ".join(f"{len(v)} {k}: {_some(v)}" for k, v in listed.items() if v)
            + f"; {_FETCH}"
        )
    module.load_state_dict(found, strict=True)


def _some(names: Sequence[str]) -> str:
    """Return the first names and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
