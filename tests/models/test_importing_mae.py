"""The published format of masked autoencoders: an independent network gives what ours does."""

import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ct3dlib.config import MaskedAutoencoderNetworkSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.models.importing_mae import import_mae, network_of, sources
from ct3dlib.models.mae import MaskedAutoencoder
from ct3dlib.models.volume_encoder import VolumeEncoder
from ct3dlib.nn.patches import patchify, unpatchify
from ct3dlib.nn.position import resize_table
from tests.models.mae_reference import ARGUMENTS, Reference, reference

KEPT = 16  # of 64 patches
BOX = {"grid": (2, 4, 3), "patch": (4, 2, 3)}
BOX_SHAPE = (8, 8, 9)


@pytest.fixture(scope="module")
def original() -> Reference:
    return reference()


@pytest.fixture(scope="module")
def weights(original: Reference) -> dict[str, Tensor]:
    return original.state_dict()


def _saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "mae.pth")
    return folder / "mae.pth"


def _file(folder: Path, weights: dict[str, Tensor], args: object = ARGUMENTS) -> Path:
    return _saved(folder, {"model": weights, "args": args})


def _encoder_only(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: v for n, v in weights.items() if not n.startswith(("decoder", "mask_token"))}


def _volumes(shape: tuple[int, ...] = (2, 1, 16, 16, 16)) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def _noise() -> Tensor:
    return torch.rand(2, 64, generator=torch.Generator().manual_seed(2))


def _outputs(model: MaskedAutoencoder) -> Tensor:
    """Return tokens and predictions of fixed volumes behind each other."""
    masks = model.draw_masks(_noise())
    with torch.inference_mode():
        tokens = model.encoder(_volumes(), masks.visible)
        return torch.cat((tokens.flatten(), model.decoder(tokens, masks).flatten()))


def test_tokens_and_predictions_are_those_of_the_original(tmp_path, original, weights, caplog):
    training = {
        "model": {f"module.{name}": value for name, value in weights.items()},
        "optimizer": torch.optim.AdamW(original.parameters()).state_dict(),
        "epoch": 7,
        "args": ARGUMENTS,
    }
    model, others = import_mae(_saved(tmp_path, training))
    assert isinstance(model, MaskedAutoencoder)
    assert not model.training
    assert others == {"optimizer": 2, "epoch": 1}
    assert not caplog.records  # positions are those that we compute
    masks, volumes = model.draw_masks(_noise()), _volumes()
    with torch.inference_mode():
        wanted, restore = original.encode(volumes, _noise(), KEPT)
        tokens = model.encoder(volumes, masks.visible)
        torch.testing.assert_close(tokens, wanted, rtol=1e-5, atol=1e-5)
        predicted = original.decode(wanted, restore)
        chosen = predicted.take_along_dim(masks.masked[..., None], dim=1)
        assert chosen.std() > 0.1
        torch.testing.assert_close(model(volumes, masks), chosen, rtol=1e-5, atol=1e-5)
        seen = original.whole(predicted) - model.filled(volumes, masks)
        masked = patchify(seen, (4, 4, 4)).take_along_dim(masks.masked[..., None], dim=1)
        assert masked.abs().max() < 1e-5


def test_the_geometry_is_read_off_the_weights(tmp_path, weights):
    model, _ = import_mae(_file(tmp_path, weights))
    assert model.spec == MaskedAutoencoderNetworkSpec.model_validate(
        {
            "encoder": {"hidden_size": 48, "num_layers": 3, "num_heads": 4},
            "decoder": {"hidden_size": 32, "num_layers": 2, "num_heads": 2},
            "patch_size": [4, 4, 4],
            "shape": [16, 16, 16],
        }
    )


def test_every_weight_of_the_file_matters(tmp_path, weights):
    wanted = _outputs(import_mae(_file(tmp_path, weights))[0])
    unread = []
    for name, value in weights.items():
        changed = weights | {name: value + 0.5 * torch.randn(value.shape)}
        if torch.equal(_outputs(import_mae(_file(tmp_path, changed))[0]), wanted):
            unread.append(name)
    assert unread == []


def test_patches_of_a_box_lie_as_in_a_convolution_and_in_its_inverse():
    original = reference(**BOX)
    volumes, patch = _volumes((2, 1, *BOX_SHAPE)), BOX["patch"]
    patches = patchify(volumes, patch)
    torch.testing.assert_close(original.whole(patches), volumes, rtol=0, atol=0)
    restored = unpatchify(patches, patch, grid=BOX["grid"])
    torch.testing.assert_close(restored, volumes, rtol=0, atol=0)
    kernel, bias = original.patch_embed.proj.weight.flatten(1), original.patch_embed.proj.bias
    found = nn.functional.linear(patches, kernel, bias)
    torch.testing.assert_close(found, original.patch_embed(volumes), rtol=1e-5, atol=1e-5)


def test_a_box_is_told_by_its_shape(tmp_path):
    original = reference(**BOX)
    path = _file(tmp_path, original.state_dict())
    message = (
        r"mae\.pth: the grid of its 24 patches of \(4, 2, 3\) voxels is no cube, and no shape was "
        r"given; give the recipe that it was trained on"
    )
    with pytest.raises(CheckpointError, match=message):
        import_mae(path)
    with pytest.raises(CheckpointError, match=r"not that of volumes of \(8, 8, 12\); give the"):
        import_mae(path, (8, 8, 12))
    model, _ = import_mae(path, BOX_SHAPE)
    volumes, noise = _volumes((1, 1, *BOX_SHAPE)), torch.rand(1, 24)
    with torch.inference_mode():
        wanted, restore = original.encode(volumes, noise, 6)
        masks = model.draw_masks(noise)
        predicted = original.decode(wanted, restore)
        chosen = predicted.take_along_dim(masks.masked[..., None], dim=1)
        torch.testing.assert_close(model(volumes, masks), chosen, rtol=1e-5, atol=1e-5)


def test_the_stored_positions_tell_a_cube_from_a_box_of_as_many_patches(tmp_path, weights):
    shape = (8, 16, 32)  # 2 x 4 x 8 patches, as many as 4 x 4 x 4
    box = reference(grid=(2, 4, 8)).state_dict()
    model, _ = import_mae(_file(tmp_path, box), shape)
    torch.testing.assert_close(model.encoder.position, box["pos_embed"][0], rtol=0, atol=0)
    model, _ = import_mae(_file(tmp_path, weights), shape)
    wanted = resize_table(weights["pos_embed"][0], (4, 4, 4), to=(2, 4, 8))
    torch.testing.assert_close(model.encoder.position, wanted, rtol=0, atol=0)


def test_positions_are_stretched_onto_another_shape(tmp_path, weights, caplog):
    caplog.set_level("INFO")
    model, _ = import_mae(_file(tmp_path, weights), (8, 24, 16))
    assert model.spec.shape == (8, 24, 16)
    for part, name in ((model.encoder, "pos_embed"), (model.decoder, "decoder_pos_embed")):
        wanted = resize_table(weights[name][0], (4, 4, 4), to=(2, 6, 4))
        torch.testing.assert_close(part.position, wanted, rtol=0, atol=0)
    assert torch.equal(model.encoder.blocks[2].qkv.weight, weights["blocks.2.attn.qkv.weight"])
    assert "positions of (4, 4, 4) patches stretched onto (2, 6, 4)" in caplog.text
    with pytest.raises(CheckpointError, match=r"\(8, 24, 18\) voxels is no whole number of patche"):
        import_mae(tmp_path / "mae.pth", (8, 24, 18))


def test_other_positions_are_kept_and_said(tmp_path, weights, caplog):
    other = weights | {"decoder_pos_embed": weights["decoder_pos_embed"].flip(1)}
    model, _ = import_mae(_file(tmp_path, other))
    assert torch.equal(model.decoder.position, other["decoder_pos_embed"][0])
    assert len(caplog.records) == 1
    assert re.search(
        r"decoder_pos_embed differs from the sines and cosines of \(4, 4, 4\) patches by up to \d",
        caplog.text,
    )


def test_an_encoder_alone_is_a_volume_encoder(tmp_path, original, weights):
    # Arguments that could not be loaded may be written as a dictionary.
    model, others = import_mae(_file(tmp_path, _encoder_only(weights), {"num_heads": 4}))
    assert isinstance(model, VolumeEncoder)
    assert others == {}
    with torch.inference_mode():
        wanted, _ = original.encode(_volumes(), torch.arange(64.0).expand(2, -1), 64)
        torch.testing.assert_close(model(_volumes()), wanted, rtol=1e-5, atol=1e-5)


def test_a_bare_state_dict_of_a_published_width_has_its_heads(tmp_path):
    shaped = _encoder_only(_meta_state(width=768, layers=1, patch=2, side=1))
    state = {f"module.{name}": torch.randn(value.shape) for name, value in shaped.items()}
    model, others = import_mae(_saved(tmp_path, state))
    assert others == {}
    assert model.spec.encoder.num_heads == 12
    assert torch.equal(model.blocks[0].qkv.weight, state["module.blocks.0.attn.qkv.weight"])


def test_predictions_without_a_sigmoid_are_of_normalised_patches(tmp_path, caplog):
    original = reference(sigmoid=False)
    path = _file(tmp_path, original.state_dict(), {**vars(ARGUMENTS), "norm_pix_loss": True})
    model, _ = import_mae(path)
    assert model.spec.norm_pix
    masks = model.draw_masks(_noise())
    with torch.inference_mode():
        predicted = original.decode(*original.encode(_volumes(), _noise(), KEPT))
        chosen = predicted.take_along_dim(masks.masked[..., None], dim=1)
        torch.testing.assert_close(model(_volumes(), masks), chosen, rtol=1e-5, atol=1e-5)
    assert not caplog.records


@pytest.mark.parametrize(("sigmoid", "through"), [(True, "a sigmoid"), (False, "no sigmoid")])
def test_a_loss_that_its_predictions_do_not_fit_is_said(tmp_path, caplog, sigmoid, through):
    stated = {**vars(ARGUMENTS), "norm_pix_loss": sigmoid}
    import_mae(_file(tmp_path, reference(sigmoid=sigmoid).state_dict(), stated))
    assert f"norm_pix_loss {sigmoid}, but its predictions leave it through {through}" in caplog.text


def _meta_state(width: int, layers: int, patch: int, side: int) -> dict[str, Tensor]:
    """Return tensors without memory, shaped as a published model's."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + side**3, width),
        "patch_embed.proj.weight": (width, 1, patch, patch, patch),
        "patch_embed.proj.bias": (width,),
        "mask_token": (1, 1, 512),
        "decoder_pos_embed": (1, 1 + side**3, 512),
        "decoder_embed.weight": (512, width),
        "decoder_embed.bias": (512,),
        "decoder_pred.0.weight": (patch**3, 512),
        "decoder_pred.0.bias": (patch**3,),
    }
    for norm, size in (("norm", width), ("decoder_norm", 512)):
        shapes |= {f"{norm}.weight": (size,), f"{norm}.bias": (size,)}
    for part, size, count in (("", width, layers), ("decoder_", 512, 8)):
        for block in (f"{part}blocks.{number}" for number in range(count)):
            for norm in ("norm1", "norm2"):
                shapes |= {f"{block}.{norm}.{kind}": (size,) for kind in ("weight", "bias")}
            matrices = {
                "attn.qkv": (3, 1),
                "attn.proj": (1, 1),
                "mlp.fc1": (4, 1),
                "mlp.fc2": (1, 4),
            }
            for name, (outputs, inputs) in matrices.items():
                shapes[f"{block}.{name}.weight"] = (outputs * size, inputs * size)
                shapes[f"{block}.{name}.bias"] = (outputs * size,)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("width", "layers", "heads", "patch", "side"),
    [(1024, 24, 16, 16, 16), (768, 12, 12, 16, 16), (1280, 32, 16, 14, 18)],
    ids=["large", "base", "huge"],
)
def test_published_sizes_are_known_without_args(width, layers, heads, patch, side):
    state = _meta_state(width, layers, patch, side)
    spec = network_of(state, {}, shape=None, path=Path("tangerine.pth"))
    assert isinstance(spec, MaskedAutoencoderNetworkSpec)
    encoder, decoder = spec.encoder, spec.decoder
    assert (encoder.hidden_size, encoder.num_layers, encoder.num_heads) == (width, layers, heads)
    assert (decoder.hidden_size, decoder.num_layers, decoder.num_heads) == (512, 8, 16)
    assert (encoder.mlp_ratio, decoder.mlp_ratio) == (4.0, 4.0)
    assert (spec.shape, spec.patch_size) == ((patch * side,) * 3, (patch,) * 3)
    if width == 1024:
        assert sum(value.numel() for value in state.values()) == 310_703_104 + 29_944_320
    with torch.device("meta"):
        ours = MaskedAutoencoder(spec).state_dict()
    taken = {source for names in sources(spec).values() for source in names}
    assert taken == set(state)
    for name, (source,) in sources(spec).items():
        assert ours[name].numel() == state[source].numel(), name


def test_weights_that_do_not_fit_are_named_and_counted(tmp_path, weights):
    wrong = dict(weights)
    del wrong["blocks.1.attn.qkv.bias"], wrong["mask_token"]
    wrong["blocks.0.attn.relative"] = torch.ones(1)
    wrong["decoder_pos_embed"] = wrong["decoder_pos_embed"][:, :28]
    message = (
        r"mae\.pth: does not fit the model: 71 of 74 weights do; "
        r"2 missing: blocks\.1\.attn\.qkv\.bias, mask_token; "
        r"1 unknown: blocks\.0\.attn\.relative; "
        r"1 of another shape: decoder_pos_embed \[28, 32\] for \[65, 32\]; give"
    )
    with pytest.raises(CheckpointError, match=message):
        import_mae(_file(tmp_path, wrong))


def _without(*names: str):
    return lambda weights: {n: v for n, v in weights.items() if not n.startswith(names)}


def _with(**tensors: Tensor):
    return lambda weights: weights | {n.replace("__", "."): v for n, v in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _without(""),
            r"its 0 weights are not those of a masked autoencoder of volumes: no patch_",
        ),
        (
            lambda weights: {f"net.{name}": value for name, value in weights.items()},
            r"its 74 weights are not .*: no patch_embed\.proj\.weight, no pos_embed, no blocks\.0",
        ),
        (
            _without("decoder_pos"),
            r"its 73 weights are not .*volumes: no decoder_pos_embed; give a",
        ),
        (
            _with(patch_embed__proj__weight=torch.zeros(48, 1, 4, 4)),
            r"volumes: patch_embed\.proj\.weight \[48, 1, 4, 4\]; give",
        ),
        (
            _with(patch_embed__proj__weight=torch.zeros(48, 3, 4, 4, 4)),
            r"patch_embed\.proj\.weight is of 3 channels, volumes have 1; give a checkpoint of a",
        ),
        (
            _with(head__weight=torch.zeros(1, 96), fc_norm__weight=torch.zeros(96)),
            r"a fine-tuned model, with fc_norm\.weight, head\.weight, which no masked autoencoder "
            r"has; import the file that it was fine-tuned from, then fine-tune that",
        ),
        (_without("decoder_blocks.0.norm1"), r"72 of 74 weights do; 2 missing: decoder_blocks\.0"),
        (_without("blocks.1."), r"12 missing: blocks\.1\.norm1\.weight, .*; 12 unknown: blocks\.2"),
    ],
    ids=["none", "other", "decoder", "2d", "channels", "tuned", "missing", "gap"],
)
def test_files_of_other_models_are_refused(tmp_path, weights, change, message):
    with pytest.raises(CheckpointError, match=message):
        import_mae(_file(tmp_path, change(weights)))


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (
            {},
            r"how many heads share its width of 48, published are 12 for 768, 16 for 1024, 16 for",
        ),
        (
            {"num_heads": 5},
            r"cannot be built: .*hidden_size \(48\) must be a multiple of num_heads",
        ),
        ({"num_heads": "few"}, r"a model of its sizes cannot be built: num_heads: Input should be"),
        ({"num_heads": 4, "decoder_num_heads": 3}, r"hidden_size \(32\) must be a multiple"),
    ],
    ids=["unsaid", "not whole", "no number", "decoder"],
)
def test_heads_that_cannot_be_are_said(tmp_path, weights, stated, message):
    with pytest.raises(CheckpointError, match=message):
        import_mae(_file(tmp_path, weights, Namespace(**stated)))


class _Runs:
    """What a file holds that would run code when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was_run",)


@pytest.mark.parametrize(
    ("odd", "named"),
    [
        (_Runs(), r"posix\.mkdir"),
        (Namespace(output_dir=Path("runs")), r"pathlib\.\w+"),
        (Namespace(hook=_Runs()), r"posix\.mkdir"),
    ],
    ids=["code", "path", "code within"],
)
def test_python_objects_but_plain_arguments_are_refused(tmp_path, weights, odd, named, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(torch.serialization.get_safe_globals())
    message = rf"not loaded as they could run code \(it asks for {named}\); save its state_dict"
    with pytest.raises(CheckpointError, match=message):
        import_mae(_file(tmp_path, weights, odd))
    assert not (tmp_path / "was_run").exists()
    assert set(torch.serialization.get_safe_globals()) == before


def test_arguments_are_allowed_for_this_format_alone(tmp_path, weights):
    import_mae(_file(tmp_path, weights))
    assert Namespace not in torch.serialization.get_safe_globals()
    with pytest.raises(Exception, match="Namespace"):
        torch.load(tmp_path / "mae.pth", weights_only=True)


def test_entries_that_are_no_tensors_are_refused(tmp_path, weights):
    with pytest.raises(CheckpointError, match="epoch is a int, wanted a tensor; give the file"):
        import_mae(_saved(tmp_path, {**weights, "epoch": 7}))


def test_weights_that_are_not_finite_are_named(tmp_path, weights):
    broken = {**weights, "norm.weight": torch.full_like(weights["norm.weight"], torch.nan)}
    with pytest.raises(
        CheckpointError, match=r"1 weights hold values that are not finite: encoder"
    ):
        import_mae(_file(tmp_path, broken))
