"""Metrics of held-out volumes, for models of every kind."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import CausalTokenizerSpec, RecipeSpec, SlidingWindowSpec
from ct3dlib.errors import StoreError
from ct3dlib.inference.evaluate import evaluate_tokenizer
from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.inference.reconstruct import encode_volume, reconstruct
from ct3dlib.metrics.reconstruction import psnr_db, seam_ratio
from ct3dlib.models.tokenizer import CausalTokenizer
from tests.inference.conftest import RECIPE
from tests.inference.doubles import Blocks, fsq_model, kl_spec
from tests.stores import write_shard

WINDOWS = SlidingWindowSpec(roi_size=(8, 8, 8), overlap=0.0)


@pytest.fixture
def stored(volumes):
    """Return two volumes of 7 x 10 x 12 voxels."""
    return stored_volumes([volumes])


def tokenizer(model, sliding=WINDOWS) -> Tokenizer:
    return Tokenizer(model, RECIPE, sliding, "f" * 64)


@pytest.fixture
def causal() -> Tokenizer:
    torch.manual_seed(0)
    spec = CausalTokenizerSpec(
        filters=2, num_res_blocks=1, channel_multipliers=(1,), temporal_downsample=(), norm_groups=1
    )
    return tokenizer(CausalTokenizer(spec).eval(), None)


def evaluated(found: Tokenizer, stored) -> dict:
    return evaluate_tokenizer(found, stored, stored, windows_per_batch=2)


def test_a_lossless_model_without_codes(stored):
    found = evaluated(tokenizer(Blocks(kl_spec((2, 2, 2))).eval()), stored)
    assert found["n"] == 2
    assert found["psnr_db"] > 100
    assert found["ssim"] == pytest.approx(1)
    assert found["hu_mae"] < 0.01
    assert found["code_usage"] is None
    assert found["code_perplexity"] is None


def test_bytes_have_an_error_and_no_tissues(tmp_path):
    recipe = RecipeSpec(domain="uint8", min_slices=1)
    picture = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    table = write_shard(tmp_path / "0000.parquet", "volumes", {"a": picture}, recipe)
    model = Blocks(kl_spec((1, 2, 2))).eval()
    found = evaluated(Tokenizer(model, recipe, None, "f" * 64), stored_volumes([table]))
    assert found["hu_mae"] < 0.01
    assert set(found["hu_mae_by_tissue"].values()) == {found["hu_mae"], None}
    assert found["ssim"] == pytest.approx(1)


def test_seams_are_looked_for_along_every_axis_of_the_windows(stored):
    found = evaluated(tokenizer(fsq_model()), stored)
    for volume, one in zip(stored, found["volumes"], strict=True):
        assert one["mode"] == "patch"
        out = reconstruct(
            tokenizer(fsq_model()), volume.read(), window=RECIPE.window, windows_per_batch=1
        )
        # 7 slices are one window; 10 rows are windows from 0 and 2, 12 columns from 0 and 4.
        by_axis = {
            "d": None,
            "h": seam_ratio(out.hu, axis=1, borders=[2, 8]),
            "w": seam_ratio(out.hu, axis=2, borders=[4, 8]),
        }
        assert one["seam_ratio_by_axis"] == by_axis
        assert one["seam_ratio"] == max(by_axis["h"], by_axis["w"])
        assert one["psnr_db"] == psnr_db(volume.read(), out.hu, window=RECIPE.window)
    for name in ("psnr_db", "ssim", "mean_volume_psnr_db"):
        assert found[name] == pytest.approx(np.mean([one[name] for one in found["volumes"]]))
    assert found["hu_mae"] == pytest.approx(np.mean([v["hu_mae"]["all"] for v in found["volumes"]]))
    worst = [one["seam_ratio"] for one in found["volumes"]]
    assert found["seam_ratio"] == pytest.approx(np.mean(worst))
    assert found["seam_ratio_by_axis"]["d"] is None
    assert 0 < found["code_usage"] <= 1


def test_seams_are_named_by_the_stored_axes(stored):
    turned = replace(tokenizer(fsq_model()), recipe=RECIPE.model_copy(update={"axes": "dwh"}))
    windows = SlidingWindowSpec(roi_size=(8, 12, 4), overlap=0.0)
    found = evaluated(replace(turned, sliding=windows), stored)
    # The model's H, 12 voxels in one window, is W of the store.
    assert found["seam_ratio_by_axis"]["w"] is None
    assert found["seam_ratio_by_axis"]["h"] > 0


@pytest.mark.parametrize(
    "windows", [None, SlidingWindowSpec(roi_size=(8, 16, 16))], ids=["whole", "one window"]
)
def test_a_volume_that_fits_one_window_is_seen_in_full(stored, windows):
    found = evaluated(tokenizer(fsq_model(), windows), stored)
    assert {one["mode"] for one in found["volumes"]} == {"full"}
    assert found["seam_ratio"] is None


def test_a_causal_model_has_its_seams_along_the_slices(stored, causal):
    found = evaluated(causal, stored)
    assert {one["mode"] for one in found["volumes"]} == {"causal"}
    out = reconstruct(causal, stored[0].read(), window=RECIPE.window, windows_per_batch=2)
    wanted = seam_ratio(out.hu, axis=0, borders=[1, 3, 5])
    assert found["volumes"][0]["seam_ratio_by_axis"] == {"d": wanted, "h": None, "w": None}
    codes = [
        encode_volume(causal, v.read(), window=RECIPE.window, windows_per_batch=2).indices
        for v in stored
    ]
    distinct = len(torch.cat([c.flatten() for c in codes]).unique())
    assert found["code_usage"] == pytest.approx(distinct / sum(c.numel() for c in codes))


def test_a_split_without_volumes_is_not_measured(causal):
    with pytest.raises(StoreError, match="no volume of the valid split is stored"):
        evaluate_tokenizer(causal, [], [], windows_per_batch=1)
