import torch

from ct3dlib.losses.patches import masked_patch_loss, normalised


def test_the_error_is_a_mean_for_each_volume():
    patches = torch.tensor([[[0.0, 1.0], [0.5, 0.5]], [[1.0, 1.0], [0.0, 0.0]]])
    predicted = torch.tensor([[[0.0, 0.0], [0.5, 0.5]], [[1.0, 1.0], [1.0, 1.0]]])
    found = masked_patch_loss(predicted, patches, norm_pix=False)
    torch.testing.assert_close(found, torch.tensor([0.25, 0.5]))


def test_normalised_patches_have_their_own_mean_and_deviation():
    patches = torch.rand(2, 3, 64, generator=torch.Generator().manual_seed(0)) * 5 + 7
    found = normalised(patches)
    torch.testing.assert_close(found.mean(-1), torch.zeros(2, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.var(-1), torch.ones(2, 3), rtol=0, atol=1e-4)
    assert masked_patch_loss(found, patches, norm_pix=True).max() < 1e-8
    assert not normalised(torch.full((1, 1, 8), 3.0)).any()
