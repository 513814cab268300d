import importlib
import json

import pytest

from ct3dlib.config import CausalTokenizerSpec, LFQSpec


@pytest.fixture
def windows(repository, monkeypatch):
    """The benchmark as a module, its model made small."""
    monkeypatch.syspath_prepend(repository / "benchmarks")
    module = importlib.import_module("windows")
    small = CausalTokenizerSpec(
        filters=4, num_res_blocks=1, norm_groups=2, quantizer=LFQSpec(bits=6)
    )
    monkeypatch.setattr(module, "SPEC", small)
    return module


def test_batches_and_chunks_agree_and_every_claim_has_a_record(
    windows, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(windows, "in_fresh_process", windows.measure)
    out = tmp_path / "records.json"
    arguments = ["windows", "--shape", "33", "16", "24", "--rounds", "1", "--json", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    windows.main()
    assert [record["name"] for record in json.loads(out.read_text())] == [
        "windows/encode_2_at_a_time",
        "windows/encode_4_at_a_time",
        "windows/decode_in_chunks",
        "windows/decode_in_chunks_peak",
    ]
    assert "windows/decode_in_chunks_peak" in capsys.readouterr().out


def test_ways_that_decode_other_slices_are_no_comparison(windows, monkeypatch):
    found = {"in_chunks": 1.0, "at_once": 1.5}
    monkeypatch.setattr(
        windows,
        "in_fresh_process",
        lambda way, shape: {"cpu_s": 1.0, "peak_mib": 1.0, "probe": found[way]},
    )
    with pytest.raises(RuntimeError, match=r"different slices: 1\.000000 and 1\.500000"):
        windows.decoding((9, 8, 8), 1)


def test_batches_that_give_other_indices_are_no_comparison(windows, monkeypatch):
    encode = windows.encode
    monkeypatch.setattr(
        windows, "encode", lambda model, batch, size: encode(model, batch, size) + (size == 4)
    )
    with pytest.raises(RuntimeError, match="batches of 4 windows give other indices"):
        windows.encoding(8, 8, 1)
