"""Metrics of samples, for models of every kind."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ct3dlib.cohort.store import StoredVolume, stored_volumes
from ct3dlib.config import CausalTokenizerSpec, GenerationSpec, RecipeSpec, SlidingWindowSpec
from ct3dlib.errors import StoreError
from ct3dlib.inference.evaluate_samples import evaluate_samples, latent_features
from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.models.slice_network import SliceNetwork
from ct3dlib.models.tokenizer import CausalTokenizer
from tests.inference.conftest import RECIPE
from tests.inference.doubles import Blocks, fsq_model, kl_spec
from tests.stores import write_shard

WINDOWS = SlidingWindowSpec(roi_size=(8, 8, 8), overlap=0.0)
HU = RecipeSpec()
SHAPE = (12, 12, 16)


def _causal() -> CausalTokenizer:
    torch.manual_seed(0)
    spec = CausalTokenizerSpec(
        filters=2, num_res_blocks=1, channel_multipliers=(1,), temporal_downsample=(), norm_groups=1
    )
    return CausalTokenizer(spec).eval()


def _shard(folder: Path, number: int, seed: int) -> list[StoredVolume]:
    """Store balls of drawn places."""
    rng = np.random.default_rng(seed)
    places = np.indices(SHAPE)
    volumes = {}
    for name in range(number):
        center = rng.uniform(4, 9, (3, 1, 1, 1))
        ball = np.square(places - center).sum(0) < 20
        volumes[f"v{name:02}"] = np.where(ball, 100, -800).astype(np.int16)
    return stored_volumes([write_shard(folder / "0000.parquet", "volumes", volumes, HU)])


@pytest.fixture
def train(tmp_path: Path) -> list[StoredVolume]:
    return _shard(tmp_path / "train", 6, seed=0)


@pytest.fixture
def valid(tmp_path: Path) -> list[StoredVolume]:
    return _shard(tmp_path / "valid", 4, seed=1)


@pytest.fixture
def lossless() -> Tokenizer:
    return Tokenizer(Blocks(kl_spec((2, 2, 2))).eval(), HU, WINDOWS, "f" * 64)


def test_latent_features_are_mean_and_deviation_of_each_channel(volumes):
    hu = stored_volumes([volumes])[0].read()
    found = latent_features(
        Tokenizer(Blocks(kl_spec((2, 2, 2))).eval(), RECIPE, WINDOWS, "f" * 64),
        hu,
        window=RECIPE.window,
    )
    padded = np.pad(hu, [(0, 1), (0, 0), (0, 0)], constant_values=-1000).clip(-1000, 1000) / 1000
    first = padded[::2, ::2, ::2]  # the first channel: the corner of each block
    assert found[0] == pytest.approx(first.mean(), abs=1e-5)
    assert found[8] == pytest.approx(first.std(ddof=1), abs=1e-5)


@pytest.mark.parametrize("kind", ["causal", "fsq", "vae"])
def test_samples_are_compared_by_the_features_of_any_model(train, valid, kind):
    models = {"causal": _causal(), "fsq": fsq_model(), "vae": Blocks(kl_spec((2, 2, 2))).eval()}
    found = Tokenizer(models[kind], HU, None if kind == "causal" else WINDOWS, "f" * 64)
    alike = [volume.read() for volume in valid]
    near = evaluate_samples(found, alike, train=train, valid=valid)
    other = [np.full_like(v, 900) for v in alike]
    far = evaluate_samples(found, other, train=train, valid=valid)
    assert near["kid"] < far["kid"]
    assert (near["n"], near["n_real"]) == (4, 4)
    assert near["frechet"] is None  # too few volumes for its covariance
    assert near["ms_ssim_diversity"] < 1
    assert far["ms_ssim_diversity"] == pytest.approx(1)


def test_a_copy_of_a_training_volume_is_found(lossless, train, valid):
    new = [volume.read() for volume in valid]
    none = evaluate_samples(lossless, new, train=train, valid=valid)
    assert none["copies"] == 0
    assert none["nearest_train_psnr_db"] == pytest.approx(none["held_out_nearest_train_psnr_db"])
    softened = train[2].read() * 0.97 - 10
    found = evaluate_samples(lossless, [*new[1:], softened], train=train, valid=valid)
    assert found["copies"] == 1
    assert found["nearest_train_psnr_db"] > none["nearest_train_psnr_db"]


def test_many_samples_have_a_frechet_distance(lossless, train, valid):
    many = [volume.read() + shift for volume in (*train, *valid) for shift in (0, 30)]
    shard = [*train, *valid] * 2  # 20 volumes for 16 features
    found = evaluate_samples(lossless, many, train=train, valid=shard)
    assert found["frechet"] >= 0


def test_real_volumes_in_the_place_of_samples_are_the_baseline(lossless, train, valid):
    spread = [train[i].read() for i in (0, 1, 3, 4)]  # four of six
    found = evaluate_samples(lossless, spread, train=train, valid=valid)
    for name in ("kid", "kid_std", "frechet"):
        assert found[f"{name}_real"] == found[name]
    assert found["kid_std"] > 0
    other = [np.full_like(volume, 900) for volume in spread]
    far = evaluate_samples(lossless, other, train=train, valid=valid)
    assert far["kid_real"] == found["kid_real"] < far["kid"]


@pytest.mark.parametrize(("number", "known"), [(1, (False, False)), (2, (True, False))])
def test_few_samples_have_no_standard_error(lossless, train, valid, number, known):
    few = [volume.read() for volume in valid[:number]]
    found = evaluate_samples(lossless, few, train=train, valid=valid)
    for end in ("", "_real"):
        values = found[f"kid{end}"], found[f"kid_std{end}"]
        assert tuple(value is not None for value in values) == known


def test_a_given_network_sees_slices_in_the_unit_range(lossless, train, valid):
    seen: list[torch.Tensor] = []

    def see(slices: torch.Tensor) -> torch.Tensor:
        seen.append(slices)
        return torch.stack([slices.mean((1, 2, 3)), slices.square().mean((1, 2, 3))], 1)

    spec = GenerationSpec(slices=4, planes=("axial", "sagittal"))
    network = SliceNetwork(see, 1, spec, torch.device("cpu"))
    real = [volume.read() for volume in valid]
    alike = evaluate_samples(lossless, real, train=train, valid=valid, network=network)
    assert min(s.min() for s in seen) == pytest.approx(0.1)  # -800 HU of a window of +-1000
    assert max(s.max() for s in seen) == pytest.approx(0.55)
    assert len(seen) == 2 * 3 * 4  # planes, sets, volumes
    assert alike["slice_fid"]["mean"] == pytest.approx(0, abs=1e-9)
    assert list(alike["slice_kid"]) == ["axial", "sagittal", "mean"]
    other = [np.full_like(volume, 900) for volume in real]
    far = evaluate_samples(lossless, other, train=train, valid=valid, network=network)
    for name in ("slice_fid", "slice_kid"):
        assert far[f"{name}_real"] == alike[f"{name}_real"]
        assert far[name]["mean"] > far[f"{name}_real"]["mean"]


def test_without_a_network_there_are_no_distances_of_slices(lossless, train, valid):
    found = evaluate_samples(lossless, [v.read() for v in valid], train=train, valid=valid)
    assert found["slice_fid"] is None
    assert found["slice_kid"] is None


def test_what_is_missing_is_named(lossless, train, valid):
    with pytest.raises(StoreError, match="no volume of the valid split is stored"):
        evaluate_samples(lossless, [], train=train, valid=[])
    with pytest.raises(StoreError, match="no volume of the train split is stored"):
        evaluate_samples(lossless, [], train=[], valid=valid)
