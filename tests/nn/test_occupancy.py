import pytest
import torch

from ct3dlib.nn.occupancy import NUM_REGIONS, occupancy, padded, present, valid_tokens

PATCH = (2, 3, 4)


def drawn(*shape: int, high: int = 21) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    regions = torch.randint(0, high, shape, generator=generator, dtype=torch.uint8)
    regions[torch.rand(shape, generator=generator) < 0.1] = 255
    return regions


@pytest.mark.parametrize("shape", [(4, 6, 8), (5, 7, 9), (1, 2, 3)], ids=["whole", "rest", "small"])
def test_shares_are_those_of_a_loop_over_voxels(shape):
    regions = drawn(2, 1, *shape)
    grid = [-(-n // p) for n, p in zip(shape, PATCH, strict=True)]
    wanted = torch.zeros(2, grid[0] * grid[1] * grid[2], NUM_REGIONS)
    for item, _, d, h, w in torch.cartesian_prod(*map(torch.arange, regions.shape)).tolist():
        region = int(regions[item, 0, d, h, w])
        if region not in (0, 255):
            z, y, x = d // 2, h // 3, w // 4
            wanted[item, (z * grid[1] + y) * grid[2] + x, region - 1] += 1 / 24
    torch.testing.assert_close(occupancy(regions, PATCH), wanted)


def test_counting_in_parts_changes_nothing(monkeypatch):
    regions = drawn(2, 1, 6, 9, 12)
    whole = occupancy(regions, PATCH)
    for at_once in (1, 7 * 24):
        monkeypatch.setattr("ct3dlib.nn.occupancy._AT_ONCE", at_once)
        assert torch.equal(occupancy(regions, PATCH), whole)


def test_a_patch_of_one_region_is_all_its_own():
    regions = torch.zeros(1, 1, 2, 3, 8, dtype=torch.uint8)
    regions[..., :4] = 20
    found = occupancy(regions, PATCH)
    assert found.shape == (1, 2, 20)
    assert found[0, 0].tolist() == [0.0] * 19 + [1.0]
    assert not found[0, 1].any()


def test_ids_of_no_region_are_refused():
    regions = drawn(1, 1, 4, 6, 8)
    regions[0, 0, 3, 5, 7], regions[0, 0, 0, 0, 0] = 21, 254
    with pytest.raises(ValueError, match=r"region ids \[21, 254\], wanted 1 to 20, 0 .* or 255"):
        occupancy(regions, PATCH)


def test_a_region_is_present_from_some_voxels_on():
    regions = torch.zeros(2, 1, 7, 7, 7, dtype=torch.uint8)
    regions[0].view(-1)[:31] = 3
    regions[0].view(-1)[100:132] = 4
    regions[1].view(-1)[:33] = 3
    found = present(occupancy(regions, (3, 3, 3)), (3, 3, 3), least_voxels=32)
    assert found.nonzero().tolist() == [[0, 3], [1, 2]]


def test_voxels_are_counted_exactly_in_a_whole_scan():
    # A voxel is 1/576 of a patch, which no float is: a sum of them is rounded to voxels.
    regions = torch.full((1, 1, 64, 128, 128), 7, dtype=torch.uint8)
    regions.view(-1)[:1000] = 8
    shares = occupancy(regions, (4, 12, 12))
    assert present(shares, (4, 12, 12), least_voxels=1000)[0].nonzero().flatten().tolist() == [6, 7]
    assert not present(shares, (4, 12, 12), least_voxels=1001)[0, 7]


def test_patches_with_any_voxel_of_the_scan_are_valid():
    valid = torch.zeros(1, 1, 4, 3, 5, dtype=torch.bool)
    valid[..., 0, 0, 0] = True
    valid[..., 3, 2, 4] = True
    assert valid_tokens(valid, PATCH).tolist() == [[True, False, False, True]]


def test_volumes_are_filled_with_zeros_at_their_far_ends():
    volumes = torch.ones(1, 2, 3, 3, 5)
    found = padded(volumes, PATCH)
    assert found.shape == (1, 2, 4, 3, 8)
    assert torch.equal(found[:, :, :3, :, :5], volumes)
    assert found.sum() == volumes.sum()
    assert padded(found, PATCH) is found


def test_inputs_stay_as_they_were():
    regions = drawn(1, 1, 4, 6, 8)
    copy = regions.clone()
    occupancy(regions, PATCH)
    assert torch.equal(regions, copy)
