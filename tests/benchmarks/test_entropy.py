import importlib
import json

import pytest
import torch


@pytest.fixture
def entropy(repository, monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(repository / "benchmarks")
    return importlib.import_module("entropy")


@pytest.fixture
def here(entropy, monkeypatch):
    """Measure in this process, whose memory says nothing."""

    def measure(way, tokens, bits):
        return {**entropy.measure(way, tokens, bits), "cpu_ms": 2.0, "peak_mib": 3.0}

    monkeypatch.setattr(entropy, "in_fresh_process", measure)


@pytest.mark.usefixtures("here")
def test_both_ways_agree_and_every_claim_has_a_record(entropy, monkeypatch, tmp_path, capsys):
    out = tmp_path / "records.json"
    arguments = ["entropy", "--tokens", "64", "--bits", "10", "--rounds", "1", "--json", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    entropy.main()
    records = json.loads(out.read_text())
    assert [record["name"] for record in records] == [claim[0] for claim in entropy.CLAIMS]
    assert {record["ratio"] for record in records} == {1.0}
    table = capsys.readouterr().out
    assert all(record["name"] in table for record in records)


def test_gradients_of_both_ways_agree_where_the_joint_is_exact(entropy):
    latents = {way: entropy.latents_of(64, 8) for way in entropy.WAYS}
    for way, run in entropy.WAYS.items():
        run(latents[way])
    ours, peer = (latents[way].grad for way in ("ours", "peer"))
    # The peer's logarithm is cut off at 1e-5, below which ours still has a gradient.
    assert torch.nn.functional.cosine_similarity(ours.flatten(), peer.flatten(), 0) > 0.99


def test_ways_that_differ_are_no_comparison(entropy, monkeypatch):
    found = {"ours": 1.0, "peer": 1.5}
    monkeypatch.setattr(
        entropy,
        "in_fresh_process",
        lambda way, tokens, bits: {"cpu_ms": 1.0, "peak_mib": 1.0, "entropy": found[way]},
    )
    with pytest.raises(RuntimeError, match=r"the tokens differ: 1\.0000 and 1\.5000"):
        entropy.compare(4, 4, 1)
