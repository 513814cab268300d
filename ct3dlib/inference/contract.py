"""Whether data are what a model was trained on: its contract against stores, recipes and tokens."""

from collections.abc import Iterable, Mapping
from typing import Any

from ct3dlib.cohort.store import StoredArray, StoredVolume
from ct3dlib.config import RecipeSpec
from ct3dlib.errors import CheckpointError, StoreError
from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.scan.geometry import orientation

# What a model sees of a recipe; `hu_state` and `min_slices` are about files.
_KEYS = (
    "domain",
    "spacing",
    "size",
    "letterbox",
    "slices",
    "shape",
    "center",
    "clip_first",
    "body_margin",
    "percentiles",
    "window",
    "range",
    "axes",
)

# Of these, what voxels' values and axes mean; a training may go on from another grid, but not from
# other ones.
_INTENSITIES = ("domain", "percentiles", "window", "range", "axes")


def check_intensities(contract: RecipeSpec, recipe: RecipeSpec, *, model: str, data: str) -> None:
    """Refuse a recipe whose voxels mean something else than those a model was trained on.

    Args:
        contract: The recipe that the model's file carries.
        recipe: Of the data.
        model: What the message calls the model.
        data: What it calls the data.

    Raises:
        CheckpointError: A key differs; the message names it and both values.
    """
    keys = recipe.model_dump(mode="json", include=set(_INTENSITIES))
    check_recipe(contract, keys, model=model, data=data)


def check_recipe(contract: RecipeSpec, recipe: Mapping[str, Any], *, model: str, data: str) -> None:
    """Refuse data of another recipe than a model was trained on.

    Args:
        contract: The recipe that the model's file carries.
        recipe: That of the data, as JSON; a store's is without `window`, `range` and `axes`.
        model: What the message calls the model.
        data: What it calls the data.

    Raises:
        CheckpointError: A key that the model sees differs; the message names it and both values.
    """
    trained_on = contract.model_dump(mode="json")
    for key in _KEYS:
        if key in recipe and recipe[key] != trained_on[key]:
            raise CheckpointError(
                f"{data}: its {key} is {recipe[key]}, {model} was trained on {trained_on[key]}; "
                f"store these scans with the model's recipe, or train a model on this one"
            )


def check_volumes(contract: RecipeSpec, volumes: Iterable[StoredVolume], *, model: str) -> None:
    """Refuse stored volumes of another recipe, domain, orientation or shape than a model's.

    The volumes of one store have one recipe, so one of each is opened; shapes are known of all.

    Args:
        contract: The recipe that the model's file carries, or that a training is about to write.
        volumes: Of any number of stores.
        model: What the message calls the model.

    Raises:
        CheckpointError: Something differs.
        StoreError: A store does not say which recipe made it.
    """
    opened = set()
    for volume in volumes:
        if volume.array.store not in opened:
            opened.add(volume.array.store)
            _check_attributes(contract, volume, model)
        if contract.shape is not None and volume.shape != contract.shape:
            raise CheckpointError(
                f"{volume.volume}: its shape is {list(volume.shape)}, {model} was trained on "
                f"{list(contract.shape)}; store the scan with the model's recipe"
            )


def check_tokens(tokens: StoredArray, tokenizer: Tokenizer) -> None:
    """Refuse tokens that another tokenizer made.

    Raises:
        CheckpointError: Another one did.
    """
    made_by = tokens.attributes["ct3d"]["tokenizer_sha256"]
    if made_by != tokenizer.sha256:
        raise CheckpointError(
            f"{tokens.node}: its tokenizer_sha256 is {made_by[:12]}, the tokenizer has "
            f"{tokenizer.sha256[:12]}; encode the data set again, or give the tokenizer it is from"
        )


def _check_attributes(contract: RecipeSpec, volume: StoredVolume, model: str) -> None:
    """Check what stands beside a stored volume."""
    ct3d = volume.array.attributes["ct3d"]
    if "recipe" not in ct3d:
        raise StoreError(
            f"{volume.array.store}: does not say which recipe made it; delete its status table and "
            f"run the rule volumes again"
        )
    # A store has its axes as they are; volumes are turned on their way to a model.
    made = {key: value for key, value in ct3d["recipe"].items() if key != "axes"}
    check_recipe(contract, made, model=model, data=str(volume.array.store))
    if ct3d["domain"] != contract.domain:
        raise CheckpointError(
            f"{volume.volume}: its domain is {ct3d['domain']}, {model} was trained on "
            f"{contract.domain}; give it volumes of that domain"
        )
    axes = orientation(volume.affine)
    if axes.permutation != (0, 1, 2) or any(axes.flips):
        raise CheckpointError(
            f"{volume.volume}: its axes are not D to superior, H to posterior, W to the left, as "
            f"{model} was trained on; store the scan again"
        )
