"""A model's contract against stores, recipes and tokens."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ct3dlib.cohort.store import StoredArray, StoredVolume, create_store, write_node, write_table
from ct3dlib.config import CausalTokenizerSpec, RecipeSpec, TokensSpec
from ct3dlib.errors import CheckpointError, StoreError
from ct3dlib.inference.contract import check_recipe, check_tokens, check_volumes
from ct3dlib.inference.decode import find_tokens
from ct3dlib.inference.encode import encode_shard, read_indices
from ct3dlib.inference.evaluate import evaluate_tokenizer
from ct3dlib.inference.evaluate_samples import evaluate_samples
from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.inference.reconstruct import encode_volume
from ct3dlib.models.tokenizer import CausalTokenizer

SPEC = TokensSpec(tokenizer="lfq")
CONTRACT = RecipeSpec(spacing=(3.0, 2.0, 2.0), shape=(6, 8, 10), window=(-1000, 1000))
# Voxel (d, h, w) to LPS mm: D to superior, H to posterior, W to the left.
CANONICAL = np.array([[0, 0, 2.0, 0], [0, 2.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])


def _stored(folder: Path, *, shape=(6, 8, 10), affine=CANONICAL, **ct3d: object) -> StoredVolume:
    """Return a volume of a store whose attributes are those of CONTRACT but for `ct3d`."""
    store = folder / "0000.zarr"
    store.parent.mkdir(exist_ok=True)
    create_store(store, "volumes")
    made_by = CONTRACT.model_dump(mode="json", exclude={"window", "range"})
    attributes = {"domain": "hu", "recipe": made_by, "affine": affine.tolist(), **ct3d}
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    attributes = {"ct3d": {k: v for k, v in attributes.items() if v is not None}}
    sha256 = write_node(store, "a@0", array, attributes=attributes)
    return StoredVolume("a", StoredArray(store, "a@0"), shape, sha256)


def _table(volume: StoredVolume) -> Path:
    """Write the status table of a store with one volume."""
    row = {"volume": volume.volume, "status": "stored", "reason": "", "message": ""}
    row |= {"node": volume.array.node, "sha256": volume.sha256, "source_sha256": "s"}
    path = volume.array.store.with_suffix(".parquet")
    write_table(pd.DataFrame([{**row, "shape": list(volume.shape)}]), path)
    return path


@pytest.fixture
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    spec = CausalTokenizerSpec(
        filters=2, num_res_blocks=1, channel_multipliers=(1,), temporal_downsample=(), norm_groups=1
    )
    return Tokenizer(CausalTokenizer(spec).eval(), CONTRACT, None, "f" * 64)


def test_a_store_of_the_models_recipe_passes(tmp_path):
    check_volumes(CONTRACT, [_stored(tmp_path)], model="m")
    check_volumes(CONTRACT, [], model="m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"spacing": (1.5, 2.0, 2.0)},
            r"stored: its spacing is \[1\.5, 2\.0, 2\.0\], m was trained on \[3\.0, 2\.0, 2\.0\]; "
            r"store these scans with the model's recipe, or train a model on this one",
        ),
        ({"shape": None}, r"its shape is None, m was trained on \[6, 8, 10\]"),
        ({"center": "body"}, "its center is body, m was trained on volume"),
        ({"clip_first": (-900, 900)}, r"its clip_first is \[-900\.0, 900\.0\], .* on None"),
        ({"body_margin": 5.0}, "its body_margin is 5.0, m was trained on None"),
        (
            {"window": (-150, 250)},
            r"its window is \[-150\.0, 250\.0\], .* on \[-1000\.0, 1000\.0\]",
        ),
        ({"range": (0, 1)}, r"its range is \[0\.0, 1\.0\], m was trained on \[-1\.0, 1\.0\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_every_key_that_a_model_sees_is_compared(changes, message):
    other = RecipeSpec.model_validate({**CONTRACT.model_dump(), **changes})
    with pytest.raises(CheckpointError, match=message):
        check_recipe(CONTRACT, other.model_dump(mode="json"), model="m", data="stored")


def test_how_files_are_read_may_differ():
    other = CONTRACT.model_copy(update={"hu_state": "hu", "min_slices": 1})
    check_recipe(CONTRACT, other.model_dump(mode="json"), model="m", data="stored")
    # Neither does a store know the window, nor an old one a key that came later.
    check_recipe(CONTRACT, {"spacing": [3.0, 2.0, 2.0]}, model="m", data="stored")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"shape": (6, 8, 11)}, CheckpointError, r"a: its shape is \[6, 8, 11\], m was trained on"),
        ({"domain": "mr"}, CheckpointError, "a: its domain is mr, m was trained on hu; give it"),
        (
            {"affine": CANONICAL[:, [0, 2, 1, 3]]},
            CheckpointError,
            "a: its axes are not D to superior, H to posterior, W to the left",
        ),
        (
            {"affine": CANONICAL * [1, 1, -1, 1]},
            CheckpointError,
            "a: its axes are not D to superior",
        ),
        (
            {"recipe": None},
            StoreError,
            r"0000\.zarr: does not say which recipe made it; delete its",
        ),
        ({"recipe": {"size": [4, 4, 4]}}, CheckpointError, r"its size is \[4, 4, 4\], .* on None"),
    ],
    ids=["shape", "domain", "transposed", "mirrored", "no recipe", "recipe"],
)
def test_what_stands_with_a_volume_is_checked(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        check_volumes(CONTRACT, [_stored(tmp_path, **changes)], model="m")


def test_encoding_and_measuring_refuse_another_store(tmp_path, tokenizer):
    volume = _stored(tmp_path, recipe={"spacing": [1.0, 1.0, 1.0]})
    wanted = r"its spacing is \[1\.0, 1\.0, 1\.0\], the tokenizer ffffffffffff was trained on"
    with pytest.raises(CheckpointError, match=wanted):
        evaluate_tokenizer(tokenizer, [], [volume], windows_per_batch=1)
    with pytest.raises(CheckpointError, match=wanted):
        evaluate_samples(tokenizer, [], train=[volume], valid=[volume])
    status = tmp_path / "tokens/0000.parquet"
    with pytest.raises(CheckpointError, match=wanted):
        encode_shard(_table(volume), tokenizer, SPEC, code="1", status=status)
    assert not (tmp_path / "tokens").exists()


def test_tokens_of_another_tokenizer_are_refused(tmp_path, tokenizer):
    mine = _stored(tmp_path, tokenizer_sha256=tokenizer.sha256).array
    check_tokens(mine, tokenizer)
    other = _stored(tmp_path / "other", tokenizer_sha256="e" * 64).array
    with pytest.raises(CheckpointError, match=r"tokenizer_sha256 is e{12}, the .* f{12}"):
        check_tokens(other, tokenizer)


def test_mr_is_encoded_through_its_own_window(tmp_path, tokenizer):
    recipe = RecipeSpec(domain="mr", percentiles=(0.5, 99.5))
    of_mr = replace(tokenizer, recipe=recipe)
    made_by = recipe.model_dump(mode="json", exclude={"window", "range"})
    record = {"window": [0.0, 400.0]}
    volume = _stored(tmp_path, domain="mr", recipe=made_by, record=record)
    status = tmp_path / "tokens/0000.parquet"
    encode_shard(_table(volume), of_mr, SPEC, code="1", status=status)
    found = read_indices(find_tokens(status, "a"))
    own, shared = (
        encode_volume(
            of_mr,
            volume.read(),
            window=window,
            windows_per_batch=SPEC.windows_per_batch,
        ).indices.numpy()
        for window in ((0.0, 400.0), recipe.window)
    )
    assert np.array_equal(found, own)
    assert not np.array_equal(found, shared)
