import importlib.util
import json

import pytest
import torch

from ct3dlib.config import MaisiTokenizerSpec


@pytest.fixture
def autoencoder(repository, monkeypatch):
    """The benchmark as a module, its model and its norm made small."""
    monkeypatch.syspath_prepend(repository / "benchmarks")
    path = repository / "benchmarks/autoencoder.py"
    spec = importlib.util.spec_from_file_location("autoencoder", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = MaisiTokenizerSpec(
        num_channels=(4, 8), num_res_blocks=(1, 1), attention_levels=(False, True), norm_groups=2
    )
    monkeypatch.setattr(module, "SPEC", small)
    monkeypatch.setattr(module, "NORM_SHAPE", (1, 32, 2, 2, 2))
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def test_every_comparison_has_a_record(autoencoder, monkeypatch, tmp_path, capsys):
    out = tmp_path / "benchmarks.json"
    arguments = ["autoencoder", "--crop", "4", "4", "6", "--rounds", "1", "--json", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    autoencoder.main()
    records = json.loads(out.read_text())
    assert [record["name"] for record in records] == [
        f"autoencoder/maisi_{name}_{threads}_threads"
        for threads in (1, 2)
        for name in ("step", "encode", "group_norm")
    ]
    keys = {"name", "ours", "peer", "unit", "ratio", "machine", "commit"}
    assert all(set(record) == keys and record["ours"] > 0 for record in records)
    table = capsys.readouterr().out
    assert all(record["name"] in table for record in records)


def test_models_that_differ_are_no_comparison(autoencoder):
    ours, stock = autoencoder.make_models()
    volumes = torch.rand(1, 1, 4, 4, 6)
    autoencoder.check(ours, stock, volumes)
    with torch.no_grad():
        ours.last_layer().add_(1)
    with pytest.raises(RuntimeError, match="ours and the stock model differ by"):
        autoencoder.check(ours, stock, volumes)
