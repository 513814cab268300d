"""The loss of the masked autoencoder, and what it logs."""

import pytest
import torch

from ct3dlib.config import MaeSpec, MaskedAutoencoderNetworkSpec
from ct3dlib.losses.patches import masked_patch_loss
from ct3dlib.objectives.mae import MaskedAutoencoderObjective

MODEL = {
    "encoder": {"hidden_size": 24, "num_layers": 1, "num_heads": 2},
    "decoder": {"hidden_size": 12, "num_layers": 1, "num_heads": 2},
    "patch_size": [2, 4, 4],
}


def objective_of(norm_pix: bool = False, **changes) -> MaskedAutoencoderObjective:
    torch.manual_seed(0)
    spec = MaeSpec.model_validate(
        {"steps": 1, "batch_size": 3, "micro_batch_size": 3, "recipe": "chest", **changes}
    )
    network = MaskedAutoencoderNetworkSpec.model_validate(
        {**MODEL, "norm_pix": norm_pix, "shape": [4, 8, 16], "range": [-1, 1]}
    )
    return MaskedAutoencoderObjective(spec, network).eval()


def batch_of(first_seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(-1000, 1000, (3, 1, 4, 8, 16), generator=generator)
    return {
        "values": values.to(torch.int16),
        "window": torch.tensor([[-1000.0, 1000.0]] * 3),
        "item_seed": torch.arange(3) + first_seed,
        "step": torch.tensor(0),
    }


@pytest.mark.parametrize("norm_pix", [False, True])
def test_the_loss_is_of_masked_patches_alone(norm_pix):
    objective, batch = objective_of(norm_pix), batch_of()
    loss, _ = objective.loss(batch, "model")
    volumes, masks = objective._seen(batch)
    patches = objective.model.masked_patches(volumes, masks)
    predicted = objective.model(volumes, masks)
    wanted = masked_patch_loss(predicted, patches, norm_pix=norm_pix).mean()
    torch.testing.assert_close(loss, wanted)


def test_masks_are_those_of_the_item_and_its_seed():
    objective = objective_of()
    _, masks = objective._seen(batch_of())
    _, again = objective._seen(batch_of())
    assert torch.equal(masks.masked, again.masked)
    _, other = objective._seen(batch_of(first_seed=1))
    assert torch.equal(other.masked[:2], masks.masked[1:])
    assert not torch.equal(masks.masked[0], masks.masked[1])


def test_the_baseline_knows_the_mean_of_what_is_visible():
    objective, batch = objective_of(), batch_of()
    batch["values"][:] = 200
    metrics = objective.validate(batch)
    assert metrics["loss"] == objective.loss(batch, "model")[0]
    assert metrics["baseline"].item() == pytest.approx(0, abs=1e-12)
    # Of normalised patches the best guess is 0, and its error their variance.
    metrics = objective_of(norm_pix=True).validate(batch_of())
    assert metrics["baseline"].item() == pytest.approx(1 - 1 / 32, abs=1e-3)


def test_training_changes_volumes_and_validation_does_not():
    objective = objective_of(augment={"intensity_shift": 0.2})
    assert torch.equal(objective._seen(batch_of())[0], objective._seen(batch_of())[0])
    changed = objective.train()._seen(batch_of())[0]
    assert not torch.equal(changed, objective.eval()._seen(batch_of())[0])


def test_the_picture_shows_original_seen_and_filled_in_slices():
    objective, batch = objective_of(), batch_of()
    shown = objective.pictures(batch)["masked"]
    assert shown.shape == (1, 8, 48)
    volumes, masks = objective._seen(batch)
    wanted = [
        volumes,
        objective.model.hidden(volumes, masks),
        objective.model.filled(volumes, masks),
    ]
    for number, volume in enumerate(wanted):
        part = shown[0, :, 16 * number : 16 * (number + 1)]
        torch.testing.assert_close(part, (volume[0, 0, 2] + 1) / 2)
    assert (shown[0, :, 16:32] == 0.5).float().mean() > 0.5


def test_two_bytes_a_voxel_go_to_the_device():
    assert batch_of()["values"].element_size() == 2


@pytest.mark.parametrize("norm_pix", [False, True])
def test_what_is_visible_is_no_target(norm_pix, monkeypatch):
    """With predictions that stay the same, visible voxels change nothing and masked ones do."""
    objective, batch = objective_of(norm_pix), batch_of()
    volumes, masks = objective._seen(batch)
    kept = objective.model(volumes, masks).detach()
    monkeypatch.setattr(objective.model, "forward", lambda volumes, masks: kept)
    before = objective.loss(batch, "model")[0]
    shown = objective.model.with_masked(torch.ones_like(volumes), masks, torch.zeros_like(kept))
    for changed, same in ((shown == 1, True), (shown == 0, False)):
        values = torch.where(changed, batch["values"] // 2, batch["values"])
        values[:, :, :, 0] = torch.where(changed[:, :, :, 0], 7, values[:, :, :, 0])
        after = objective.loss({**batch, "values": values}, "model")[0]
        assert torch.equal(after, before) is same
