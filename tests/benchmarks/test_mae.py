import importlib
import json

import pytest
import torch

# MONAI's positions call meshgrid without its new argument.
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")


@pytest.fixture
def mae(repository, monkeypatch):
    """The benchmark as a module; loader processes are tried elsewhere."""
    monkeypatch.syspath_prepend(repository / "benchmarks")
    module = importlib.import_module("mae")
    monkeypatch.setattr(module, "WORKERS", (0,))
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def test_every_claim_has_a_record(mae, monkeypatch, tmp_path, capsys):
    out = tmp_path / "records.json"
    small = "--smoke --size 32 --rounds 1 --threads 1"
    monkeypatch.setattr("sys.argv", ["mae", *small.split(), "--json", str(out)])
    mae.main()
    records = json.loads(out.read_text())
    assert [record["name"] for record in records] == [
        "mae/step_32_against_monai_1_threads",
        "mae/step_32_against_without_dropping_tokens_1_threads",
        "mae/reader_32_0_workers",
    ]
    assert all(record["ours"] > 0 for record in records)
    table = capsys.readouterr().out
    assert all(record["name"] in table for record in records)


def test_models_that_differ_are_no_comparison(mae):
    torch.manual_seed(0)
    spec = mae.network(mae.TINY, 32)
    ours, peer = mae.Ours(spec).model, mae.Monai(spec).model
    before = [value.clone() for value in peer.state_dict().values()]
    volumes = torch.rand(2, 1, 32, 32, 32)
    mae.check(ours, peer, volumes)
    for now, then in zip(peer.state_dict().values(), before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0)
    ours.decoder.register_forward_hook(lambda module, given, found: found * 1.01)
    with pytest.raises(RuntimeError, match=r"ours and MONAI's differ by 1\.0e-02"):
        mae.check(ours, peer, volumes)


def test_only_masked_patches_count(mae):
    patches, masked = torch.zeros(1, 3, 2), torch.tensor([0.0, 1.0, 1.0])[None, :, None]
    predicted = torch.tensor([[9.0, 9.0], [1.0, 1.0], [1.0, 3.0]])[None]
    assert mae.masked_error(predicted, patches, masked) == pytest.approx((1 + 5) / 2)


@pytest.mark.parametrize("side", ["Ours", "Plain", "Monai"])
def test_every_side_learns(mae, side):
    torch.manual_seed(0)
    model = getattr(mae, side)(mae.network(mae.TINY, 32))
    volumes = torch.full((1, 1, 32, 32, 32), 2.0)
    step = mae.stepper(model, volumes)
    with torch.no_grad():
        before = model(volumes)
    for _ in range(40):
        step()
    with torch.no_grad():
        assert model(volumes) < 0.95 * before
