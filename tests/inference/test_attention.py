"""Where the class token looks: shares of patches, and their place in the patient."""

import nibabel
import numpy as np
import pytest
import torch

from ct3dlib.config import RecipeSpec, VolumeEncoderNetworkSpec
from ct3dlib.errors import ConfigError
from ct3dlib.inference.attention import attention_volume, patch_attention
from ct3dlib.inference.embed import Encoder
from ct3dlib.inference.single import read_scan
from ct3dlib.models.volume_encoder import VolumeEncoder
from ct3dlib.scan.nifti import write_nifti
from tests.inference.encoders import NETWORK, hu_of, seen_of


@pytest.fixture
def model() -> VolumeEncoder:
    torch.manual_seed(0)
    network = VolumeEncoder(NETWORK).eval()
    for block in network.blocks:
        torch.nn.init.normal_(block.qkv.weight)
    return network


def _weights(model, volume):
    """Return each block's attention, mean over heads, as numpy."""
    tokens, found = model.embed(volume), []
    for block in model.blocks:
        found.append(block.attention(tokens)[0].mean(0).double().numpy())
        tokens = block(tokens)
    return found


@torch.no_grad()
@pytest.mark.parametrize("layer", [1, 2, 3, None])
def test_shares_are_the_class_tokens_row_and_add_up_to_1(model, layer):
    volume = seen_of(hu_of(0))
    found = patch_attention(model, volume, layer=layer)
    row = _weights(model, volume)[(layer or 3) - 1][0, 1:]
    assert found.shape == (2, 3, 4)
    np.testing.assert_allclose(found.sum(), 1, atol=1e-6)
    np.testing.assert_allclose(found.flatten(), row / row.sum(), atol=1e-6)
    assert found.std() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_rollout_is_the_product_of_all_attention(model, layer):
    volume = seen_of(hu_of(0))
    product = np.eye(25)
    for weights in _weights(model, volume)[:layer]:
        product = (weights + np.eye(25)) / 2 @ product
    found = patch_attention(model, volume, layer=layer, rollout=True)
    np.testing.assert_allclose(found.flatten(), product[0, 1:] / product[0, 1:].sum(), atol=1e-6)
    np.testing.assert_allclose(found.sum(), 1, atol=1e-6)


@pytest.mark.parametrize("layer", [0, 4, -1])
def test_a_block_that_is_not_there_is_named(model, layer):
    with pytest.raises(ConfigError, match=rf"layer {layer}: the model's blocks are 1 to 3"):
        patch_attention(model, seen_of(hu_of(0)), layer=layer)


def test_the_fused_kernels_stay_as_they_were(model):
    flags = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()
    patch_attention(model, seen_of(hu_of(0)), rollout=True)
    assert flags == (
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
    )


def _looks_at_what_is_bright(shape, patch) -> VolumeEncoder:
    """Return an encoder of one block whose class token looks at the patch that is not black."""
    spec = VolumeEncoderNetworkSpec.model_validate(
        {
            "encoder": {"hidden_size": 8, "num_layers": 1, "num_heads": 1},
            "patch_size": patch,
            "shape": shape,
            "pad": True,
        }
    )
    model = VolumeEncoder(spec).eval()
    for value in (*model.parameters(), model.position):
        torch.nn.init.zeros_(value)
    block = model.blocks[0]
    torch.nn.init.ones_(block.attention_norm.weight)
    with torch.no_grad():
        model.patch_embed.weight[0] = 1  # channel 0: how bright a patch is
        block.qkv.bias[0] = 10  # every query
        block.qkv.weight[8, 0] = 1  # the key
    return model


# Two file axes run the other way, the third axis is the patient's left, and all are oblique.
COSINES = np.array([[0.1, -0.2, 1.0], [-1.0, 0.1, 0.1], [0.1, -1.0, -0.2]])
SPACING = np.array([0.8, 1.1, 2.5])


@pytest.mark.parametrize("axes", ["dhw", "dwh"])
@pytest.mark.parametrize("rollout", [False, True])
def test_the_map_lies_where_the_class_token_looks(tmp_path, axes, rollout):
    directions = np.linalg.qr(COSINES)[0]
    directions *= np.sign((directions * COSINES).sum(0))
    affine = np.eye(4)
    affine[:3, :3] = directions * SPACING
    affine[:3, 3] = (30, -20, 45)
    hu = np.full((40, 36, 14), -1000, np.int16)
    hu[28:32, 5:8, 9:11] = 1000
    image = nibabel.Nifti1Image(hu, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "a.nii.gz")
    recipe = RecipeSpec(
        spacing=(2.0, 2.0, 2.0), shape=(20, 18, 16), range=(0, 1), hu_state="hu", axes=axes
    )
    shape, patch = ((20, 18, 16), (4, 4, 5)) if axes == "dhw" else ((20, 16, 18), (4, 5, 4))
    encoder = Encoder(_looks_at_what_is_bright(shape, patch), recipe, "0" * 64)
    scan = read_scan(tmp_path / "a.nii.gz", recipe)
    write_nifti(tmp_path / "map.nii.gz", attention_volume(encoder, scan, rollout=rollout))
    made = nibabel.load(tmp_path / "map.nii.gz")
    values = made.get_fdata()
    assert made.get_data_dtype() == np.float32
    assert made.shape == hu.shape
    np.testing.assert_allclose(made.affine, affine, atol=1e-4)
    assert values.max() <= 1
    place = affine @ [*np.unravel_index(values.argmax(), hu.shape), 1]
    cube = affine @ [29.5, 6, 9.5, 1]
    assert np.linalg.norm((place - cube)[:3]) < 7.5  # half of a patch's 8 x 8 x 10 mm
    # The same map turned over lies elsewhere: the test tells directions apart.
    for axis in range(3):
        flipped = np.unravel_index(np.flip(values, axis).argmax(), hu.shape)
        assert np.linalg.norm((affine @ [*flipped, 1] - cube)[:3]) > 7.5
