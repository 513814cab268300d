"""Autoencoders that prod9 exported: MONAI's MAISI networks and a finite scalar quantizer.

The file holds `state_dict` and `config`, the arguments that the model was built with.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ct3dlib.config import FSQSpec, MaisiTokenizerSpec
from ct3dlib.config.explain import explain
from ct3dlib.errors import CheckpointError
from ct3dlib.models.maisi import MaisiTokenizer
from ct3dlib.models.state_dicts import Weights, fill_, part_of, read_checkpoint

PART = "autoencoder"

# Keys of `config` and the spec's; of the others only these values make our network. How a network
# is run, in how many parts or in which memory, changes none of its weights.
_SPEC_KEYS = {
    "num_channels": "num_channels",
    "num_res_blocks": "num_res_blocks",
    "attention_levels": "attention_levels",
    "norm_num_groups": "norm_groups",
    "norm_eps": "norm_eps",
}
_REQUIRED = ("num_channels", "num_res_blocks", "attention_levels", "levels")
_ONLY = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "with_encoder_nonlocal_attn": False,
    "with_decoder_nonlocal_attn": False,
    "include_fc": False,
    "use_combined_linear": False,
    "use_convtranspose": False,
}
_IGNORED = {
    "levels",
    "use_flash_attention",
    "use_checkpointing",
    "num_splits",
    "dim_split",
    "norm_float16",
    "print_info",
    "save_mem",
}


def import_prod9(path: Path) -> tuple[MaisiTokenizer, dict[str, int]]:
    """Return the tokenizer of an export, built as its config says.

    Convolutions are done in one part, whatever `num_splits` says: the values are the same.

    Args:
        path: A file with `state_dict` and `config`.

    Returns:
        The tokenizer in eval mode, and how many weights of other parts were left out.

    Raises:
        CheckpointError: The file cannot be read, its config asks for a network that there is not,
            or a weight is missing, left over or misshaped.
    """
    checkpoint = read_checkpoint(path)
    config = checkpoint.get("config")
    if not isinstance(config, Mapping):
        raise CheckpointError(
            f"{path}: has no config beside its weights; export the autoencoder of the training, "
            f"which writes state_dict and config"
        )
    model = MaisiTokenizer(_spec(config, path)).eval()
    weights, others = part_of(checkpoint, PART, path=path)
    _take_constants_(weights, tuple(config["levels"]), path)
    fill_(model, weights, {name: [name] for name in model.state_dict()}, path=path)
    return model, others


def _spec(config: Mapping[str, Any], path: Path) -> MaisiTokenizerSpec:
    """Return the spec of a config."""
    if missing := [key for key in _REQUIRED if key not in config]:
        raise CheckpointError(f"{path}: its config has no {missing[0]}; export the model again")
    for key, value in config.items():
        if key in _SPEC_KEYS or key in _IGNORED:
            continue
        if key not in _ONLY or value != _ONLY[key]:
            wanted = f"only {_ONLY[key]!r} can be imported" if key in _ONLY else "an unknown key"
            raise CheckpointError(f"{path}: its config has {key} {value!r}, {wanted}")
    fields = {ours: config[theirs] for theirs, ours in _SPEC_KEYS.items() if theirs in config}
    try:
        quantizer = FSQSpec.model_validate({"levels": config["levels"], "variant": "prod9"})
        return MaisiTokenizerSpec.model_validate({**fields, "quantizer": quantizer})
    except ValidationError as error:
        found = explain(error, MaisiTokenizerSpec.model_json_schema())
        raise CheckpointError(f"{path}: its config does not fit: {found}") from error


def _take_constants_(weights: Weights, levels: tuple[int, ...], path: Path) -> None:
    """Take the quantizer's constants out of the weights and hold them against the config."""
    basis = [math.prod(levels[:channel]) for channel in range(len(levels))]
    for name, wanted in (("_levels_tensor", list(levels)), ("_basis", basis)):
        found = weights.pop(f"quantizer.{name}", None)
        if found is not None and found.tolist() != wanted:
            raise CheckpointError(
                f"{path}: quantizer.{name} is {found.tolist()}, its config says {wanted}; the "
                f"file was edited: export the model again"
            )
