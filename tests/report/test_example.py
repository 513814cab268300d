"""One volume through a model, as a picture and as movies."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import KLAutoencoderSpec, RecipeSpec
from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.models.vae import KLAutoencoder
from ct3dlib.report.example import draw_example, draw_prior
from tests.stores import write_shard

RECIPE = RecipeSpec(axes="dwh")


def _model() -> KLAutoencoder:
    torch.manual_seed(0)
    spec = KLAutoencoderSpec(
        init_filters=8, smallest_filters=8, blocks_down=(1,), blocks_up=(), norm_groups=4
    )
    return KLAutoencoder(spec).eval()


def test_a_volume_of_the_prior_lies_as_stored_ones_do() -> None:
    model = _model()
    tokenizer = Tokenizer(model, RECIPE, None, "f" * 64)
    drawn = draw_prior(tokenizer, model, shape=(4, 8, 20))
    generator = torch.Generator().manual_seed(0)
    steps = model.downsampling
    seen = model.sample_prior(
        1, (4 // steps[0], 20 // steps[1], 8 // steps[2]), generator=generator
    )
    np.testing.assert_array_equal(drawn, seen[0, 0].numpy().swapaxes(1, 2))
    assert drawn.shape == (4, 8, 20)


def test_files_are_written_for_a_model_that_sees_other_axes(tmp_path: Path) -> None:
    volume = {"a": np.arange(4 * 8 * 20, dtype=np.int16).reshape(4, 8, 20)}
    table = write_shard(tmp_path / "0000.parquet", "volumes", volume, RECIPE)
    tokenizer = Tokenizer(_model(), RECIPE, None, "f" * 64)
    (stored,) = stored_volumes([table])
    draw_example(tmp_path / "out", tokenizer, stored, windows_per_batch=1)
    with Image.open(tmp_path / "out/picture.png") as picture:
        assert np.asarray(picture).std() > 0
    with Image.open(tmp_path / "out/movie.gif") as movie:
        assert getattr(movie, "n_frames", 1) == 4
    assert (tmp_path / "out/movie.mp4").stat().st_size > 0
