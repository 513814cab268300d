import importlib
import json

import numpy as np
import pytest


@pytest.fixture
def tokens(repository, monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(repository / "benchmarks")
    return importlib.import_module("tokens")


def test_a_volume_takes_at_most_18_5_bits_a_token_and_a_28th_of_the_npz(tokens, tmp_path):
    volume, bits = tokens.compare(tokens.TOKENS, tmp_path)
    assert volume["peer"] == pytest.approx(18 * 31 * 64 * 64 * 4 / 1e3, rel=1e-3)
    assert volume["ratio"] >= 28
    assert 18 <= bits["ours"] <= 18.5


def test_the_npz_holds_the_signs_of_the_bits(tokens, tmp_path):
    tokens.npz_bytes(np.array([[[0, 1, 2**17]]]), tmp_path)
    codes = np.load(tmp_path / "valid_1_a_1.nii_embedded.npz")["arr"]
    assert codes.shape == (1, 18, 1, 1, 3)
    assert codes.dtype == np.float32
    assert np.argwhere(codes[0, :, 0, 0] > 0).tolist() == [[0, 2], [17, 1]]


def test_records_are_published(tokens, monkeypatch, tmp_path, capsys):
    out = tmp_path / "records.json"
    monkeypatch.setattr("sys.argv", ["tokens", "--grid", "2", "3", "4", "--json", str(out)])
    tokens.main()
    records = json.loads(out.read_text())
    assert all(
        set(record) == {"name", "ours", "peer", "unit", "ratio", "machine", "commit"}
        for record in records
    )
    table = capsys.readouterr().out
    assert all(record["name"] in table for record in records)
