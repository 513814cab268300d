"""Model files: `model.safetensors` and `spec.json`, from which alone a model is rebuilt.

`spec.json` holds the format version, the kind, the spec, the contract with the data (recipe, token
windows), a summary of the training, and the hash that ties it to its weights.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ct3dlib.errors import CheckpointError
from ct3dlib.models import ModelSpec, build_model

FORMAT_VERSION = 1
WEIGHTS, SPEC = "model.safetensors", "spec.json"
KEYS = {"format_version", "kind", "spec", "contract", "training", "weights_sha256"}

_specs: TypeAdapter[ModelSpec] = TypeAdapter(Annotated[ModelSpec, Field(discriminator="name")])


@dataclass(frozen=True, eq=False)
class Exported:
    """A model and what its files say of it.

    Args:
        module: In eval mode, on the CPU.
        spec: What it was built from.
        contract: What it expects of its data.
        training: Summary of its training.
        sha256: Hash of its weights file.
    """

    module: nn.Module
    spec: ModelSpec
    contract: Mapping[str, Any]
    training: Mapping[str, Any]
    sha256: str


def save_model(
    folder: Path,
    module: nn.Module,
    *,
    spec: ModelSpec,
    contract: Mapping[str, Any],
    training: Mapping[str, Any],
) -> None:
    """Write a model's files; until the last, `spec.json`, is in place the old ones do not load.

    Args:
        folder: Made if it is not there.
        module: Its weights, on any device and in any memory layout.
        spec: `build_model(spec)` must take the weights.
        contract: JSON values: the preprocessing and token format that a reader must keep.
        training: JSON values.

    Raises:
        ValueError: A value is no JSON, or not finite.
    """
    weights = {
        name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{WEIGHTS}.partial"
    save_file(weights, partial, metadata={"format": "pt"})
    document = {
        "format_version": FORMAT_VERSION,
        "kind": spec.name,
        "spec": spec.model_dump(mode="json"),
        "contract": dict(contract),
        "training": dict(training),
        "weights_sha256": _sha256(partial),
    }
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    partial_spec = folder / f"{SPEC}.partial"
    partial_spec.write_text(text, encoding="utf-8")
    partial.replace(folder / WEIGHTS)
    partial_spec.replace(folder / SPEC)


def load_model(folder: Path) -> Exported:
    """Rebuild a model from its files.

    Raises:
        CheckpointError: A file is missing or damaged, of another kind or format version, or the
            weights are not those that `spec.json` was written for.
    """
    document = _read_document(folder / SPEC)
    spec = _read_spec(folder / SPEC, document)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"{weights}: no such file; train the model or pull it again")
    found = _sha256(weights)
    if found != document["weights_sha256"]:
        raise CheckpointError(
            f"{weights}: sha256 is {found[:12]}, {SPEC} wants {document['weights_sha256'][:12]}; "
            f"the files are damaged or of two models: train the model or pull it again"
        )
    module = build_model(spec)
    try:
        module.load_state_dict(load_file(weights), strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{weights}: does not fit the spec in {SPEC}: {error}") from error
    return Exported(module.eval(), spec, document["contract"], document["training"], found)


def _read_document(path: Path) -> dict[str, Any]:
    """Return spec.json, checked down to its keys and version."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; train the model or pull it again")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); train the model again") from error
    if not isinstance(document, dict) or "format_version" not in document:
        raise CheckpointError(f"{path}: not a model's {SPEC}; it has no format_version")
    if document["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {document['format_version']}, this program reads "
            f"{FORMAT_VERSION}; export the model with this version"
        )
    if set(document) != KEYS:
        odd = sorted(set(document) ^ KEYS)
        raise CheckpointError(f"{path}: missing or unknown keys: {', '.join(odd)}")
    return document


def _read_spec(path: Path, document: Mapping[str, Any]) -> ModelSpec:
    """Return the spec of a document, of the kind that the document names."""
    try:
        spec = _specs.validate_python(document["spec"])
    except ValidationError as error:
        raise CheckpointError(f"{path}: no spec of a known model: {error}") from error
    if spec.name != document["kind"]:
        raise CheckpointError(
            f"{path}: kind {document['kind']!r} with a spec of {spec.name!r}; the file was edited"
        )
    return spec


def _sha256(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
