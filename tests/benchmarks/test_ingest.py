import importlib.util
import json

import numpy as np
import pytest


@pytest.fixture
def ingest(repository, monkeypatch):
    """The benchmark as a module, its grid made small and its processes this one."""
    spec = importlib.util.spec_from_file_location("ingest", repository / "benchmarks/ingest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TARGET", (9.0, 6.0, 6.0))
    monkeypatch.setattr(module, "SHAPE", (40, 56, 64))
    return module


def run_here(ingest, monkeypatch):
    """Measure in this process, whose memory says nothing."""

    def measure(way, scan):
        return {**ingest.measure(way, scan), "cpu_s": 2.0, "peak_mib": 3.0}

    monkeypatch.setattr(ingest, "in_fresh_process", measure)


def test_every_way_makes_the_same_volume_and_every_claim_has_a_record(
    ingest, monkeypatch, tmp_path, capsys
):
    run_here(ingest, monkeypatch)
    out = tmp_path / "records" / "ingest.json"
    arguments = ["ingest", "--shape", "48", "80", "72", "--rounds", "1", "--json", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    ingest.main()
    records = json.loads(out.read_text())
    assert [record["name"] for record in records] == [claim[0] for claim in ingest.CLAIMS]
    keys = {"name", "ours", "peer", "unit", "ratio", "machine", "commit"}
    assert all(set(record) == keys for record in records)
    assert {record["ratio"] for record in records} == {1.0}
    table = capsys.readouterr().out
    assert all(record["name"] in table for record in records)


def test_ways_that_differ_are_no_comparison(ingest, monkeypatch, tmp_path):
    probes = {way: np.zeros((2, 2, 2)).tolist() for way in ingest.WAYS}
    probes["float64"] = np.full((2, 2, 2), 5.0).tolist()
    monkeypatch.setattr(
        ingest,
        "in_fresh_process",
        lambda way, scan: {"cpu_s": 1.0, "peak_mib": 1.0, "probe": probes[way]},
    )
    with pytest.raises(RuntimeError, match=r"the ways differ by up to 5\.0 HU"):
        ingest.compare(tmp_path / "scan.nii.gz", 1)
