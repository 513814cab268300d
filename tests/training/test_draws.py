import pytest
import torch

from ct3dlib.training.draws import _mix, normal, seed_of, uniform

BITS = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def _mix_slowly(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & BITS
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & BITS
    return x ^ (x >> 31)


def test_mixing_gives_the_published_numbers():
    # The first outputs of SplitMix64 seeded with 1234567 (rosettacode.org).
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    states = [(1234567 + k * GOLDEN) & BITS for k in (1, 2, 3)]
    signed = torch.tensor([s - (1 << 64) if s >> 63 else s for s in states])
    assert [int(x) & BITS for x in _mix(signed)] == published


def test_uniform_equals_a_slow_reference():
    seeds, stream = [0, 5, 2**63 - 1], 3
    found = uniform(torch.tensor(seeds), (2, 2), stream)
    for row, seed in zip(found, seeds, strict=True):
        start = _mix_slowly(seed ^ _mix_slowly(stream))
        wanted = [(_mix_slowly((start + k * GOLDEN) & BITS) >> 40) / 2**24 for k in (1, 2, 3, 4)]
        assert row.flatten().tolist() == wanted


def test_uniform_does_not_depend_on_the_batch():
    together = uniform(torch.arange(100), (7,))
    assert torch.equal(uniform(torch.tensor([42]), (7,))[0], together[42])
    assert torch.equal(uniform(torch.arange(100), (3,)), together[:, :3])


def test_uniform_is_uniform_over_seeds_places_and_streams():
    numbers = torch.stack([uniform(torch.arange(500), (40,), stream) for stream in range(5)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    # 100,000 draws: the standard errors of mean and variance are 0.0009 and 0.0003.
    assert numbers.mean().item() == pytest.approx(1 / 2, abs=0.004)
    assert numbers.var().item() == pytest.approx(1 / 12, abs=0.0012)
    for axis in range(3):
        rows = numbers.transpose(0, axis).flatten(1)[:5]
        off = torch.corrcoef(rows) - torch.eye(len(rows))
        assert off.abs().max() < 4 * rows.shape[1] ** -0.5


def test_normal_is_box_and_muller_of_the_uniform_numbers():
    u = uniform(torch.tensor([9]), (2, 2), 3)[0].double()
    radius = (-2 * (1 - u[0]).log()).sqrt()
    wanted = [radius * (2 * torch.pi * u[1]).cos(), radius * (2 * torch.pi * u[1]).sin()]
    found = normal(torch.tensor([9]), (3,), 3)[0]  # an odd number: the fourth is not taken
    torch.testing.assert_close(found.double(), torch.cat(wanted)[:3], atol=1e-6, rtol=0)


def test_normal_is_normal():
    numbers = normal(torch.arange(2000), (5, 11))
    assert numbers.shape == (2000, 5, 11)
    assert torch.isfinite(numbers).all()
    # 110,000 draws: the standard errors of mean and variance are 0.003 and 0.0043.
    assert numbers.mean().item() == pytest.approx(0, abs=0.012)
    assert numbers.var().item() == pytest.approx(1, abs=0.017)
    inside = (numbers.abs() < 1.96).float().mean().item()
    assert inside == pytest.approx(0.95, abs=0.003)


def test_seeds_differ_by_every_part_and_are_stable():
    seeds = {seed_of("a", 1, 2), seed_of("a", 2, 1), seed_of("a", 12), seed_of("b", 1, 2)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of("step", 0, -7) == 851118520281044048
