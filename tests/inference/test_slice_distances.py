"""Distances of slices: which slices, which plane, and the metrics of the whole set."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.metrics.fid import FIDMetric
from torch import Tensor

from ct3dlib.config import GenerationSpec
from ct3dlib.inference.slice_distances import join_planes, plane_features, slice_distances
from ct3dlib.metrics.distribution import polynomial_mmd
from ct3dlib.models.slice_network import SliceNetwork

PLANES = ("axial", "coronal", "sagittal")


def _network(see: Callable[[Tensor], Tensor], **section) -> SliceNetwork:
    spec = GenerationSpec.model_validate(section)
    return SliceNetwork(see, 1, spec, torch.device("cpu"))


def _mean_and_sides(slices: Tensor) -> Tensor:
    sides = torch.tensor(slices.shape[2:]).float().expand(len(slices), 2)
    return torch.cat([slices.mean((2, 3)), sides], 1)


def _numbered(shape: tuple[int, int, int]) -> Tensor:
    """Return a volume whose voxels are d + 100 h + 10000 w."""
    d, h, w = np.indices(shape)
    return torch.from_numpy(d + 100.0 * h + 10000.0 * w).float()


def test_each_plane_is_cut_along_its_axis_in_the_middle_of_equal_parts():
    found = plane_features(_network(_mean_and_sides, slices=3), _numbered((3, 7, 12)))
    mean_d, mean_h, mean_w = 1.0, 300.0, 55000.0
    rest = {"axial": mean_h + mean_w, "coronal": mean_d + mean_w, "sagittal": mean_d + mean_h}
    chosen = {
        "axial": [0, 1, 2],  # no more than there are
        "coronal": [100, 300, 500],  # of 7: 1, 3, 5
        "sagittal": [20000, 60000, 100000],  # of 12: 2, 6, 10
    }
    for plane, sides in zip(PLANES, ([7, 12], [3, 12], [3, 7]), strict=True):
        wanted = torch.tensor([[rest[plane] + value, *sides] for value in chosen[plane]])
        torch.testing.assert_close(found[plane], wanted)


def test_many_slices_go_through_in_batches():
    seen: list[int] = []

    def see(slices: Tensor) -> Tensor:
        seen.append(len(slices))
        return slices.mean((2, 3))

    found = plane_features(_network(see, planes=["axial"]), torch.rand(20, 4, 5))
    assert (seen, len(found["axial"]), list(found)) == ([8, 8, 4], 20, ["axial"])


def test_a_single_slice_has_the_axial_plane_alone():
    network = _network(_mean_and_sides)
    flat, whole = (plane_features(network, _numbered((depth, 4, 5))) for depth in (1, 3))
    assert list(flat) == ["axial"]
    assert len(join_planes([whole, flat])["axial"]) == 4
    assert list(slice_distances(flat, whole)["slice_kid"]) == ["axial", "mean"]


@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated:DeprecationWarning")
def test_distances_of_planes_are_those_of_all_their_slices():
    generator = torch.Generator().manual_seed(0)
    real, other = (
        {p: shift * i + torch.randn(60, 4, generator=generator) for i, p in enumerate(PLANES)}
        for shift in (0, 1)
    )
    found = slice_distances(real, other)
    for plane in PLANES:
        pair = real[plane].double(), other[plane].double()
        fid = FIDMetric()(*pair).item()
        assert found["slice_fid"][plane] == pytest.approx(fid, abs=1e-5)
        kid = polynomial_mmd(*pair).item()  # of all slices; ours is a mean over halves
        assert found["slice_kid"][plane] == pytest.approx(kid, rel=0.1, abs=0.1)
    for values in found.values():
        assert values["mean"] == pytest.approx(np.mean([values[plane] for plane in PLANES]))
        assert values["axial"] < values["coronal"] < values["sagittal"]


def test_slices_of_one_set_are_at_no_fid_and_nearer_than_chance():
    features = {"axial": torch.randn(100, 3, generator=torch.Generator().manual_seed(0))}
    found = slice_distances(features, features)
    assert abs(found["slice_fid"]["axial"]) < 1e-9
    assert found["slice_kid"]["axial"] < 0  # independent sets of one distribution are at 0


def test_few_slices_have_no_fid_and_one_has_no_kid():
    few = {"axial": torch.rand(4, 4), "coronal": torch.rand(6, 4)}
    found = slice_distances(few, few)
    assert found["slice_fid"]["axial"] is None
    assert found["slice_fid"]["coronal"] == pytest.approx(0, abs=1e-9)
    assert found["slice_fid"]["mean"] is None
    one = {"axial": torch.rand(1, 4)}
    assert slice_distances(few, one)["slice_kid"] == {"axial": None, "mean": None}
