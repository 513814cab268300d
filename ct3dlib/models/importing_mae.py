"""Masked autoencoders in the format of TANGERINE's published weights: the same network as ours.

The file holds `model`, a state_dict, and `args`, how its training was called; or the state_dict
alone. All sizes are read off the weights, but the number of heads, which leaves no trace in them.

Letters: N patches, P voxels of a patch, C channels of a token. The kernel C 1 d h w that embeds
patches is our matrix C P, and tables of positions are 1 1+N C: nothing is rearranged.
"""

import logging
import math
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor

from ct3dlib.config import (
    MaskedAutoencoderNetworkSpec,
    Shape,
    VisionTransformerSpec,
    VolumeEncoderNetworkSpec,
)
from ct3dlib.config.base import Spec
from ct3dlib.config.explain import explain
from ct3dlib.errors import CheckpointError
from ct3dlib.models.mae import MaskedAutoencoder
from ct3dlib.models.state_dicts import Weights, fill_, read_checkpoint, weights_of
from ct3dlib.models.volume_encoder import VolumeEncoder
from ct3dlib.nn.position import resize_table, sincos_table

logger = logging.getLogger(__name__)

Model = MaskedAutoencoder | VolumeEncoder
NetworkSpec = MaskedAutoencoderNetworkSpec | VolumeEncoderNetworkSpec
Pair = tuple[str, list[str]]
_Spec = TypeVar("_Spec", bound=Spec)

# What sizes are read off, with its number of axes; the decoder's names begin with its part.
_KERNEL, _POSITIONS, _INNER = "patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"
_AXES = {_KERNEL: 5, _POSITIONS: 3, _INNER: 2}
_DECODER = "decoder_"
# Heads of the published encoders by their width, and of every published decoder.
_HEADS = {768: 12, 1024: 16, 1280: 16}
_DECODER_HEADS = 16
_BLOCK = {
    "attention_norm": "norm1",
    "qkv": "attn.qkv",
    "attention_out": "attn.proj",
    "feed_forward_norm": "norm2",
    "feed_forward.0": "mlp.fc1",
    "feed_forward.2": "mlp.fc2",
}
# Ours are computed in double precision, theirs perhaps not.
_TOLERANCE = 1e-4


def import_mae(path: Path, shape: Shape | None = None) -> tuple[Model, dict[str, int]]:
    """Return the masked autoencoder of a checkpoint, or its encoder where it holds no more.

    Stored positions are kept; a warning says where they are not those that we would compute.

    Args:
        path: A file with `model` and `args`, or a state_dict.
        shape: Voxels of the volumes that the model is to see; positions of another grid are
            stretched onto theirs. None: the cube that it was trained on.

    Returns:
        The model in eval mode, and how many entries of other parts were left out.

    Raises:
        CheckpointError: The file cannot be read, is a fine-tuned model's, does not tell its heads
            or its grid, or a weight is missing, left over or misshaped.
    """
    checkpoint = read_checkpoint(path, classes=(Namespace,))
    arguments = _arguments(checkpoint)
    weights = weights_of(checkpoint, path=path)
    spec = network_of(weights, arguments, shape=shape, path=path)
    model = _built(spec)
    fill_(model, _flat(weights), sources(spec), path=path)
    _warn(model, arguments, path)
    if shape is not None and shape != spec.shape:
        model = _stretched(model, shape, path)
    others = {
        key: len(value) if isinstance(value, Mapping) else 1
        for key, value in checkpoint.items()
        if key not in ("model", "state_dict", "args") and not isinstance(value, Tensor)
    }
    return model, others


def network_of(
    weights: Weights, arguments: Mapping[str, Any], *, shape: Shape | None, path: Path
) -> NetworkSpec:
    """Return the geometry that the shapes of weights tell.

    Args:
        weights: By the names of the format.
        arguments: Of their training: `num_heads`, `decoder_num_heads`, where it was given them.
        shape: Voxels of a volume, for a grid that is no cube.
        path: Of the file, for messages.

    Raises:
        CheckpointError: The weights are not those of a masked autoencoder, or do not tell it.
    """
    has_decoder = any(name.startswith(_DECODER) for name in weights)
    _check_kind(weights, has_decoder, path)
    channels, *patch = weights[_KERNEL].shape[1:]
    if channels != 1:
        raise CheckpointError(
            f"{path}: {_KERNEL} is of {channels} channels, volumes have 1; give a checkpoint of a "
            f"model of CT alone"
        )
    encoder = _transformer(weights, "", arguments, path)
    grid = _grid(weights, patch, shape, path)
    values = {
        "encoder": encoder,
        "patch_size": patch,
        "shape": [n * p for n, p in zip(grid, patch, strict=True)],
    }
    if not has_decoder:
        return _checked(VolumeEncoderNetworkSpec, values, path)
    values["decoder"] = _transformer(weights, _DECODER, arguments, path)
    # Voxels come out of a sigmoid; without one it is normalised patches that are predicted.
    values["norm_pix"] = "decoder_pred.weight" in weights
    return _checked(MaskedAutoencoderNetworkSpec, values, path)


def sources(spec: NetworkSpec) -> dict[str, list[str]]:
    """Return the names in the format of what makes each weight of ours."""
    match spec:
        case VolumeEncoderNetworkSpec():
            return dict(_encoder("", spec))
        case MaskedAutoencoderNetworkSpec():
            return dict((*_encoder("encoder.", spec.network), *_decoder(spec)))


def _encoder(ours: str, spec: VolumeEncoderNetworkSpec) -> Iterator[Pair]:
    """Yield the weights of our encoder and theirs."""
    yield f"{ours}cls_token", ["cls_token"]
    yield f"{ours}position", [_POSITIONS]
    yield from _affine(f"{ours}patch_embed", "patch_embed.proj")
    yield from _blocks(f"{ours}blocks", "blocks", spec.encoder.num_layers)
    yield from _affine(f"{ours}norm", "norm")


def _decoder(spec: MaskedAutoencoderNetworkSpec) -> Iterator[Pair]:
    """Yield the weights of our decoder and theirs."""
    yield "decoder.mask_token", ["mask_token"]
    yield "decoder.position", [f"{_DECODER}{_POSITIONS}"]
    yield from _affine("decoder.embed", "decoder_embed")
    yield from _blocks("decoder.blocks", "decoder_blocks", spec.decoder.num_layers)
    yield from _affine("decoder.norm", "decoder_norm")
    yield from _affine("decoder.predict", "decoder_pred" if spec.norm_pix else "decoder_pred.0")


def _blocks(ours: str, theirs: str, count: int) -> Iterator[Pair]:
    """Yield the weights of transformer blocks."""
    for number in range(count):
        for module, name in _BLOCK.items():
            yield from _affine(f"{ours}.{number}.{module}", f"{theirs}.{number}.{name}")


def _affine(ours: str, theirs: str) -> Iterator[Pair]:
    """Yield the weight and the bias of one layer."""
    for kind in ("weight", "bias"):
        yield f"{ours}.{kind}", [f"{theirs}.{kind}"]


def _arguments(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how the training was called, where the file says it."""
    found = checkpoint.get("args")
    if isinstance(found, Namespace):
        return vars(found)
    return found if isinstance(found, Mapping) else {}


def _check_kind(weights: Weights, has_decoder: bool, path: Path) -> None:
    """Refuse weights of another model, before sizes are read off them."""
    heads = sorted(name for name in weights if name.startswith(("head.", "fc_norm.")))
    if heads:
        raise CheckpointError(
            f"{path}: a fine-tuned model, with {', '.join(heads)}, which no masked autoencoder "
            f"has; import the file that it was fine-tuned from, then fine-tune that"
        )
    wanted = dict(_AXES)
    if has_decoder:
        wanted |= {f"{_DECODER}{name}": _AXES[name] for name in (_POSITIONS, _INNER)}
    wrong = [
        f"{name} {list(weights[name].shape)}" if name in weights else f"no {name}"
        for name, axes in wanted.items()
        if name not in weights or weights[name].ndim != axes
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: its {len(weights)} weights are not those of a masked autoencoder of volumes: "
            f"{', '.join(wrong)}; give a checkpoint of the published layout"
        )


def _transformer(
    weights: Weights, part: str, arguments: Mapping[str, Any], path: Path
) -> VisionTransformerSpec:
    """Return the sizes of a stack of blocks, whose names begin with a part."""
    width = weights[f"{part}{_POSITIONS}"].shape[-1]
    blocks = f"{part}blocks."
    numbers = {n.removeprefix(blocks).split(".")[0] for n in weights if n.startswith(blocks)}
    heads = arguments.get(f"{part}num_heads", _DECODER_HEADS if part else _HEADS.get(width))
    if heads is None:
        known = ", ".join(f"{count} for {of}" for of, count in _HEADS.items())
        raise CheckpointError(
            f"{path}: does not say how many heads share its width of {width}, published are "
            f"{known}; save it as {{'model': state_dict, 'args': {{'num_heads': N}}}}"
        )
    values = {
        "hidden_size": width,
        "num_layers": len(numbers),
        "num_heads": heads,
        "mlp_ratio": weights[f"{part}{_INNER}"].shape[0] / max(width, 1),
    }
    return _checked(VisionTransformerSpec, values, path)


def _grid(weights: Weights, patch: list[int], shape: Shape | None, path: Path) -> Shape:
    """Return the grid of the stored positions: that of a shape if it has as many, or a cube."""
    table = weights[_POSITIONS][0]
    count = len(table) - 1
    side = round(count ** (1 / 3))
    cube = (side, side, side)
    if shape is not None and all(n % p == 0 for n, p in zip(shape, patch, strict=True)):
        d, h, w = (n // p for n, p in zip(shape, patch, strict=True))
        # A box may have as many patches as the cube: the table tells which of them it is of.
        is_cube = math.prod(cube) == count and _distance(table, cube) < _TOLERANCE
        if d * h * w == count and not is_cube:
            return d, h, w
    if math.prod(cube) != count:
        given = "no shape was given" if shape is None else f"not that of volumes of {shape}"
        raise CheckpointError(
            f"{path}: the grid of its {count} patches of {tuple(patch)} voxels is no cube, and "
            f"{given}; give the recipe that it was trained on, with size or shape"
        )
    return cube


def _distance(table: Float[Tensor, "_ C"], grid: Shape) -> float:
    """Return by how much positions differ from those that we would compute."""
    return (table.float() - sincos_table(grid, table.shape[1])).abs().max().item()


def _checked(kind: type[_Spec], values: Mapping[str, Any], path: Path) -> _Spec:
    """Return a spec of values that were found in a file."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = explain(error, kind.model_json_schema())
        raise CheckpointError(f"{path}: a model of its sizes cannot be built: {found}") from error


def _built(spec: NetworkSpec) -> Model:
    """Return the network of a spec in eval mode, with fresh weights."""
    match spec:
        case VolumeEncoderNetworkSpec():
            return VolumeEncoder(spec).eval()
        case MaskedAutoencoderNetworkSpec():
            return MaskedAutoencoder(spec).eval()


def _flat(weights: Weights) -> Weights:
    """Return weights with the axes that ours have: C P of the kernel, 1+N C of tables."""
    flat = {**weights, _KERNEL: weights[_KERNEL].flatten(1)}
    for name in (_POSITIONS, f"{_DECODER}{_POSITIONS}"):
        if name in weights and len(weights[name]) == 1:
            flat[name] = weights[name][0]
    return flat


def _warn(model: Model, arguments: Mapping[str, Any], path: Path) -> None:
    """Say where a model is not what one of ours of its sizes would be."""
    stated, spec = arguments.get("norm_pix_loss"), model.spec
    if isinstance(spec, MaskedAutoencoderNetworkSpec) and stated not in (None, spec.norm_pix):
        logger.warning(
            "%s: trained with norm_pix_loss %s, but its predictions leave it through %s: its "
            "encoder is whole, the patches that it predicts are not voxels",
            path,
            stated,
            "no sigmoid" if spec.norm_pix else "a sigmoid",
        )
    for name, table in _tables(model).items():
        if (by := _distance(table, _grid_of(spec))) > _TOLERANCE:
            logger.warning(
                "%s: %s differs from the sines and cosines of %s patches by up to %.2g; it is kept",
                path,
                sources(spec)[name][0],
                _grid_of(spec),
                by,
            )


def _stretched(model: Model, shape: Shape, path: Path) -> Model:
    """Return a model for volumes of another shape, its positions stretched onto their grid."""
    spec = _checked(type(model.spec), {**model.spec.model_dump(), "shape": shape}, path)
    grids = _grid_of(model.spec), _grid_of(spec)
    weights = model.state_dict()
    for name, table in _tables(model).items():
        weights[name] = resize_table(table, grids[0], to=grids[1])
    moved = _built(spec)
    moved.load_state_dict(weights)
    logger.info("%s: positions of %s patches stretched onto %s", path, *grids)
    return moved


def _tables(model: Model) -> Weights:
    """Return the positions of a model: the encoder's and, where it has one, the decoder's."""
    return {n: value for n, value in model.state_dict().items() if n.endswith("position")}


def _grid_of(spec: NetworkSpec) -> Shape:
    """Return the patches of a volume along (D, H, W)."""
    return spec.grid if isinstance(spec, VolumeEncoderNetworkSpec) else spec.network.grid
