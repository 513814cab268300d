import importlib
import json

import pytest


@pytest.fixture
def regions(repository, monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(repository / "benchmarks")
    return importlib.import_module("regions")


@pytest.fixture
def here(regions, monkeypatch):
    """Measure in this process, whose memory says nothing."""

    def measure(way, scan):
        return {**regions.measure(way, scan), "cpu_s": 2.0, "peak_mib": 3.0}

    monkeypatch.setattr(regions, "in_fresh_process", measure)


@pytest.mark.usefixtures("here")
def test_both_ways_find_the_lungs_and_every_claim_has_a_record(
    regions, monkeypatch, tmp_path, capsys
):
    out = tmp_path / "records.json"
    arguments = ["regions", "--shape", "80", "96", "96", "--rounds", "1", "--json", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    regions.main()
    records = json.loads(out.read_text())
    assert [record["name"] for record in records] == [claim[0] for claim in regions.CLAIMS]
    assert {record["ratio"] for record in records} == {1.0}
    table = capsys.readouterr().out
    assert all(record["name"] in table for record in records)


def test_ways_that_differ_are_no_comparison(regions, monkeypatch, tmp_path):
    lungs = {"ours": [1, 2, 3], "peer": [3]}
    monkeypatch.setattr(
        regions,
        "in_fresh_process",
        lambda way, scan: {"cpu_s": 1.0, "peak_mib": 1.0, "lungs": lungs[way]},
    )
    with pytest.raises(RuntimeError, match=r"the lungs of both ways have a Dice of only 0\.50"):
        regions.compare(tmp_path / "scan.nii.gz", 1)
