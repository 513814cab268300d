"""Whole-dataset encoding: packed indices, one row per volume, nothing twice."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ct3dlib.cohort.store import read_status, stored_volumes, write_node, write_table
from ct3dlib.cohort.verify import verify_table
from ct3dlib.config import CausalTokenizerSpec, SlidingWindowSpec, TokensSpec
from ct3dlib.errors import CheckpointError, StoreError
from ct3dlib.inference.decode import decode_volume, find_tokenizer, find_tokens, to_volume
from ct3dlib.inference.encode import collect_tokens, encode_shard, read_indices
from ct3dlib.inference.loaded import Tokenizer, load_tokenizer
from ct3dlib.inference.reconstruct import encode_volume, reconstruct
from ct3dlib.models import build_model
from ct3dlib.models.exported import save_model
from tests.inference.conftest import RECIPE
from tests.inference.doubles import Blocks, fsq_model, kl_spec

TINY = CausalTokenizerSpec(
    filters=4,
    num_res_blocks=1,
    channel_multipliers=(1, 1),
    temporal_downsample=(True,),
    norm_groups=2,
)
CPU = torch.device("cpu")
SPEC = TokensSpec(tokenizer="lfq", windows_per_batch=3)


@pytest.fixture
def tokenizer(tmp_path):
    torch.manual_seed(0)
    contract = {"recipe": RECIPE.model_dump(mode="json")}
    folder = tmp_path / "models/lfq"
    save_model(folder, build_model(TINY), spec=TINY, contract=contract, training={})
    return load_tokenizer(folder, CPU)


def test_stored_indices_are_those_of_the_model(volumes, tokenizer, tmp_path):
    status = tmp_path / "tokens/valid/0000.parquet"
    frame = encode_shard(volumes, tokenizer, SPEC, code="1", status=status)
    assert frame["status"].tolist() == ["encoded", "encoded", "rejected"]
    assert frame["stage"].tolist() == ["", "", "volumes"]
    volume = stored_volumes([volumes])[0]
    wanted = encode_volume(
        tokenizer,
        volume.read(),
        window=RECIPE.window,
        windows_per_batch=3,
    )
    array = find_tokens(status, "a")
    assert np.array_equal(read_indices(array), wanted.indices.numpy())
    assert array.read().nbytes == -(-wanted.indices.numel() * 18 // 8)
    assert not list(verify_table(status, {tokenizer.sha256}))
    assert [f.problem for f in verify_table(status, {"other"})] == [
        "is stale: encoded by another tokenizer"
    ] * 2


def test_a_second_run_keeps_what_is_there(volumes, tokenizer, tmp_path):
    status = tmp_path / "tokens/valid/0000.parquet"
    encode_shard(volumes, tokenizer, SPEC, code="1", status=status)
    before, files = status.read_bytes(), list(tmp_path.glob("tokens/valid/*.zarr/*/0/c*"))
    times = [p.stat().st_mtime_ns for p in files]
    encode_shard(volumes, tokenizer, SPEC, code="1", status=status)
    assert status.read_bytes() == before
    assert [p.stat().st_mtime_ns for p in files] == times


def test_tokens_are_made_anew_when_what_they_depend_on_changes(volumes, tokenizer, tmp_path):
    status = tmp_path / "tokens/valid/0000.parquet"
    first = encode_shard(volumes, tokenizer, SPEC, code="1", status=status)
    seen = set(first["node"][:2])
    for changed in (
        {"tokenizer": replace(tokenizer, sha256="b" * 64)},
        {"spec": SPEC.model_copy(update={"windows_per_batch": 2})},
        {"code": "2"},
    ):
        given = {"tokenizer": tokenizer, "spec": SPEC, "code": "1", **changed}
        nodes = encode_shard(volumes, status=status, **given)["node"][:2]
        assert not seen & set(nodes)
        seen |= set(nodes)
    # A volume of other values is another source; its neighbour keeps its tokens.
    table = read_status(volumes)
    changed, volume = table["volume"] == "b", stored_volumes([volumes])[1]
    attributes = {"ct3d": volume.array.attributes["ct3d"]}
    store = volumes.with_suffix(".zarr")
    sha256 = write_node(store, "b@1", volume.read() // 2, attributes=attributes)
    table.loc[changed, ["node", "sha256"]] = "b@1", sha256
    write_table(table, volumes)
    again = encode_shard(volumes, tokenizer, SPEC, code="1", status=status)
    assert (again["node"] == first["node"]).tolist() == [True, False, True]


def test_tokens_do_not_depend_on_shards_or_their_order(volumes, tokenizer, tmp_path):
    """Byte by byte: one shard of both volumes, one of each, and both the other way round."""
    table, wanted = read_status(volumes), None
    for name, parts in {"one": [[0, 1]], "two": [[0], [1]], "turned": [[1, 0]]}.items():
        files = {}
        for shard, rows in enumerate(parts):
            source = volumes.with_name(f"{name}-{shard}.parquet")
            write_table(table.iloc[rows], source)
            source.with_suffix(".zarr").symlink_to(volumes.with_suffix(".zarr"))
            status = tmp_path / f"tokens/{name}/{shard:04}.parquet"
            encode_shard(source, tokenizer, SPEC, code="1", status=status)
            store = status.with_suffix(".zarr")
            nodes = (path for path in store.glob("*@*/**/*") if path.is_file())
            files |= {str(path.relative_to(store)): path.read_bytes() for path in nodes}
        assert files
        wanted = wanted or files
        assert files == wanted


def test_tokens_are_not_made_of_a_damaged_volume(volumes, tokenizer, tmp_path):
    (file,) = volumes.with_suffix(".zarr").glob("b@*/0/c.0.0.0")
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(content)
    status = tmp_path / "tokens/valid/0000.parquet"
    with pytest.raises(StoreError, match=r"b@0: .*; delete .*volumes/0000\.parquet and run again"):
        encode_shard(volumes, tokenizer, SPEC, code="1", status=status)
    assert not status.exists()


def test_decoding_returns_to_the_scans_grid(volumes, tokenizer, tmp_path):
    status = tmp_path / "tokens/valid/0000.parquet"
    encode_shard(volumes, tokenizer, SPEC, code="1", status=status)
    array = find_tokens(status, "b")
    found = find_tokenizer(tmp_path / "models", array, CPU)
    decoded = decode_volume(array, found)
    assert decoded.shape == (7, 10, 12)
    assert decoded.array.dtype == np.int16
    assert np.allclose(decoded.spacing, (3, 2, 1))


def test_what_cannot_be_decoded_is_said(volumes, tokenizer, tmp_path):
    status = tmp_path / "tokens/valid/0000.parquet"
    encode_shard(volumes, tokenizer, SPEC, code="1", status=status)
    with pytest.raises(StoreError, match="no volume 'z'"):
        find_tokens(status, "z")
    with pytest.raises(StoreError, match="c: was rejected at volumes, NAN_VOXELS: c: NaN"):
        find_tokens(status, "c")
    with pytest.raises(CheckpointError, match="no model here has the weights"):
        find_tokenizer(tmp_path, find_tokens(status, "a"), CPU)


def test_the_splits_table_has_one_row_per_catalog_row(volumes, tokenizer, tmp_path):
    status = tmp_path / "tokens/valid/0000.parquet"
    encode_shard(volumes, tokenizer, SPEC, code="1", status=status)
    catalog = ["c", "a", "b"]
    table, summary = collect_tokens(catalog, [status])
    assert table["volume"].tolist() == ["a", "b", "c"]
    assert summary["encoded"] == 2
    assert summary["rejected"] == {"NAN_VOXELS": 1}
    assert summary["bits_per_token"] == 18
    with pytest.raises(StoreError, match="differ at d"):
        collect_tokens(["a", "b", "c", "d"], [status])
    with pytest.raises(StoreError, match="differ at a"):
        collect_tokens(catalog, [status, status])
    node = next((tmp_path / "tokens/valid/0000.zarr").glob("a@*"))
    node.rename(node.with_name("gone"))
    with pytest.raises(StoreError, match=r"gone; delete .* and run again"):
        collect_tokens(catalog, [status])


def test_a_model_in_sliding_windows_is_encoded_decoded_and_keyed(volumes, tmp_path):
    windows = SlidingWindowSpec(roi_size=(4, 8, 8), overlap=0.5, sw_batch_size=2)
    sliding = Tokenizer(fsq_model(), RECIPE, windows, "a" * 64)
    status = tmp_path / "tokens/valid/0000.parquet"
    frame = encode_shard(volumes, sliding, SPEC, code="1", status=status)
    assert frame["shape"].tolist()[:2] == [[4, 5, 6]] * 2
    assert frame["bits"].tolist() == [8, 8, 0]
    array, volume = find_tokens(status, "a"), stored_volumes([volumes])[0]
    ct3d = array.attributes["ct3d"]
    assert ct3d["windows"] == {"kind": "sliding", **windows.model_dump(mode="json")}
    assert ct3d["bit_order"] == "mixed_radix_channel0_least"
    out = reconstruct(sliding, volume.read(), window=RECIPE.window, windows_per_batch=1)
    decoded = decode_volume(array, sliding, stored_grid=True)
    np.testing.assert_array_equal(decoded.array, np.rint(out.hu))
    assert not list(verify_table(status, {sliding.sha256}))
    other = replace(sliding, sliding=windows.model_copy(update={"overlap": 0.0}))
    again = encode_shard(volumes, other, SPEC, code="1", status=status)
    assert not set(frame["node"][:2]) & set(again["node"])


def test_a_model_without_tokens_fills_no_token_store(volumes, tmp_path):
    vae = Tokenizer(Blocks(kl_spec((2, 2, 2))).eval(), RECIPE, None, "a" * 64)
    status = tmp_path / "tokens/valid/0000.parquet"
    with pytest.raises(CheckpointError, match=r"the name vae has latents and no tokens; store its"):
        encode_shard(volumes, vae, SPEC, code="1", status=status)
    assert not status.parent.exists()


def test_other_domains_are_not_clipped_to_hu(volumes):
    ct3d = stored_volumes([volumes])[0].array.attributes["ct3d"]
    values = np.full((7, 10, 12), 4000.4, np.float32)
    assert to_volume(values, ct3d, domain="mr").array.max() == 4000
    assert to_volume(values, ct3d, domain="hu").array.max() == 3071
