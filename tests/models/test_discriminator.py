import pytest
import torch
from torch import nn

from ct3dlib.config import DiscriminatorSpec
from ct3dlib.losses.adversarial import discriminator_loss, r1_penalty
from ct3dlib.models.discriminator import PatchConv, PatchDiscriminator

SMALL = DiscriminatorSpec(filters=4)
each_norm = pytest.mark.parametrize("norm", ["instance", "group"])
each_dims = pytest.mark.parametrize("dims", [2, 3])


def _volumes(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_the_default_has_fewer_than_five_million_parameters():
    count = sum(p.numel() for p in PatchDiscriminator(DiscriminatorSpec(), 3).parameters())
    # 64 taps; first layer and last with bias, a scale and a shift for each normalised channel.
    convs = 64 * (32 + 32 * 64 + 64 * 128 + 128 * 256 + 256) + 32 + 1
    assert count == convs + 2 * (64 + 128 + 256)
    assert count < 5_000_000


def test_a_cube_becomes_a_map_an_eighth_as_long():
    judged = PatchDiscriminator(SMALL, 3)(_volumes(2, 1, 32, 40, 48))
    assert judged.logits.shape == (2, 4, 5, 6)
    assert [f.shape[1] for f in judged.features] == [4, 8, 16, 32]
    assert [f.shape[2] for f in judged.features] == [16, 8, 4, 4]


def test_channels_stop_doubling_at_eight_times_the_first():
    discriminator = PatchDiscriminator(DiscriminatorSpec(filters=2, num_layers=5), 2)
    judged = discriminator(_volumes(1, 1, 1, 128, 128))
    assert [f.shape[1] for f in judged.features] == [2, 4, 8, 16, 16, 16]
    assert judged.logits.shape == (1, 1, 4, 4)


@pytest.mark.parametrize(
    ("slices", "left"), [(1, 1), (2, 2), (7, 7), (9, 4), (16, 4), (17, 4), (41, 5)]
)
def test_slabs_keep_the_slices_that_halving_would_leave_too_few_of(slices: int, left: int):
    discriminator = PatchDiscriminator(SMALL, 3)
    judged = discriminator(_volumes(1, 1, slices, 32, 32))
    assert judged.logits.shape == (1, left, 4, 4)
    discriminator_loss(judged.logits, judged.logits, "hinge").backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in discriminator.parameters())


@pytest.mark.parametrize("halve", [True, False])
def test_a_convolution_equals_one_that_is_padded_by_hand(halve: bool):
    conv = PatchConv(2, 3, kernel_size=(4, 4, 4), halve=halve)
    x = _volumes(1, 2, 7, 8, 11)
    padded = torch.zeros(1, 2, 12, 12, 15)
    padded[:, :, 1:8, 1:9, 1:12] = x
    everywhere = nn.functional.conv3d(padded, conv.weight, conv.bias)
    step = 2 if halve else 1
    expected = everywhere[:, :, :7, :8:step, : 11 - (step - 1) : step]
    torch.testing.assert_close(conv(x), expected)


@each_norm
@each_dims
def test_one_volume_trains(norm: str, dims: int):
    discriminator = PatchDiscriminator(DiscriminatorSpec(filters=6, norm=norm), dims).train()
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3)
    real = _volumes(1, 1, 8, 16, 16)
    fake = nn.functional.avg_pool3d(real, 3, 1, 1)
    losses = []
    for _ in range(15):
        loss = discriminator_loss(
            discriminator(real).logits, discriminator(fake).logits, "non_saturating"
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@each_norm
def test_a_2d_discriminator_judges_every_slice_on_its_own(norm: str):
    discriminator = PatchDiscriminator(DiscriminatorSpec(filters=4, norm=norm), 2)
    volumes = _volumes(2, 1, 3, 16, 24)
    judged = discriminator(volumes)
    assert judged.logits.shape == (2, 3, 4, 6)
    for d in range(3):
        alone = discriminator(volumes[:, :, d : d + 1]).logits
        torch.testing.assert_close(judged.logits[:, d : d + 1], alone)


@each_norm
@each_dims
def test_volumes_of_a_batch_do_not_mix(norm: str, dims: int):
    discriminator = PatchDiscriminator(DiscriminatorSpec(filters=4, norm=norm), dims)
    volumes = _volumes(2, 1, 8, 16, 17)
    alone = torch.cat([discriminator(volume[None]).logits for volume in volumes])
    torch.testing.assert_close(discriminator(volumes).logits, alone)


def test_the_first_layer_sees_absolute_values():
    discriminator = PatchDiscriminator(SMALL, 3)
    volumes = _volumes(1, 1, 8, 8, 8)
    first, shifted = (discriminator(v).features[0] for v in (volumes, volumes + 1))
    assert not torch.allclose(first.mean(dim=(2, 3, 4)), shifted.mean(dim=(2, 3, 4)), atol=1e-2)


@each_norm
@each_dims
def test_the_gradient_penalty_has_gradients_of_its_own(norm: str, dims: int):
    discriminator = PatchDiscriminator(DiscriminatorSpec(filters=4, norm=norm), dims)
    penalty = r1_penalty(lambda v: discriminator(v).logits, _volumes(2, 1, 4, 16, 16))
    penalty.backward()
    assert penalty.item() > 0
    weights = [layer[0].weight.grad for layer in discriminator.layers]
    assert all(grad is not None and grad.isfinite().all() and grad.any() for grad in weights)
