"""Tokens and latents of one scan in one file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ct3dlib.errors import StoreError
from ct3dlib.inference.decode import to_volume
from ct3dlib.inference.encoded_file import (
    EncodedScan,
    decode_scan,
    encode_scan,
    read_encoded,
    write_encoded,
)
from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.inference.single import read_scan, reconstruct_scan
from tests.inference.doubles import fsq_model
from tests.inference.test_single import RECIPE, SMALL, causal, lossless, scan_file


@pytest.fixture
def path(tmp_path) -> Path:
    scan_file(tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


TOKENIZERS = {
    "causal": lambda: replace(causal("dwh"), recipe=RECIPE.model_copy(update={"axes": "dwh"})),
    "fsq": lambda: Tokenizer(fsq_model(), RECIPE, SMALL, "e" * 64),
    "vae": lossless,
}


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_a_file_decodes_to_what_the_scan_is_reconstructed_to(tmp_path, path, name: str):
    tokenizer = TOKENIZERS[name]()
    scan = read_scan(path, tokenizer.recipe)
    write_encoded(tmp_path / "new/a.npz", encode_scan(tokenizer, scan))
    read = read_encoded(tmp_path / "new/a.npz")
    ct3d = {"affine": scan.record.affine, "record": scan.record.model_dump(mode="json")}
    hu = reconstruct_scan(tokenizer, scan)
    for stored_grid in (False, True):
        wanted = to_volume(hu, ct3d, domain="hu", stored_grid=stored_grid)
        found = decode_scan(tokenizer, read, stored_grid=stored_grid)
        np.testing.assert_array_equal(found.array, wanted.array)
        np.testing.assert_array_equal(found.affine, wanted.affine)


def test_the_arrays_of_a_file(tmp_path, path):
    causal_, vae = TOKENIZERS["causal"](), TOKENIZERS["vae"]()
    scan = read_scan(path, RECIPE)
    for name in ("a", "b"):
        write_encoded(tmp_path / f"{name}.npz", encode_scan(causal_, scan))
    write_encoded(tmp_path / "vae.npz", encode_scan(vae, scan))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert set(archive.files) == {"indices", "record", "provenance"}
        # 7 x 10 x 13 voxels, seen as D W H: 9 x 16 x 16 fill 2 x 2 x 2 tokens.
        assert (archive["indices"].dtype, archive["indices"].shape) == (np.int32, (2, 2, 2))
        record = json.loads(str(archive["record"]))
        provenance = json.loads(str(archive["provenance"]))
    assert record["source_shape"] == [7, 10, 13]
    assert provenance["tokenizer_sha256"] == "f" * 64
    assert provenance["source_sha256"] == scan.sha256
    assert provenance["windows"]["kind"] == "causal"
    assert provenance["recipe"]["axes"] == "dwh"
    assert "scan.nii" not in json.dumps([record, provenance])
    with np.load(tmp_path / "vae.npz", allow_pickle=False) as archive:
        assert set(archive.files) == {"latents", "record", "provenance"}
        assert (archive["latents"].dtype, archive["latents"].shape) == (np.float32, (8, 4, 5, 7))


def test_values_of_another_model_are_refused(path):
    tokenizer = TOKENIZERS["fsq"]()
    encoded = encode_scan(tokenizer, read_scan(path, RECIPE))
    for values in (encoded.values[:1], np.full_like(encoded.values, 240)):
        with pytest.raises(StoreError, match=r"are none of the tokenizer eeeeeeeeeeee .* again"):
            decode_scan(tokenizer, replace(encoded, values=values))


@pytest.fixture
def arrays(path) -> dict[str, np.ndarray]:
    encoded = encode_scan(TOKENIZERS["fsq"](), read_scan(path, RECIPE))
    return {
        "indices": encoded.values,
        "record": np.array(encoded.record.model_dump_json()),
        "provenance": np.array(json.dumps(encoded.provenance)),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": None}, r"damaged, or not a file of `ct3d encode` \(.*latents"),
        ({"record": None}, "damaged, or not a file of `ct3d encode`"),
        ({"record": "{}"}, "its record is none"),
        ({"provenance": "{"}, "damaged, or not a file"),
        ({"provenance": "[]"}, "does not say which model made it; encode the scan again"),
        (
            {"provenance": '{"format_version": 9, "tokenizer_sha256": "a"}'},
            "format version 9, this program reads 1",
        ),
        ({"indices": np.zeros((2, 2, 2))}, "indices of type float64 .* wanted int32 with 3 axes"),
        ({"indices": np.zeros((2, 2), np.int32)}, r".* shape \(2, 2\), wanted int32"),
        ({"indices": np.array([[[{}]]])}, "damaged, or not a file .*allow_pickle"),
    ],
    ids=[
        *("no values", "no record", "another record", "no JSON", "no model", "version"),
        *("dtype", "axes", "pickle"),
    ],
)
def test_what_is_no_encoded_scan_is_said(tmp_path, arrays, changes, message: str):
    made = {k: v for k, v in {**arrays, **changes}.items() if v is not None}
    np.savez(tmp_path / "a.npz", **made)
    with pytest.raises(StoreError, match=rf"a\.npz: {message}"):
        read_encoded(tmp_path / "a.npz")


def test_a_file_that_is_missing_or_cut_short_is_said(tmp_path, path):
    with pytest.raises(StoreError, match=r"a\.npz: no such file; give one that `ct3d encode`"):
        read_encoded(tmp_path / "a.npz")
    encoded: EncodedScan = encode_scan(TOKENIZERS["fsq"](), read_scan(path, RECIPE))
    write_encoded(tmp_path / "a.npz", encoded)
    whole = (tmp_path / "a.npz").read_bytes()
    for size in (0, 100, len(whole) // 2):
        (tmp_path / "b.npz").write_bytes(whole[:size])
        with pytest.raises(StoreError, match="damaged, or not a file"):
            read_encoded(tmp_path / "b.npz")
