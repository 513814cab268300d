"""How masked patches of held-out volumes are measured: against truth, a mean, a stranger."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ct3dlib.cohort.store import StoredVolume, stored_volumes
from ct3dlib.config import MaskedAutoencoderNetworkSpec, RecipeSpec
from ct3dlib.errors import CheckpointError, StoreError
from ct3dlib.inference.evaluate_mae import evaluate_mae, fill
from ct3dlib.models.mae import MaskedAutoencoder
from tests.stores import write_shard

RECIPE = RecipeSpec(window=(-1000, 1000), range=(-1, 1), axes="dwh")
SHAPE = (4, 8, 12)


class Oracle(MaskedAutoencoder):
    """Knows each volume by its visible patches, and says what its masked ones are."""

    known: list[torch.Tensor] = []  # noqa: RUF012

    def forward(self, volumes, masks):
        return self.masked_patches(volumes, masks)


class Zero(MaskedAutoencoder):
    """Predicts patches without contrast."""

    def forward(self, volumes, masks):
        return torch.zeros_like(self.masked_patches(volumes, masks))


def model(kind: type[MaskedAutoencoder] = Oracle, *, norm_pix: bool = False) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return kind(
        MaskedAutoencoderNetworkSpec.model_validate(
            {
                "encoder": {"hidden_size": 24, "num_layers": 1, "num_heads": 2},
                "decoder": {"hidden_size": 12, "num_layers": 1, "num_heads": 2},
                "patch_size": [2, 4, 4],
                "shape": [4, 12, 8],
                "range": [-1, 1],
                "norm_pix": norm_pix,
            }
        )
    ).eval()


@pytest.fixture
def volumes(tmp_path: Path) -> list[StoredVolume]:
    rng = np.random.default_rng(0)
    arrays = {
        f"v{i}": np.full(SHAPE, hu, np.int16) + rng.integers(-9, 9, SHAPE).astype(np.int16)
        for i, hu in enumerate((-500, 500, 0))
    }
    table = write_shard(tmp_path / "0000.parquet", "volumes", arrays, RECIPE)
    return list(stored_volumes([table]))


def test_whoever_knows_the_patches_has_no_error_and_a_stranger_has_the_difference(volumes):
    found = evaluate_mae(model(), RECIPE, volumes)
    assert found["masked_mse"] == 0
    assert found["explained"] == 1
    # Differences of the volumes are 1000, 500 and 500 HU, of a window of 2000.
    wanted = np.mean([0.5**2, 0.25**2, 0.25**2])
    assert found["other_patient_mse"] == pytest.approx(wanted, rel=0.02)
    assert found["mean_mse"] < 1e-4
    assert found["n"] == 3


def test_an_untrained_model_is_measured_against_the_mean(volumes):
    found = evaluate_mae(model(MaskedAutoencoder), RECIPE, volumes)
    assert found["explained"] == pytest.approx(1 - found["masked_mse"] / found["mean_mse"])
    assert found["masked_mse"] > found["mean_mse"]
    assert "other_patient_mse" not in evaluate_mae(model(), RECIPE, volumes[:1])


def test_normalised_patches_are_measured_as_they_are_learnt(volumes):
    found = evaluate_mae(model(Zero, norm_pix=True), RECIPE, volumes)
    assert found["masked_mse"] == found["mean_mse"] == found["other_patient_mse"]
    assert found["masked_mse"] == pytest.approx(1 - 1 / 32, abs=0.05)
    assert (found["explained"], found["unit"]) == (0, "deviation of a patch")


def test_filled_volumes_lie_as_they_are_stored(volumes):
    filled = fill(model(), RECIPE, volumes[0])
    stored = volumes[0].read() / 1000
    np.testing.assert_allclose(filled.original, stored, atol=1e-6)
    np.testing.assert_allclose(filled.filled, stored, atol=1e-6)
    hidden = filled.seen == 0
    assert hidden.mean() == pytest.approx(0.75, abs=0.02)
    np.testing.assert_allclose(filled.seen[~hidden], stored[~hidden], atol=1e-6)


def test_no_volume_and_another_recipe_are_refused(volumes):
    with pytest.raises(StoreError, match="no volume of the valid split is stored"):
        evaluate_mae(model(), RECIPE, [])
    other = RecipeSpec(window=(-1000, 1000), range=(-1, 1), min_slices=1, spacing=(1, 1, 1))
    with pytest.raises(CheckpointError, match="its spacing is None, the masked autoencoder was"):
        evaluate_mae(model(), other, volumes)
