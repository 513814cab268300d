import math

import pytest
import torch

from ct3dlib.metrics.memorisation import copies, nearest_psnr_db


def _volumes(number: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(6, 8, 10, generator=generator) for _ in range(number)]


def test_the_nearest_reference_counts():
    references = _volumes(4, seed=0)
    shifted = references[2] + 0.1  # error 0.01 to it, more to all others
    found = nearest_psnr_db([shifted], references, data_range=2.0)
    assert found == [pytest.approx(10 * math.log10(4 / 0.01), rel=1e-5)]


def test_references_are_read_once():
    volumes = _volumes(3, seed=1)
    read = iter(_volumes(5, seed=0))
    assert len(nearest_psnr_db(volumes, read, data_range=1.0)) == 3
    assert next(read, None) is None


def test_large_volumes_are_compared_by_their_block_means():
    coarse = torch.rand(1, 48, 2, generator=torch.Generator().manual_seed(0))
    fine = coarse.repeat_interleave(4, dim=1)
    noise = torch.tensor([1.0, -1.0]).repeat(96)[None, :, None]  # no mean over a block
    (found,) = nearest_psnr_db([fine + 5 * noise], [fine], data_range=1.0)
    assert found > 90


def test_a_copy_is_nearer_than_any_held_out_volume():
    trained, held_out = _volumes(20, seed=0), _volumes(10, seed=1)
    generated = [*_volumes(5, seed=2), trained[7] + 0.01, trained[3]]
    found, usual = (nearest_psnr_db(v, trained, data_range=1.0) for v in (generated, held_out))
    assert copies(found[5:], usual) == 2
    assert copies(found[:5], usual) <= 2  # by chance one of five draws beats ten
    assert copies(usual, usual) == 0


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="no volume to find"):
        nearest_psnr_db([], _volumes(1, seed=0), data_range=1.0)
    with pytest.raises(ValueError, match="no reference to compare"):
        nearest_psnr_db(_volumes(1, seed=0), [], data_range=1.0)
    with pytest.raises(ValueError, match="there is none"):
        copies([1.0], [])
