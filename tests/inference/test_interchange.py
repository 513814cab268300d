"""Tokens as files of BTB3D and back: the same ids, the axes turned once."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ct3dlib.cohort.store import stored_volumes, write_table
from ct3dlib.cohort.verify import verify_table
from ct3dlib.config import CausalTokenizerSpec, FSQSpec, RecipeSpec, TokensSpec
from ct3dlib.errors import CheckpointError, StoreError
from ct3dlib.inference.btb3d_files import read_btb3d, write_btb3d
from ct3dlib.inference.decode import decode_volume, find_tokens
from ct3dlib.inference.encode import encode_shard, read_indices
from ct3dlib.inference.interchange import encoded_volumes, export_tokens, import_tokens
from ct3dlib.inference.latents import find_latents, read_latents, store_latents_shard
from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.inference.reconstruct import encode_volume
from ct3dlib.models.tokenizer import CausalTokenizer
from tests.inference.conftest import RECIPE

TINY = CausalTokenizerSpec(
    filters=4,
    num_res_blocks=1,
    channel_multipliers=(1, 1),
    temporal_downsample=(True,),
    norm_groups=2,
)
SPEC = TokensSpec(tokenizer="lfq", windows_per_batch=3)
# Volumes of 7 x 10 x 12 voxels fill 9 x 12 x 12, 3 x 3 x 3 tokens of 4 x 4 x 4.
FILES = ["a.nii_embedded.npz", "b.nii_embedded.npz"]


def _tokenizer(axes: str, spec: CausalTokenizerSpec = TINY) -> Tokenizer:
    torch.manual_seed(0)
    recipe = RecipeSpec.model_validate({**RECIPE.model_dump(), "axes": axes})
    return Tokenizer(CausalTokenizer(spec).eval(), recipe, None, "f" * 64)


@pytest.fixture(params=["dhw", "dwh"])
def tokenizer(request) -> Tokenizer:
    return _tokenizer(request.param)


@pytest.fixture
def tokens(volumes, tokenizer, tmp_path) -> Path:
    """Return the status table of encoded volumes a and b."""
    status = tmp_path / "tokens/valid/0000.parquet"
    encode_shard(volumes, tokenizer, SPEC, code="1", status=status)
    return status


def test_a_file_holds_the_codes_of_the_volume_as_btb3d_sees_it(
    volumes, tokens, tokenizer, tmp_path
):
    assert encoded_volumes(tokens) == ["a", "b"]
    paths = list(export_tokens(tokens, tokenizer, ["a", "b"], folder=tmp_path / "out"))
    assert [path.name for path in paths] == FILES
    array = stored_volumes([volumes])[0].read()
    if tokenizer.recipe.axes == "dwh":
        array = array.transpose(0, 2, 1)  # the model sees z x y, as BTB3D
    encoded = encode_volume(
        _tokenizer("dhw"), array, window=RECIPE.window, windows_per_batch=SPEC.windows_per_batch
    )
    wanted = encoded.indices.numpy()
    if tokenizer.recipe.axes == "dhw":
        wanted = wanted.transpose(0, 2, 1)  # the model saw z y x
    found = np.load(paths[0])["arr"]
    assert found.shape == (1, 18, *wanted.shape)
    powers = 2 ** np.arange(17, -1, -1).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(((found[0] > 0) * powers).sum(0), wanted)
    # The volume is lower than it is wide: a turn too many or too few would be seen.
    assert not np.array_equal(wanted, wanted.transpose(0, 2, 1))


def test_imported_tokens_are_those_that_were_exported(volumes, tokens, tokenizer, tmp_path):
    folder, status = tmp_path / "out", tmp_path / "tokens/imported.parquet"
    paths = list(export_tokens(tokens, tokenizer, ["a", "b"], folder=folder))
    frame = import_tokens(folder, tokenizer, tables=[volumes], status=status)
    assert frame["volume"].tolist() == ["a", "b"]
    assert frame["status"].unique().tolist() == ["encoded"]
    assert frame["code"].unique().tolist() == ["imported from btb3d"]
    assert not list(verify_table(status, {tokenizer.sha256}))
    for volume in ("a", "b"):
        before, after = find_tokens(tokens, volume), find_tokens(status, volume)
        np.testing.assert_array_equal(read_indices(after), read_indices(before))
        wanted, found = (decode_volume(array, tokenizer) for array in (before, after))
        np.testing.assert_array_equal(found.array, wanted.array)
        np.testing.assert_array_equal(found.affine, wanted.affine)
    ct3d = find_tokens(status, "b").attributes["ct3d"]
    assert ct3d["imported"]["file"] == FILES[1]
    assert ct3d["imported"]["format"] == "btb3d"
    assert ct3d["imported"]["grid"] == "volume"
    assert ct3d["imported"]["sha256"] == frame["source_sha256"][1]
    assert ct3d["axis_order"] == tokenizer.recipe.axes
    again = list(export_tokens(status, tokenizer, ["a"], folder=tmp_path / "again"))
    assert again[0].read_bytes() == paths[0].read_bytes()


def test_a_second_import_keeps_what_is_there(volumes, tokens, tokenizer, tmp_path):
    folder, status = tmp_path / "out", tmp_path / "imported.parquet"
    list(export_tokens(tokens, tokenizer, ["a"], folder=folder))
    import_tokens(folder, tokenizer, tables=[], status=status)
    files = list(status.with_suffix(".zarr").glob("*/0/c*"))
    times = [path.stat().st_mtime_ns for path in files]
    import_tokens(folder, tokenizer, tables=[], status=status)
    assert [path.stat().st_mtime_ns for path in files] == times
    # A grid that is known is another import than one that is assumed.
    import_tokens(folder, tokenizer, tables=[volumes], status=status)
    assert not any(path.exists() for path in files)


def test_tokens_without_a_volume_get_the_recipes_grid(tmp_path):
    recipe = RecipeSpec(spacing=(3.0, 2.0, 1.0), axes="dwh")
    tokenizer = Tokenizer(_tokenizer("dwh").model, recipe, None, "f" * 64)
    codes = np.sign(np.random.default_rng(0).normal(size=(18, 2, 3, 4))).astype(np.float32)
    write_btb3d(tmp_path / FILES[0], codes, axes="dwh")
    import_tokens(tmp_path, tokenizer, tables=[], status=tmp_path / "t.parquet")
    array = find_tokens(tmp_path / "t.parquet", "a")
    ct3d = array.attributes["ct3d"]
    assert ct3d["imported"]["grid"] == "recipe"
    assert ct3d["volume_sha256"] == ""
    # 2 x 3 x 4 tokens are (1 + 4) x 12 x 16 voxels D W H, in the store D H W.
    assert ct3d["volume_shape"] == [5, 16, 12]
    for stored_grid in (True, False):
        decoded = decode_volume(array, tokenizer, stored_grid=stored_grid)
        assert decoded.shape == (5, 16, 12)
        np.testing.assert_allclose(decoded.spacing, (3, 2, 1))
        np.testing.assert_array_equal(decoded.affine[:3, 3], 0)


def test_latents_lie_beside_the_codes(volumes, tokens, tokenizer, tmp_path):
    status = tmp_path / "latents/valid/0000.parquet"
    store_latents_shard(volumes, tokenizer, SPEC, code="1", status=status)
    folder = tmp_path / "out"
    written = list(export_tokens(tokens, tokenizer, ["b"], folder=folder, latents=status))
    assert written == [folder / FILES[1], folder / "encoded" / FILES[1]]
    codes, latents = (np.load(path)["arr"] for path in written)
    np.testing.assert_array_equal(np.where(latents > 0, 1, -1), codes)
    wanted = read_latents(find_latents(status, "b"))
    if tokenizer.recipe.axes == "dhw":
        wanted = wanted.swapaxes(2, 3)
    np.testing.assert_array_equal(latents[0], wanted)
    with pytest.raises(StoreError, match=r"b\.nii_embedded\.npz: arr holds .*, wanted -1 and \+1"):
        read_btb3d(written[1])
    missing = tmp_path / "latents/gone"
    with pytest.raises(StoreError, match=r"gone\.parquet: no such table; give latents/SPLIT"):
        list(export_tokens(tokens, tokenizer, ["b"], folder=folder, latents=missing))


def test_what_cannot_be_exported_is_said(tokens, tokenizer, tmp_path):
    with pytest.raises(StoreError, match="no volume 'z'"):
        list(export_tokens(tokens, tokenizer, ["z"], folder=tmp_path / "out"))
    other = Tokenizer(tokenizer.model, tokenizer.recipe, None, "e" * 64)
    with pytest.raises(CheckpointError, match=r"a@.*: its tokenizer_sha256 is f{12}, the tokeniz"):
        list(export_tokens(tokens, other, ["a"], folder=tmp_path / "out"))
    levels = TINY.model_copy(update={"quantizer": FSQSpec(levels=(8, 8))})
    with pytest.raises(CheckpointError, match=r"its quantizer is FSQ; .* only a tokenizer with an"):
        list(export_tokens(tokens, _tokenizer("dhw", levels), ["a"], folder=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    empty = tmp_path / "empty.parquet"
    columns = ["volume", "status", "reason", "message", "node", "sha256"]
    write_table(pd.DataFrame({name: [""] for name in columns}), empty)
    with pytest.raises(StoreError, match=r"empty\.parquet: no volume is encoded; `ct3d describe"):
        encoded_volumes(tmp_path / "empty")


def test_what_cannot_be_imported_is_said(volumes, tmp_path):
    tokenizer, status = _tokenizer("dwh"), tmp_path / "t.parquet"
    with pytest.raises(StoreError, match=r"no file \*\.nii_embedded\.npz; give the folder"):
        import_tokens(tmp_path, tokenizer, tables=[], status=status)
    write_btb3d(tmp_path / FILES[0], np.ones((18, 2, 3, 3), np.float32), axes="dwh")
    message = r"its tokens decode to \(5, 12, 12\) voxels, the stored volume fills \(9, 12, 12\);"
    with pytest.raises(StoreError, match=message):
        import_tokens(tmp_path, tokenizer, tables=[volumes], status=status)
    write_btb3d(tmp_path / FILES[0], np.ones((17, 2, 3, 3), np.float32), axes="dwh")
    with pytest.raises(StoreError, match=r"arr has shape \(1, 17, 2, 3, 3\), wanted \(1, 18, d"):
        import_tokens(tmp_path, tokenizer, tables=[], status=status)
    assert not status.exists()
    levels = TINY.model_copy(update={"quantizer": FSQSpec(levels=(8, 8))})
    with pytest.raises(CheckpointError, match="its quantizer is FSQ"):
        import_tokens(tmp_path, _tokenizer("dwh", levels), tables=[], status=status)
