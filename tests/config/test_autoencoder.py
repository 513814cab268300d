"""Specs of quantizers and autoencoders: what does not fit is refused by name."""

import pytest
from pydantic import ValidationError

from ct3dlib.config import (
    CausalTokenizerSpec,
    FSQSpec,
    KLAutoencoderSpec,
    MaisiTokenizerSpec,
    TokenizerSpec,
)
from ct3dlib.config.autoencoder import LatentAttentionSpec


def test_names_of_prod9_are_understood() -> None:
    spec = MaisiTokenizerSpec.model_validate(
        {"fmaps": [32, 64, 64, 64], "quantizer": {"name": "fsq", "fsq_levels": [8, 5]}}
    )
    assert spec.num_channels == (32, 64, 64, 64)
    assert spec.quantizer == FSQSpec(levels=(8, 5))
    assert MaisiTokenizerSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("levels", "size"), [((8, 8, 8), 512), ((8, 8, 8, 6, 5), 15360), ((7,), 7)]
)
def test_the_codebook_is_the_product_of_the_levels(levels: tuple[int, ...], size: int) -> None:
    spec = FSQSpec(levels=levels)
    assert (spec.codebook_size, spec.channels) == (size, len(levels))


@pytest.mark.parametrize("levels", [(), (8, 1), (8, 0), (8, -3), (1024, 1024, 1024, 2)])
def test_levels_that_are_none_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="levels"):
        FSQSpec(levels=levels)


@pytest.mark.parametrize(
    ("spec", "downsampling"),
    [
        (CausalTokenizerSpec(), (8, 8, 8)),
        (
            CausalTokenizerSpec(
                channel_multipliers=(1, 2, 2, 4), temporal_downsample=(False, True, True)
            ),
            (8, 16, 16),
        ),
        (MaisiTokenizerSpec(), (8, 8, 8)),
        (KLAutoencoderSpec(), (16, 16, 16)),
        (KLAutoencoderSpec(spatial_dims=2, blocks_down=(1, 1), blocks_up=(1,)), (1, 4, 4)),
        (
            KLAutoencoderSpec(
                blocks_down=(1, 1), blocks_up=(1,), strides=((1, 2, 2),), latent_stride=(2, 3, 1)
            ),
            (2, 6, 2),
        ),
    ],
)
def test_downsampling_is_the_product_of_the_steps(
    spec: CausalTokenizerSpec | MaisiTokenizerSpec | KLAutoencoderSpec,
    downsampling: tuple[int, int, int],
) -> None:
    assert spec.downsampling == downsampling


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"blocks_up": (1,)}, "blocks_up needs one entry less than blocks_down: 4 and 1"),
        ({"strides": ((2, 2, 2),)}, "strides needs one entry per step between levels: 4 levels, 1"),
        ({"init_filters": 9}, r"channels \(9\) must be a multiple of norm_groups \(8\)"),
        ({"spatial_dims": 2, "latent_stride": (2, 2, 2)}, "a 2D model has stride 1 along D"),
        ({"attention": {"window": (2, 2)}}, r"window needs 3 entries, not \(2, 2\)"),
    ],
)
def test_a_vae_that_cannot_be_built_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        KLAutoencoderSpec.model_validate(fields)


def test_a_relative_bias_needs_a_window() -> None:
    with pytest.raises(ValidationError, match="relative_bias needs a window"):
        LatentAttentionSpec(relative_bias=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_res_blocks": (1,)}, "num_res_blocks needs one entry per level.*4 levels, 1 entries"),
        ({"attention_levels": (True,)}, "attention_levels needs one entry per level"),
        ({"norm_groups": 64}, r"num_channels \(32\) must be a multiple of norm_groups \(64\)"),
        # As many as the quantizer has levels, and nothing else.
        ({"latent_channels": 64}, "latent_channels\n.*Extra inputs are not permitted"),
    ],
)
def test_a_maisi_model_that_cannot_be_built_is_refused(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        MaisiTokenizerSpec.model_validate(fields)


@pytest.mark.parametrize(
    ("crop", "splits", "message"),
    [
        ((64, 64, 64), 16, r"64 slices are no multiple of 128, the step of 16 num_splits"),
        ((32, 64, 64), 2, r"too small for num_splits 2: at least \(64, 64, 64\)"),
        ((12, 64, 64), 1, r"crop \(12, 64, 64\) must be \(n x 8"),
    ],
)
def test_a_crop_that_convolutions_in_parts_would_spoil_is_refused(
    crop: tuple[int, int, int], splits: int, message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        TokenizerSpec(
            steps=1,
            batch_size=1,
            micro_batch_size=1,
            recipe="brats",
            crop=crop,
            model=MaisiTokenizerSpec(num_splits=splits),
        )
