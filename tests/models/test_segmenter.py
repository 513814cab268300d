"""The segmenter: levels of its decoder, what reaches a voxel, its files."""

import pytest
import torch

from ct3dlib.config import SegmenterNetworkSpec
from ct3dlib.models.exported import load_model, save_model
from ct3dlib.models.segmenter import Segmenter, level_sizes, spread
from tests.cubes import TINY


def spec(**changes) -> SegmenterNetworkSpec:
    encoder = {**TINY, "shape": [13, 16, 24], **changes}
    return SegmenterNetworkSpec.model_validate({"encoder": encoder, "filters": 8, "num_classes": 3})


def model(**changes) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(spec(**changes)).eval()


def volumes(shape=(13, 16, 24), count: int = 1) -> torch.Tensor:
    return torch.rand((count, 1, *shape), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("layers", "blocks"),
    [
        (24, (6, 12, 18, 24)),
        (12, (3, 6, 9, 12)),
        (5, (2, 3, 4, 5)),
        (2, (1, 2)),
        (1, (1,)),
    ],
    ids=str,
)
def test_stages_are_spread_evenly_and_end_with_the_last_block(layers, blocks):
    assert spread(layers) == blocks


def test_levels_double_with_patches_of_sixteen_as_the_publication_has_them():
    encoder = spec(patch_size=[16, 16, 16], shape=[32, 48, 64]).encoder
    assert level_sizes(encoder, 4) == [(4, 6, 8), (8, 12, 16), (16, 24, 32), (32, 48, 64)]


def test_levels_of_any_patch_grow_by_equal_factors():
    # 13^(1/4) = 1.90, 13^(2/4) = 3.61, 13^(3/4) = 6.85; 8^(1/4) = 1.68, 2.83, 4.76
    assert level_sizes(spec().encoder, 4) == [(2, 3, 5), (4, 6, 8), (7, 10, 14), (13, 16, 24)]


@pytest.mark.parametrize(
    ("shape", "patch", "layers"),
    [
        ((13, 16, 24), (13, 8, 8), 4),
        ((6, 10, 21), (3, 5, 7), 1),
        ((5, 7, 9), (2, 4, 4), 2),
        ((4, 6, 6), (1, 1, 1), 2),
    ],
    ids=["flat", "one block", "padded", "voxels"],
)
def test_logits_lie_on_the_voxels_and_every_weight_takes_part(shape, patch, layers):
    encoder = {"hidden_size": 12, "num_layers": layers, "num_heads": 2}
    network = model(encoder=encoder, patch_size=patch, shape=shape, pad=True)
    logits = network(volumes(shape, count=2))
    assert logits.shape == (2, 3, *shape)
    logits.square().mean().backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]


def test_a_voxel_shows_where_it_is_and_items_do_not_mix():
    network, given = model(), volumes(count=2)
    changed = given.clone()
    changed[1, 0, 9, 4, 17] += 3
    moved = (network(changed) - network(given)).abs().sum(1)
    assert not moved[0].any()
    peak = torch.unravel_index(moved[1].argmax(), moved[1].shape)
    # Two convolutions of three voxels reach two voxels far.
    assert all(abs(int(a) - b) <= 2 for a, b in zip(peak, (9, 4, 17), strict=True))


def test_every_stage_of_the_encoder_is_looked_at():
    network = model()
    before = network(volumes())
    for skip in network.skips:
        weight = skip.weight.detach().clone()
        with torch.no_grad():
            skip.weight.zero_()
            assert not torch.allclose(network(volumes()), before)
            skip.weight.copy_(weight)
    torch.testing.assert_close(network(volumes()), before)
    # The coarsest skip is of the latest of the earlier stages.
    stages = network.encoder.stages(volumes(), network.after)
    seen = []
    network.skips[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network(volumes())
    torch.testing.assert_close(seen[0], stages[2])


def test_it_is_rebuilt_from_its_files(tmp_path):
    network = model()
    contract = {"recipe": {}, "classes": ["background", "a", "b"]}
    save_model(tmp_path, network, spec=network.spec, contract=contract, training={})
    found = load_model(tmp_path)
    assert isinstance(found.module, Segmenter)
    torch.testing.assert_close(found.module(volumes()), network(volumes()), rtol=0, atol=0)
