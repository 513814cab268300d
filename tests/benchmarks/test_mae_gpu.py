import importlib
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ct3dlib.config import MaskedAutoencoderNetworkSpec


@pytest.fixture
def mae_gpu(repository, monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(repository / "benchmarks")
    return importlib.import_module("mae_gpu")


def test_every_figure_has_a_record_and_batches_grow_until_memory_ends(
    mae_gpu, monkeypatch, tmp_path, capsys
):
    made = []

    def make_step(spec, batch, *, compiled, device):
        made.append((batch, compiled))
        if batch == 4:
            raise torch.OutOfMemoryError
        # Checks of shapes, which tests switch on, cannot be compiled.
        return made_before(spec, batch, compiled=False, device=device)

    made_before = mae_gpu.make_step
    monkeypatch.setattr(mae_gpu, "make_step", make_step)
    monkeypatch.setattr(mae_gpu, "STEPS", 1)
    monkeypatch.setattr(mae_gpu, "WARM_UP", 1)
    out = tmp_path / "records.json"
    small = "--device cpu --smoke --size 32"
    monkeypatch.setattr("sys.argv", ["mae_gpu", *small.split(), "--json", str(out)])
    mae_gpu.main()
    assert made == [(1, False), (1, True), (2, False), (2, True), (4, False)]
    records = json.loads(out.read_text())
    assert [record["name"] for record in records] == [
        f"mae/cpu_32_batch_{batch}_{field}" for batch in (1, 2) for field in mae_gpu.UNITS
    ]
    table = capsys.readouterr().out
    assert all(record["name"] in table for record in records)


def test_figures_of_a_step_are_worked_out_from_its_time(mae_gpu, monkeypatch):
    times = iter(range(0, 100, 2))
    monkeypatch.setattr(mae_gpu.time, "perf_counter", lambda: next(times))
    held = {True: 3 * 2**30, False: 11 * 2**30}
    monkeypatch.setattr(mae_gpu, "memory", lambda device, *, reset: held[reset])
    # 4 volumes in 2 s, by a card that could do 8 a second, in 8 GiB above what stays.
    found = mae_gpu.measure(lambda: None, torch.device("cpu"), batch=4, operations=8.0)
    assert found == mae_gpu.Measured(step_s=2, volumes_per_s=2, volume_gib=2, share=0.25)


@pytest.mark.parametrize("size", [32, 64])
def test_macs_are_half_of_the_operations_that_pytorch_counts(mae_gpu, size):
    spec = mae_gpu.network(mae_gpu.TINY, size)
    with torch.device("meta"):
        model = mae_gpu.Ours(spec)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, 1, size, size, size, device="meta"))
    assert counter.get_total_flops() == 2 * mae_gpu.macs(spec)


def test_a_volume_of_the_published_size_takes_its_operations(mae_gpu):
    # Encoder 24 x (1025 x 12 x 1024^2 + 2 x 1025^2 x 1024), decoder 8 x (4097 x 12 x 512^2
    # + 2 x 4097^2 x 512), embedding 1024 x 4096 x 1024 + 1025 x 1024 x 512, prediction
    # 3072 x 512 x 4096.
    wanted = 361_179_955_200 + 240_610_451_456 + 4_832_362_496 + 6_442_450_944
    assert mae_gpu.macs(MaskedAutoencoderNetworkSpec(shape=(256, 256, 256))) == wanted


def test_without_a_gpu_nothing_is_measured(mae_gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["mae_gpu", "--json", str(tmp_path / "records.json")])
    mae_gpu.main()
    assert "no GPU here, nothing is measured" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_ratio_above_1_is_in_favour_of_the_compiled_model(mae_gpu):
    assert mae_gpu.figure("a", 1.0, 3.0, "s")["ratio"] == 3
    assert mae_gpu.figure("a", 3.0, 1.0, "volumes/s")["ratio"] == 3
