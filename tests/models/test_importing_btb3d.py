"""BTB3D checkpoints: imported weights compute what a reference of the original layout does."""

import re
from pathlib import Path

import pytest
import torch

from ct3dlib.config import CausalTokenizerSpec, LFQSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.models.importing_btb3d import import_btb3d
from tests.models.btb3d_reference import Geometry, decode, encode, random_weights

# Those of the published models, narrow and shallow: 8 x 8 x 8 and 16 x 16 x 8.
EIGHT = Geometry(32, 2, (1, 2, 1), (True, True), bits=6)
SIXTEEN = Geometry(32, 1, (1, 2, 2, 1), (False, True, True), bits=5)
TINY = Geometry(32, 1, (1,), (), bits=3)


def _saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "iter_1.ckpt")
    return folder / "iter_1.ckpt"


@pytest.mark.parametrize("geometry", [EIGHT, SIXTEEN], ids=["8x8x8", "16x16x8"])
def test_imported_weights_compute_what_the_original_does(tmp_path, geometry):
    weights = random_weights(geometry)
    model, others = import_btb3d(_saved(tmp_path, weights))
    assert others == {}
    assert model.spec == CausalTokenizerSpec(
        filters=32,
        num_res_blocks=geometry.num_res_blocks,
        channel_multipliers=geometry.multipliers,
        temporal_downsample=geometry.temporal,
        norm_groups=32,
        quantizer=LFQSpec(bits=geometry.bits),
    )
    assert not model.training
    # In double precision: norms of so few positions make much of a rounding.
    model, weights = model.double(), {name: value.double() for name, value in weights.items()}
    plane = 2 ** len(geometry.multipliers)
    generator = torch.Generator().manual_seed(1)
    volumes = torch.rand(1, 1, 17, 3 * plane, 2 * plane, generator=generator).double() * 2 - 1
    with torch.inference_mode():
        wanted = encode(weights, geometry, volumes)
        latents = model.encode_windowed(volumes)
        assert latents.shape == (1, geometry.bits, 3, 3, 2)
        torch.testing.assert_close(latents, wanted, rtol=1e-9, atol=1e-9)
        codes = torch.where(wanted > 0, 1.0, -1.0).double()
        assert torch.equal(model.tokens(latents).codes.double(), codes)
        wanted = decode(weights, geometry, codes)
        assert wanted.std() > 0.1
        torch.testing.assert_close(model.decode(codes), wanted, rtol=1e-9, atol=1e-9)


def _whole(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state_dict of the whole model, with the other networks of its training."""
    others = {"discriminator.conv.weight": torch.ones(1), "perceptual_model.a": torch.ones(1)}
    return {**{f"tokenizer.{name}": value for name, value in weights.items()}, **others}


@pytest.mark.parametrize(
    ("layout", "others"),
    [
        (lambda weights: weights, {}),
        (_whole, {"discriminator": 1, "perceptual_model": 1}),
        (lambda weights: {"state_dict": weights, "step": 3}, {}),
        (lambda weights: {"state_dict": {"model": weights}}, {}),
        (
            lambda weights: {"model": {f"module.{n}": v for n, v in _whole(weights).items()}},
            {"discriminator": 1, "perceptual_model": 1},
        ),
        (lambda weights: {name: v.bfloat16() for name, v in weights.items() if v.ndim > 1}, None),
    ],
    ids=["part", "whole", "state_dict", "state_dict.model", "model, module.", "incomplete"],
)
def test_every_layout_of_a_file_is_read_or_refused(tmp_path, layout, others):
    weights = random_weights(TINY)
    path = _saved(tmp_path, layout(weights))
    if others is None:
        with pytest.raises(CheckpointError, match=r"iter_1\.ckpt: does not fit .* missing"):
            import_btb3d(path)
        return
    model, left_out = import_btb3d(path)
    assert left_out == others
    kernel = weights["encoder.conv_first.conv.weight"]
    assert torch.equal(model.state_dict()["encoder.0.weight"], kernel)


def test_weights_in_half_precision_become_float32(tmp_path):
    weights = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in random_weights(TINY).items()
    }
    model, _ = import_btb3d(_saved(tmp_path, weights))
    kernel = model.state_dict()["decoder.output.2.weight"]
    assert kernel.dtype == torch.float32
    assert torch.equal(kernel, weights["decoder.conv_last.conv.weight"].float())


NORM = "decoder.cond_norm_layers.cond_norm_0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {f"{NORM}.beta.bias": None},
            rf"does not fit the model: 37 of 38 weights do; 1 missing: {NORM}\.beta\.bias; give",
        ),
        (
            {"decoder.extra.weight": torch.ones(1)},
            "38 of 38 weights do; 1 unknown: decoder.extra.weight; give a checkpoint of",
        ),
        (
            {"decoder.conv_last.conv.bias": torch.ones(7)},
            r"37 of 38 .*; 1 of another shape: decoder\.conv_last\.conv\.bias \[7\] for \[8\]",
        ),
        (
            {f"{NORM}.gamma.weight": torch.ones(32, 4)},
            rf"{NORM}\.gamma\.weight \+ {NORM}\.beta\.weight \[32, 4\] \+ \[32, 3\] for \[64, 3, ",
        ),
        (
            {"encoder.conv_first.conv.weight": None, "encoder.old.weight": torch.ones(1)},
            r"1 missing: encoder\.conv_first\.conv\.weight; 1 unknown: encoder\.old\.weight",
        ),
        (
            {f"decoder.x{i}": torch.ones(1) for i in range(7)},
            r"7 unknown: decoder\.x0, .*decoder\.x4 and 2 more; give",
        ),
        ({"encoder.conv_last.conv.weight": None}, "are not those of BTB3D's 3D tokenizer, such as"),
        ({"quantize.mask": torch.tensor([1, 2, 4])}, r"quantize\.mask is \[1, 2, 4\], wanted"),
        ({"encoder.conv_last.conv.bias": 3}, r"encoder\.conv_last\.conv\.bias is a int, wanted"),
    ],
    ids=[
        "missing",
        "extra",
        "misshaped",
        "half misshaped",
        "renamed",
        "many",
        "another program",
        "bit order",
        "no tensor",
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, message):
    weights = {**random_weights(TINY), **change}
    path = _saved(tmp_path, {name: v for name, v in weights.items() if v is not None})
    with pytest.raises(CheckpointError, match=message):
        import_btb3d(path)


def test_a_geometry_that_cannot_be_built_is_said(tmp_path):
    weights = random_weights(Geometry(32, 1, (1, 1), (True,), bits=3))
    del weights["decoder.conv_upsample_blocks.conv_upsample_0.conv1.conv.weight"]
    with pytest.raises(CheckpointError, match=r"levels of \[32, 32\] channels and 0 steps between"):
        import_btb3d(_saved(tmp_path, weights))


class _Anything:
    pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"config": _Anything()}, "one with Python objects, which are not loaded"),
        ([1, 2], "holds a list, wanted a state_dict"),
    ],
    ids=["objects", "list"],
)
def test_files_that_are_no_state_dict_are_refused(tmp_path, content, message):
    with pytest.raises(CheckpointError, match=message):
        import_btb3d(_saved(tmp_path, content))


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: no such file; give a")):
        import_btb3d(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match=r"a\.ckpt: not a torch file"):
        import_btb3d(path)
    whole = _saved(tmp_path, random_weights(TINY)).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"a\.ckpt: damaged, or not a torch file; fetch it"):
        import_btb3d(path)
