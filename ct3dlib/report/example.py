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
from ct3dlib.scan.axes import from_model, swapped


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
    rows = [beside([*pictures, difference(original, out, volume.spacing, window=window)])]
    if isinstance(tokenizer.model, KLAutoencoder):
        drawn = draw_prior(tokenizer, tokenizer.model, shape=volume.shape)
        rows.append(planes(drawn, volume.spacing, window=tokenizer.recipe.range))
    (folder / "picture.png").write_bytes(png(above(rows)))
    frames = comparison_frames(original, out, window)
    write_movie(folder / "movie.gif", frames)
    write_movie(folder / "movie.mp4", frames)


def draw_prior(
    tokenizer: Tokenizer, model: KLAutoencoder, *, shape: tuple[int, int, int]
) -> np.ndarray:
    """Return a volume decoded from latents of the prior, in the range of the model."""
    axes = tokenizer.recipe.axes
    grid = model.grid(swapped(shape, axes))
    generator = torch.Generator().manual_seed(0)
    drawn = model.sample_prior(1, grid, generator=generator)[0, 0].cpu().numpy()
    return from_model(drawn, axes)
