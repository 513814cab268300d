"""Where a sentence is: the map of a planted encoder peaks in the planted lesion of the source."""

from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage
from tokenizers import Tokenizer, models

from ct3dlib.config import RecipeSpec
from ct3dlib.errors import VolumeError
from ct3dlib.inference.similarity_map import similarity_volumes
from ct3dlib.inference.single import Scan, read_scan
from ct3dlib.inference.vlm import TrainedVlm
from ct3dlib.models.vlm import RegionLanguageModel, ScanEmbeddings
from ct3dlib.scan.nifti import write_nifti
from ct3dlib.scan.normalize import normalize
from ct3dlib.scan.volume import Volume

# Two file axes run the other way, the third axis is the patient's left, and all are oblique.
COSINES = np.array([[0.1, -0.2, 1.0], [-1.0, 0.1, 0.1], [0.1, -1.0, -0.2]])
SPACING = np.array([0.8, 1.1, 2.5])
LESION = (slice(28, 32), slice(5, 8), slice(9, 11))  # of the file's axes


class Bright(RegionLanguageModel):
    """An encoder whose patches are the vector of "bright" by how bright they are."""

    def __init__(self, shape, patch):
        torch.nn.Module.__init__(self)
        self.spec = SimpleNamespace(shape=shape, vision=SimpleNamespace(patch_size=patch))
        self.log_scale = torch.nn.Parameter(torch.zeros(1))
        self.given = None

    def embed_scans(self, values, window, *, regions=None, valid=None, want_local=False):
        self.given = {"regions": regions, "valid": valid}
        patch = self.spec.vision.patch_size
        pad = [(-n) % p for n, p in zip(values.shape[2:], patch, strict=True)]
        filled = torch.nn.functional.pad(
            values.float(), (0, pad[2], 0, pad[1], 0, pad[0]), value=-1000
        )
        mean = torch.nn.functional.avg_pool3d(filled, patch).flatten(1)  # 1 N, z y x
        angle = ((mean + 1000) / 2000).clamp(0, 1) * np.pi / 2
        local = torch.stack((angle.sin(), angle.cos()), -1)
        whole, region = torch.ones(1, 2), torch.ones(1, 20, 2)
        return ScanEmbeddings(
            whole, region, torch.ones(1, 20).bool(), local if want_local else None
        )


class Words(TrainedVlm):
    """ "bright" is the first axis, anything else the second."""

    def embed_sentences(self, sentences):
        return np.array([[1, 0] if "bright" in s else [0, 1] for s in sentences], np.float32)


def written(tmp_path):
    """Write an oblique scan with a bright lesion; return its path and affine."""
    directions = np.linalg.qr(COSINES)[0]
    directions *= np.sign((directions * COSINES).sum(0))
    affine = np.eye(4)
    affine[:3, :3] = directions * SPACING
    affine[:3, 3] = (30, -20, 45)
    hu = np.full((40, 36, 14), -1000, np.int16)
    hu[LESION] = 1000
    image = nibabel.Nifti1Image(hu, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "a.nii.gz")
    return tmp_path / "a.nii.gz", hu, affine


def recipe_of(axes, shape=(20, 18, 16)):
    return RecipeSpec(spacing=(2.0, 2.0, 2.0), shape=shape, range=(0, 1), hu_state="hu", axes=axes)


def model_of(recipe, patch):
    return Words(Bright(recipe.seen_shape, patch), recipe, Tokenizer(models.BPE()), "ef" * 32)


@pytest.mark.parametrize(("axes", "patch"), [("dhw", (4, 4, 5)), ("dwh", (4, 5, 4))])
def test_the_map_peaks_in_the_lesion(tmp_path, axes, patch):
    path, hu, affine = written(tmp_path)
    recipe = recipe_of(axes)
    model, scan = model_of(recipe, patch), read_scan(path, recipe)
    bright, dark = similarity_volumes(model, scan, ["something bright", "all dark"])
    write_nifti(tmp_path / "map.nii.gz", bright)
    made = nibabel.load(tmp_path / "map.nii.gz")
    values = made.get_fdata()
    assert made.get_data_dtype() == np.float32
    assert made.shape == hu.shape
    np.testing.assert_allclose(made.affine, affine, atol=1e-4)
    place = affine @ [*np.unravel_index(values.argmax(), hu.shape), 1]
    cube = affine @ [29.5, 6, 9.5, 1]
    assert np.linalg.norm((place - cube)[:3]) < 7.5  # half of a patch's 8 x 8 x 10 mm
    # The same map turned over lies elsewhere: the test tells directions apart.
    for axis in range(3):
        flipped = np.unravel_index(np.flip(values, axis).argmax(), hu.shape)
        assert np.linalg.norm((affine @ [*flipped, 1] - cube)[:3]) > 7.5
    held = bright.array > -1  # the recipe's 40 x 36 x 32 mm do not hold all of the scan
    assert 0.3 < held.mean() < 1
    # The other sentence is the more alike the less this one is.
    assert np.corrcoef(bright.array[held], dark.array[held])[0, 1] < -0.9
    assert dark.array.flat[values.transpose(2, 1, 0).argmax()] < dark.array[held].mean()


def test_similarities_stand_at_the_centres_of_patches_and_are_interpolated():
    # A scan that is on the recipe's grid already: what is put back is where it was.
    recipe = recipe_of("dhw", shape=(8, 8, 8))
    own = Volume(np.zeros((8, 8, 8), np.int16), np.diag([2.0, 2, 2, 1])[[2, 1, 0, 3]])
    volume, record = normalize(own, recipe)
    model = model_of(recipe, (4, 4, 4))
    # 8 patches of cosines 0.1 to 0.8
    wanted = np.arange(1, 9).reshape(2, 2, 2) / 10
    angles = torch.from_numpy(np.arcsin(wanted.reshape(1, 8))).float()
    local = torch.stack((angles.sin(), angles.cos()), -1)
    whole, region, present = torch.ones(1, 2), torch.ones(1, 20, 2), torch.ones(1, 20).bool()
    model.model.embed_scans = lambda *_, **__: ScanEmbeddings(whole, region, present, local)
    scan = Scan(volume, record, (-1000.0, 1000.0), "hu", "")
    (found,) = similarity_volumes(model, scan, ["bright"])
    centres = (np.arange(8) + 0.5) / 4 - 0.5  # of voxels, counted in patches
    grid = np.meshgrid(centres, centres, centres, indexing="ij")
    expected = ndimage.map_coordinates(wanted, grid, order=1, mode="nearest")
    np.testing.assert_allclose(found.array, expected, atol=1e-5)


def test_the_model_is_told_regions_and_padding(tmp_path):
    path, _, _ = written(tmp_path)
    recipe = recipe_of("dwh", shape=(60, 18, 16))  # longer than the scan: padded along D
    model, scan = model_of(recipe, (4, 5, 4)), read_scan(path, recipe)
    regions = np.zeros((60, 18, 16), np.uint8)
    regions[20:30, 3, 5] = 13
    similarity_volumes(model, scan, ["bright"], regions=regions)
    given = model.model.given
    assert (given["regions"][0, 0].numpy() == regions.swapaxes(1, 2)).all()
    valid = given["valid"][0, 0].numpy()
    assert valid.shape == (60, 16, 18)
    inside = valid.any((1, 2))
    assert not inside[0]
    assert not inside[-1]
    assert inside[30]
    similarity_volumes(model, scan, ["bright"])
    assert model.model.given["regions"] is None


def test_what_does_not_fit_is_refused(tmp_path):
    path, _, _ = written(tmp_path)
    recipe = recipe_of("dhw")
    model, scan = model_of(recipe, (4, 4, 5)), read_scan(path, recipe)
    with pytest.raises(ValueError, match=r"the regions have shape \(2, 2, 2\), the scan \(20, 18,"):
        similarity_volumes(model, scan, ["bright"], regions=np.zeros((2, 2, 2), np.uint8))
    other = model_of(recipe_of("dhw", shape=(8, 18, 16)), (4, 4, 5))
    with pytest.raises(VolumeError, match="the model takes"):
        similarity_volumes(other, scan, ["bright"])
