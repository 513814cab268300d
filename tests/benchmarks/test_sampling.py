import importlib
import json

import pytest
import torch


@pytest.fixture
def sampling(repository, monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(repository / "benchmarks")
    return importlib.import_module("sampling")


def test_both_draw_whole_grids_and_every_claim_has_a_record(
    sampling, monkeypatch, tmp_path, capsys
):
    threads = torch.get_num_threads()
    out = tmp_path / "records.json"
    small = "--grid 2 3 4 --width 24 --depth 1 --heads 2 --steps 3 --rounds 1"
    monkeypatch.setattr("sys.argv", ["sampling", *small.split(), "--json", str(out)])
    sampling.main()
    torch.set_num_threads(threads)
    records = json.loads(out.read_text())
    assert [record["name"] for record in records] == list(sampling.CLAIMS)
    table = capsys.readouterr().out
    assert all(record["name"] in table for record in records)


def test_the_peer_learns_as_any_transformer_does(sampling):
    torch.manual_seed(0)
    peer = sampling.Peer(24, 1, 2)
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-2)
    indices = torch.arange(24).view(2, 3, 4)

    losses = [sampling.peer_step(peer, optimizer, indices) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
