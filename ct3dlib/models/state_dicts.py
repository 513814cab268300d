"""Weights of other programs: found in their files, renamed key by key, none passed over."""

import pickle
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ct3dlib.errors import CheckpointError

Weights = dict[str, Tensor]

_SHOWN = 5


def read_checkpoint(path: Path, classes: Sequence[type] = ()) -> dict[str, Any]:
    """Return what a torch file holds, on the CPU; no code of the file is run.

    Args:
        path: Of the file.
        classes: Whose objects it may hold beside tensors and plain values.

    Raises:
        CheckpointError: The file is missing, damaged, no mapping, or holds Python objects.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give a checkpoint that torch.save wrote")
    try:
        with torch.serialization.safe_globals([*classes]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        named = f" (it asks for {asked[1]})" if asked else ""
        raise CheckpointError(
            f"{path}: not a torch file, or one with Python objects, which are not loaded as they "
            f"could run code{named}; save its state_dict alone"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: damaged, or not a torch file; fetch it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}, wanted a state_dict")
    return found


def part_of(
    checkpoint: Mapping[str, Any], part: str, *, path: Path
) -> tuple[Weights, dict[str, int]]:
    """Return the weights of one sub-module of a checkpoint, which lie as in `weights_of`.

    A checkpoint of the whole model names its sub-modules, one of the sub-module alone does not.

    Args:
        checkpoint: What the file holds.
        part: Name of the sub-module in the whole model.
        path: Of the file, for messages.

    Returns:
        The weights by their names in the sub-module, and how many each other part has, which is
        left out.

    Raises:
        CheckpointError: An entry is no tensor.
    """
    whole = weights_of(checkpoint, path=path)
    prefix = f"{part}."
    weights = {n.removeprefix(prefix): v for n, v in whole.items() if n.startswith(prefix)}
    if not weights:
        return whole, {}
    others = Counter(n.split(".")[0] for n in whole if not n.startswith(prefix))
    return weights, dict(others)


def weights_of(checkpoint: Mapping[str, Any], *, path: Path) -> Weights:
    """Return all weights of a checkpoint.

    They may lie under "state_dict", "model" or both, and their names may begin with "module.".

    Raises:
        CheckpointError: An entry is no tensor.
    """
    nested: Mapping[str, Any] = checkpoint
    for key in ("state_dict", "model"):
        if isinstance(inner := nested.get(key), Mapping):
            nested = inner
    for name, value in nested.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: {name} is a {type(value).__name__}, wanted a tensor; give the file of a "
                f"state_dict, or one that holds it as state_dict or model"
            )
    if all(name.startswith("module.") for name in nested):
        nested = {name.removeprefix("module."): value for name, value in nested.items()}
    return dict(nested)


def fill_(
    module: nn.Module, weights: Weights, sources: Mapping[str, Sequence[str]], *, path: Path
) -> None:
    """Load weights under other names into a module, all of them or none.

    Args:
        module: Its weights are replaced, in float32.
        weights: All must be used.
        sources: For each weight of the module the names of what makes it: laid behind each other
            along the first axis, with axes of length 1 added at the end where it has more.
        path: Of the file, for messages.

    Raises:
        CheckpointError: Weights are missing, left over or of another shape; the message counts
            what fits and names what does not.
    """
    used = [name for names in sources.values() for name in names]
    missing = [name for name in used if name not in weights]
    extra = sorted(set(weights) - set(used))
    misshaped, filled = [], {}
    for name, wanted in module.state_dict().items():
        found = [weights[source] for source in sources[name] if source in weights]
        if len(found) < len(sources[name]):
            continue
        shape = (sum(part.shape[0] for part in found), *found[0].shape[1:])
        shape += (1,) * (wanted.ndim - len(shape))
        if any(part.shape[1:] != found[0].shape[1:] for part in found) or shape != wanted.shape:
            shapes = " + ".join(str(list(part.shape)) for part in found)
            misshaped.append(f"{' + '.join(sources[name])} {shapes} for {list(wanted.shape)}")
        else:
            filled[name] = torch.cat(found).reshape(wanted.shape).float()
    if missing or extra or misshaped:
        listed = {"missing": missing, "unknown": extra, "of another shape": misshaped}
        raise CheckpointError(
            f"{path}: does not fit the model: {len(filled)} of {len(sources)} weights do; "
            + "; ".join(f"{len(v)} {k}: {_some(v)}" for k, v in listed.items() if v)
            + "; give a checkpoint of the published layout"
        )
    odd = [name for name, value in filled.items() if not value.isfinite().all()]
    if odd:
        raise CheckpointError(
            f"{path}: {len(odd)} weights hold values that are not finite: {_some(odd)}; the file "
            f"is damaged or its training failed"
        )
    module.load_state_dict(filled, strict=True)


def _some(names: Sequence[str]) -> str:
    """Return the first names and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
