"""Checkpoints of BTB3D's tokenizer (Hamamci et al., 2025) as ours: the same network, other names.

Letters: C channels, K channels of the condition. Nothing is rearranged but the conditional norm:
its two linear layers K -> C, scale and shift, are the halves of one 1 x 1 x 1 convolution K -> 2C.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from ct3dlib.config import CausalTokenizerSpec, LFQSpec
from ct3dlib.config.explain import explain
from ct3dlib.errors import CheckpointError
from ct3dlib.models.state_dicts import Weights, fill_, part_of, read_checkpoint
from ct3dlib.models.tokenizer import CausalTokenizer

PART = "tokenizer"
POWERS = "quantize.mask"
NORM_GROUPS = 32

Pair = tuple[str, str]


def import_btb3d(path: Path) -> tuple[CausalTokenizer, dict[str, int]]:
    """Return the tokenizer of a checkpoint, its geometry read from the shapes of the weights.

    Args:
        path: A state_dict of the tokenizer or of the whole model, nested or not.

    Returns:
        The tokenizer in eval mode, and how many weights of other parts were left out.

    Raises:
        CheckpointError: The file cannot be read, or a weight is missing, left over or misshaped.
    """
    weights, others = part_of(read_checkpoint(path), PART, path=path)
    spec = _spec(weights, path)
    model = CausalTokenizer(spec).eval()
    powers, wanted = weights.pop(POWERS, None), [2**i for i in reversed(range(model.tokens.bits))]
    if powers is not None and powers.tolist() != wanted:
        raise CheckpointError(
            f"{path}: {POWERS} is {powers.tolist()}, wanted {wanted}; its indices have another "
            f"order of bits"
        )
    fill_(model, weights, sources(model), path=path)
    return model, others


def sources(model: CausalTokenizer) -> dict[str, list[str]]:
    """Return the names in BTB3D's tokenizer of what makes each weight of ours."""
    modules = dict((*_encoder(model.spec), *_decoder(model.spec)))
    named = {}
    for name in model.state_dict():
        module, _, kind = name.rpartition(".")
        if module.endswith(".modulation"):
            named[name] = [f"{modules[module]}.{half}.{kind}" for half in ("gamma", "beta")]
        else:
            named[name] = [f"{modules[module]}.{kind}"]
    return named


def _encoder(spec: CausalTokenizerSpec) -> Iterator[Pair]:
    """Yield the modules of our encoder and theirs."""
    levels, theirs = len(spec.channel_multipliers), "encoder"
    yield "encoder.0", f"{theirs}.conv_first.conv"
    for level in range(levels):
        # The first block of a level bears its number, the others bear a 0 in every level.
        names = [f"res_block_{level}_0"]
        names += [f"res_block_0_{j}" for j in range(1, spec.num_res_blocks)]
        for j, name in enumerate(names):
            yield from _block(
                f"encoder.{1 + 2 * level}.{j}", f"{theirs}.res_blocks.res_block_{level}.{name}"
            )
        if level < levels - 1:
            down = f"{theirs}.conv_downsample_blocks.conv_downsample_{level}.conv"
            yield f"encoder.{2 + 2 * level}", down
    yield from _level(f"encoder.{2 * levels}", theirs, "res_block_final", spec)
    yield f"encoder.{2 * levels + 1}", f"{theirs}.final_norm.norm_fn"
    yield f"encoder.{2 * levels + 3}", f"{theirs}.conv_last.conv"


def _decoder(spec: CausalTokenizerSpec) -> Iterator[Pair]:
    """Yield the modules of our decoder and theirs; both number levels from the deepest on."""
    levels, theirs = len(spec.channel_multipliers), "decoder"
    yield "decoder.input.0", f"{theirs}.conv_first.conv"
    yield from _level("decoder.input.1", theirs, "res_block_pre", spec)
    for level in range(levels):
        ours = f"decoder.levels.{level}"
        yield f"{ours}.norm.modulation", f"{theirs}.cond_norm_layers.cond_norm_{level}"
        yield from _level(f"{ours}.blocks", theirs, f"res_block_{level}", spec)
        if level < levels - 1:
            up = f"{theirs}.conv_upsample_blocks.conv_upsample_{level}.conv1.conv"
            yield f"{ours}.upsample.conv", up
    yield "decoder.output.0", f"{theirs}.final_norm.norm_fn"
    yield "decoder.output.2", f"{theirs}.conv_last.conv"


def _level(ours: str, theirs: str, name: str, spec: CausalTokenizerSpec) -> Iterator[Pair]:
    """Yield the modules of the residual blocks of one level."""
    for j in range(spec.num_res_blocks):
        yield from _block(f"{ours}.{j}", f"{theirs}.res_blocks.{name}.{name}_{j}")


def _block(ours: str, theirs: str) -> Iterator[Pair]:
    """Yield the modules of one residual block."""
    yield f"{ours}.residual.0", f"{theirs}.norm_0.norm_fn"
    yield f"{ours}.residual.2", f"{theirs}.conv_0.conv"
    yield f"{ours}.residual.3", f"{theirs}.norm_1.norm_fn"
    yield f"{ours}.residual.5", f"{theirs}.conv_1.conv"
    yield f"{ours}.skip", f"{theirs}.conv_shortcut.conv"


def _spec(weights: Weights, path: Path) -> CausalTokenizerSpec:
    """Return the geometry that the shapes of weights tell."""
    levels = _found(r"encoder\.res_blocks\.res_block_(\d+)\.res_block_\1_0\.conv_1", weights)
    final = _found(r"encoder\.res_blocks\.res_block_final\.res_block_final_(\d+)\.conv_1", weights)
    ups = _found(r"decoder\.conv_upsample_blocks\.conv_upsample_(\d+)\.conv1", weights)
    last = weights.get("encoder.conv_last.conv.weight")
    if not levels or not final or last is None:
        raise CheckpointError(
            f"{path}: its {len(weights)} weights are not those of BTB3D's 3D tokenizer, such as "
            f"encoder.conv_last.conv.weight; give a checkpoint of it"
        )
    widths = [weight.shape[0] for weight in levels]
    try:
        return CausalTokenizerSpec(
            filters=widths[0],
            num_res_blocks=len(final),
            channel_multipliers=tuple(width // widths[0] for width in widths),
            # From the deepest level on: 4 channels make a finer slice, 8 make two of them.
            temporal_downsample=tuple(w.shape[0] == 8 * w.shape[1] for w in reversed(ups)),
            norm_groups=NORM_GROUPS,
            quantizer=LFQSpec(bits=last.shape[0]),
        )
    except ValidationError as error:
        found = explain(error, CausalTokenizerSpec.model_json_schema())
        raise CheckpointError(
            f"{path}: a tokenizer with levels of {widths} channels and {len(ups)} steps between "
            f"them cannot be built: {found}"
        ) from error


def _found(module: str, weights: Weights) -> list[Tensor]:
    """Return the kernels of the numbered modules of a pattern, in their order."""
    pattern = re.compile(rf"{module}\.conv\.weight")
    found = {int(m[1]): value for name, value in weights.items() if (m := pattern.fullmatch(name))}
    return [found[number] for number in sorted(found)]
