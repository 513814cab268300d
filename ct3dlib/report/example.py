"""One held-out volume through a tokenizer, as a picture and as movies."""

from pathlib import Path

import numpy as np
import torch

from ct3dlib.cohort.store import StoredVolume
from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.inference.reconstruct import reconstruct
from ct3dlib.models.vae import KLAutoencoder
from ct3dlib.report.movie import comparison_frames, write_movie
from ct3dlib.report.pictures import above, beside, difference, planes, png


def draw_example(
    folder: Path, tokenizer: Tokenizer, volume: StoredVolume, *, windows_per_batch: int
) -> None:
    """Write `picture.png`, `movie.gif` and `movie.mp4` of a volume and its reconstruction.

    The picture shows original, reconstruction and difference; of a variational model also a volume
    drawn from the prior.

    Args:
        folder: Made if it is not there.
        tokenizer: The model.
        volume: Of the model's recipe.
        windows_per_batch: As in encoding.
    """
    folder.mkdir(parents=True, exist_ok=True)
    original = volume.read()
    window = volume.own_window or tokenizer.recipe.window
    out = reconstruct(tokenizer, original, window=window, windows_per_batch=windows_per_batch).hu
    pictures = [planes(array, volume.spacing, window=window) for array in (original, out)]
    rows = [beside([*pictures, difference(original, out, volume.spacing)])]
    if isinstance(tokenizer.model, KLAutoencoder):
        drawn = _drawn(tokenizer, tokenizer.model, shape=volume.shape)
        rows.append(planes(drawn, volume.spacing, window=tokenizer.recipe.range))
    (folder / "picture.png").write_bytes(png(above(rows)))
    frames = comparison_frames(original, out, window)
    write_movie(folder / "movie.gif", frames)
    write_movie(folder / "movie.mp4", frames)


def _drawn(
    tokenizer: Tokenizer, model: KLAutoencoder, *, shape: tuple[int, int, int]
) -> np.ndarray:
    """Return a volume decoded from latents of the prior, in the range of the model."""
    sides = zip(shape, model.padding(shape), model.downsampling, strict=True)
    depth, height, width = ((n + pad) // step for n, pad, step in sides)
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    return model.sample_prior(1, (depth, height, width), generator=generator)[0, 0].cpu().numpy()
