"""Whole-dataset latents: keyed, resumed, measured, and decoded to the reconstruction."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ct3dlib.cohort.store import read_status, stored_volumes, write_table
from ct3dlib.cohort.verify import verify_table
from ct3dlib.config import (
    CausalTokenizerSpec,
    KLAutoencoderSpec,
    MaisiTokenizerSpec,
    SlidingWindowSpec,
    TokensSpec,
)
from ct3dlib.errors import StoreError
from ct3dlib.inference.decode import find_tokens
from ct3dlib.inference.encode import encode_shard, read_indices
from ct3dlib.inference.latents import (
    collect_latents,
    decode_stored_latents,
    find_latents,
    read_latents,
    store_latents_shard,
)
from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.inference.reconstruct import reconstruct
from ct3dlib.models import build_autoencoder
from tests.inference.conftest import RECIPE

SPEC = TokensSpec(tokenizer="any", windows_per_batch=3)
KINDS = {
    "causal": CausalTokenizerSpec(
        filters=2, num_res_blocks=1, channel_multipliers=(1,), temporal_downsample=(), norm_groups=1
    ),
    "maisi": MaisiTokenizerSpec(
        num_channels=(4, 4), num_res_blocks=(1, 1), attention_levels=(False, False), norm_groups=2
    ),
    "vae": KLAutoencoderSpec(
        init_filters=4, smallest_filters=4, blocks_down=(1, 1), blocks_up=(1,), norm_groups=2
    ),
    "vae2d": KLAutoencoderSpec(
        spatial_dims=2,
        init_filters=4,
        smallest_filters=4,
        blocks_down=(1, 1),
        blocks_up=(1,),
        norm_groups=2,
    ),
}


def make(kind: str, *, sha256: str = "a" * 64) -> Tokenizer:
    torch.manual_seed(0)
    sliding = SlidingWindowSpec(roi_size=(4, 8, 8), overlap=0.5, sw_batch_size=2)
    model = build_autoencoder(KINDS[kind]).eval()
    return Tokenizer(model, RECIPE, None if kind == "causal" else sliding, sha256)


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return make(request.param)


@pytest.fixture
def status(tmp_path: Path) -> Path:
    return tmp_path / "latents/valid/0000.parquet"


def test_stored_latents_decode_to_the_reconstruction(volumes, tokenizer, status):
    frame = store_latents_shard(volumes, tokenizer, SPEC, code="1", status=status)
    assert frame["status"].tolist() == ["encoded", "encoded", "rejected"]
    assert frame["stage"].tolist() == ["", "", "volumes"]
    volume = stored_volumes([volumes])[1]
    array = find_latents(status, volume.volume)
    latents = read_latents(array)
    assert latents.dtype == np.float32
    assert list(latents.shape) == frame["shape"][1]
    out = reconstruct(tokenizer, volume.read(), window=RECIPE.window, windows_per_batch=3)
    decoded = decode_stored_latents(array, tokenizer, stored_grid=True)
    np.testing.assert_array_equal(decoded.array, np.rint(out.hu))
    np.testing.assert_allclose(decoded.affine, volume.affine)
    assert decode_stored_latents(array, tokenizer).shape == (7, 10, 12)
    assert not list(verify_table(status, {tokenizer.sha256}))
    assert [f.problem for f in verify_table(status, {"other"})] == [
        "is stale: encoded by another tokenizer"
    ] * 2


@pytest.mark.parametrize("kind", ["causal", "maisi"])
def test_quantizing_stored_latents_gives_the_stored_tokens(volumes, kind, status, tmp_path):
    tokenizer, tokens = make(kind), tmp_path / "tokens/valid/0000.parquet"
    store_latents_shard(volumes, tokenizer, SPEC, code="1", status=status)
    encode_shard(volumes, tokenizer, SPEC, code="1", status=tokens)
    for name in "ab":
        latents = torch.from_numpy(read_latents(find_latents(status, name)))
        indices = tokenizer.quantizer(latents[None]).indices[0]
        assert np.array_equal(indices, read_indices(find_tokens(tokens, name)))


def nodes(status: Path) -> dict[str, int]:
    """Return the nodes of a store and when their values were written."""
    files = status.with_suffix(".zarr").glob("*/0/c*")
    return {file.parent.parent.name: file.stat().st_mtime_ns for file in files}


def test_finished_latents_are_kept_until_what_they_depend_on_changes(volumes, status):
    tokenizer = make("vae")
    store_latents_shard(volumes, tokenizer, SPEC, code="1", status=status)
    first, table = nodes(status), status.read_bytes()
    store_latents_shard(volumes, tokenizer, SPEC, code="1", status=status)
    assert nodes(status) == first
    assert status.read_bytes() == table
    windows = SlidingWindowSpec(roi_size=(4, 8, 8), overlap=0.25)
    changes = [
        {"sha256": "b" * 64},
        {"sliding": windows},
        {"sliding": windows.model_copy(update={"mode": "hann"})},
        {"sliding": None},
    ]
    seen = set(first)
    for change in changes:
        other = replace(tokenizer, **change)
        store_latents_shard(volumes, other, SPEC, code="1", status=status)
        assert not seen & set(nodes(status))
        seen |= set(nodes(status))
    store_latents_shard(volumes, tokenizer, SPEC, code="2", status=status)
    assert not seen & set(nodes(status))


def test_a_volume_that_was_interrupted_is_the_only_one_made_again(volumes, status):
    tokenizer = make("vae")
    store_latents_shard(volumes, tokenizer, SPEC, code="1", status=status)
    before, table = nodes(status), status.read_bytes()
    status.unlink()
    (left,) = status.with_suffix(".zarr").glob("b@*")
    left.rename(left.with_name(f"{left.name}.partial"))
    store_latents_shard(volumes, tokenizer, SPEC, code="1", status=status)
    after = nodes(status)
    assert set(after) == set(before)
    assert [name[0] for name in after if after[name] != before[name]] == ["b"]
    assert status.read_bytes() == table


def test_channels_are_measured_over_all_volumes(volumes, tokenizer, status):
    store_latents_shard(volumes, tokenizer, SPEC, code="1", status=status)
    table, summary = collect_latents([status])
    assert table["volume"].tolist() == ["a", "b", "c"]
    assert table["shard"].tolist() == [0, 0, 0]
    every = np.concatenate(
        [read_latents(find_latents(status, n)).reshape(summary["channels"], -1) for n in "ab"],
        axis=1,
    ).astype(np.float64)
    np.testing.assert_allclose(summary["mean"], every.mean(axis=1), atol=1e-9)
    np.testing.assert_allclose(summary["std"], every.std(axis=1), atol=1e-9)
    assert summary["positions"] == every.shape[1]
    assert summary["encoded"] == 2
    assert summary["rejected"] == {"NAN_VOXELS": 1}


def test_a_split_without_latents_has_no_mean(volumes, tmp_path):
    rejected = read_status(volumes).query("status == 'rejected'")
    status = tmp_path / "latents/valid/0000.parquet"
    bad = tmp_path / "volumes/0001.parquet"
    write_table(rejected, bad)
    store_latents_shard(bad, make("vae"), SPEC, code="1", status=status)
    _, summary = collect_latents([status])
    assert (summary["encoded"], summary["mean"], summary["std"]) == (0, [], [])


def test_tables_that_do_not_belong_together_are_refused(volumes, status):
    store_latents_shard(volumes, make("vae"), SPEC, code="1", status=status)
    with pytest.raises(StoreError, match="a: in two latent tables; delete the one whose shard"):
        collect_latents([status, status])
    other = status.with_name("0001.parquet")
    frame = store_latents_shard(volumes, make("maisi"), SPEC, code="1", status=other)
    write_table(frame.assign(volume=["d", "e", "f"]), other)
    with pytest.raises(StoreError, match=r"latents of \[3, 4\] channels are of several models"):
        collect_latents([status, other])


def test_latents_and_tokens_are_not_taken_for_each_other(volumes, status, tmp_path):
    store_latents_shard(volumes, make("maisi"), SPEC, code="1", status=status)
    with pytest.raises(StoreError, match="holds no tokens; give tokens/SPLIT"):
        find_tokens(status, "a")
    tokens = tmp_path / "tokens/valid/0000.parquet"
    encode_shard(volumes, make("maisi"), SPEC, code="1", status=tokens)
    with pytest.raises(StoreError, match="holds no latents; give latents/SPLIT"):
        find_latents(tokens, "a")
    with pytest.raises(StoreError, match="no such table; give latents/SPLIT of a run that has"):
        find_latents(tmp_path / "latents/train", "a")
    with pytest.raises(StoreError, match="no volume 'z'"):
        find_latents(status, "z")
