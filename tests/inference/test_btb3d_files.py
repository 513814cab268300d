"""BTB3D's token files: exact layout, exact ids, and what is refused."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ct3dlib.errors import StoreError
from ct3dlib.inference.btb3d_files import read_btb3d, write_btb3d

NAME = "valid_1_a_1.nii_embedded.npz"


def _codes(indices: np.ndarray, bits: int) -> np.ndarray:
    """Return codes of -1 and +1, channel 0 the most significant bit."""
    digits = [(indices >> shift & 1) * 2.0 - 1 for shift in reversed(range(bits))]
    return np.stack(digits).astype(np.float32)


def test_the_first_channel_is_the_highest_bit(tmp_path):
    arr = np.full((1, 18, 1, 1, 2), -1, np.float32)
    arr[0, 0, 0, 0, 0] = 1  # + - - ... is 131072
    arr[0, 17, 0, 0, 1] = 1  # - ... - + is 1
    np.savez(tmp_path / NAME, arr=arr)
    assert read_btb3d(tmp_path / NAME).tolist() == [[[131072, 1]]]


@pytest.mark.parametrize("axes", ["dhw", "dwh"])
def test_a_file_holds_the_same_ids_in_their_layout(tmp_path, axes):
    indices = np.random.default_rng(0).integers(0, 2**18, (3, 4, 5))
    write_btb3d(tmp_path / NAME, _codes(indices, 18), axes=axes)
    assert [p.name for p in tmp_path.iterdir()] == [NAME]
    with np.load(tmp_path / NAME, allow_pickle=False) as archive:
        assert archive.files == ["arr"]
        arr = archive["arr"]
    assert arr.dtype == np.float32
    # Their second axis is x: a model that sees D H W has it last.
    assert arr.shape == ((1, 18, 3, 5, 4) if axes == "dhw" else (1, 18, 3, 4, 5))
    assert set(np.unique(arr)) == {-1, 1}
    found = read_btb3d(tmp_path / NAME, axes=axes)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, indices)
    np.testing.assert_array_equal(
        read_btb3d(tmp_path / NAME), indices.swapaxes(1, 2) if axes == "dhw" else indices
    )


def _archive(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def _array(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


WHOLE = np.ones((1, 18, 1, 2, 3), np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_archive(codes=WHOLE), "has no array arr, it has codes"),
        (_archive(arr=WHOLE[0]), r"arr has shape \(18, 1, 2, 3\), wanted \(1, 18, d, h, w\)"),
        (_archive(arr=WHOLE[:, :17]), r"arr has shape \(1, 17, 1, 2, 3\), wanted \(1, 18"),
        (_archive(arr=WHOLE[..., :0]), r"arr has shape \(1, 18, 1, 2, 0\), wanted"),
        (_archive(arr=WHOLE * 0.5), r"arr holds 0\.5, wanted -1 and \+1 alone; give files of"),
        (_archive(arr=WHOLE * np.nan), r"arr holds nan, wanted -1 and \+1 alone"),
        (_archive(arr=WHOLE.astype(str)), "arr holds values of type <U32, wanted float32"),
        (_archive(arr=np.array([{"code": "run"}])), "not an archive of numbers .*allow_pickle"),
        (_array(WHOLE), "not an archive of numbers"),
        (_archive(arr=WHOLE)[:-30], "not an archive of numbers .* fetch it again"),
        (b"", "not an archive of numbers .* fetch it again"),
    ],
    ids=[
        "key",
        "axes",
        "bits",
        "empty",
        "latents",
        "nan",
        "text",
        "pickle",
        "npy",
        "truncated",
        "no bytes",
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, content: bytes, message: str):
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(StoreError, match=rf"valid_1_a_1\.nii_embedded\.npz: {message}"):
        read_btb3d(tmp_path / NAME)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(StoreError, match=r"embedded\.npz: no such file; give one that BTB3D or"):
        read_btb3d(tmp_path / NAME)
