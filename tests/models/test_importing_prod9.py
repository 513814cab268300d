"""prod9 exports: MONAI's own network with the exported weights gives what the imported one does."""

import copy
import hashlib
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

from ct3dlib.config import FSQSpec, MaisiTokenizerSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.models.exported import save_model
from ct3dlib.models.importing_prod9 import import_prod9

LEVELS = (4, 3, 5)
CONFIG: dict[str, Any] = {
    "spatial_dims": 3,
    "levels": list(LEVELS),
    "save_mem": False,
    "in_channels": 1,
    "out_channels": 1,
    "num_channels": [8, 16],
    "attention_levels": [False, True],
    "num_res_blocks": [1, 2],
    "norm_num_groups": 4,
    "norm_eps": 1e-5,
    "num_splits": 1,
}


@pytest.fixture(scope="module")
def original() -> AutoencoderKlMaisi:
    """Return MONAI's network as prod9 builds it."""
    torch.manual_seed(0)
    arguments = {key: value for key, value in CONFIG.items() if key != "levels"}
    return AutoencoderKlMaisi(latent_channels=len(LEVELS), **arguments).eval()


@pytest.fixture(scope="module")
def weights(original: AutoencoderKlMaisi) -> dict[str, torch.Tensor]:
    """Return what prod9's state_dict holds: no variance head, but the quantizer's constants."""
    state = {k: v for k, v in original.state_dict().items() if "log_sigma" not in k}
    basis = [math.prod(LEVELS[:channel]) for channel in range(len(LEVELS))]
    constants = {"_levels_tensor": list(LEVELS), "_basis": basis}
    return state | {f"quantizer.{k}": torch.tensor(v).int() for k, v in constants.items()}


def _saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "autoencoder.pt")
    return folder / "autoencoder.pt"


def _prod9_ids(latents: torch.Tensor) -> torch.Tensor:
    """Return ids as prod9 computes them: its shift is a tangent, its lattice shrunk by 1e-3."""
    ids = torch.zeros(latents.shape[0], *latents.shape[2:], dtype=torch.int64)
    for channel, levels in enumerate(LEVELS):
        half = (levels - 1) * (1 - 1e-3) / 2
        offset = 0.5 if levels % 2 == 0 else 0.0
        z = torch.tanh(latents[:, channel] + math.tan(offset / half)) * half - offset
        ids += (z.round() + levels // 2).long() * math.prod(LEVELS[:channel])
    return ids


def test_an_export_computes_what_the_original_does(tmp_path, original, weights):
    model, others = import_prod9(_saved(tmp_path, {"state_dict": weights, "config": CONFIG}))
    assert others == {}
    assert model.spec == MaisiTokenizerSpec(
        num_channels=(8, 16),
        num_res_blocks=(1, 2),
        attention_levels=(False, True),
        norm_groups=4,
        norm_eps=1e-5,
        quantizer=FSQSpec(levels=LEVELS, variant="prod9"),
    )
    volumes = torch.rand(2, 1, 8, 12, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = original.quant_conv_mu(original.encoder(volumes))
        latents = model.encode(volumes)
        torch.testing.assert_close(latents, wanted, rtol=1e-4, atol=1e-5)
        quantized = model.tokens(wanted)
        assert torch.equal(quantized.indices, _prod9_ids(wanted))
        assert len(quantized.indices.unique()) > 3
        # As prod9's decode: its codes are the points of the lattice.
        wanted = original.decoder(original.post_quant_conv(quantized.codes))
        torch.testing.assert_close(model.decode(quantized.codes), wanted, rtol=1e-4, atol=1e-5)


def test_weights_of_a_whole_training_are_found(tmp_path, weights):
    whole = {f"autoencoder.{name}": value for name, value in weights.items()}
    whole |= {
        "discriminator.a": torch.ones(1),
        "loss_fn.b": torch.ones(1),
        "loss_fn.c": whole["autoencoder.quant_conv_mu.conv.bias"],
    }
    path = _saved(tmp_path, {"state_dict": whole, "config": CONFIG})
    model, others = import_prod9(path)
    assert others == {"discriminator": 1, "loss_fn": 2}
    name = "decoder.blocks.0.conv.conv.weight"
    assert torch.equal(model.state_dict()[name], weights[name])


@pytest.mark.slow  # imports torch and MONAI once more
def test_an_import_gives_the_same_ids_in_a_new_process(tmp_path, weights):
    model, _ = import_prod9(_saved(tmp_path, {"state_dict": weights, "config": CONFIG}))
    save_model(tmp_path / "model", model, spec=model.spec, contract={}, training={})
    volumes = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(2))
    torch.save(volumes, tmp_path / "volumes.pt")
    with torch.inference_mode():
        ids = model.tokens(model.encode(volumes)).indices.numpy()
    program = (
        "import hashlib, sys, torch; from pathlib import Path; "
        "from ct3dlib.models.exported import load_model; "
        "folder = Path(sys.argv[1]); model = load_model(folder / 'model').module; "
        "volumes = torch.load(folder / 'volumes.pt', weights_only=True); "
        "ids = model.tokens(model.encode(volumes)).indices.numpy(); "
        "print(hashlib.sha256(ids.tobytes()).hexdigest())"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert found == hashlib.sha256(ids.tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": None}, r"autoencoder\.pt: its config has no levels; export the model again"),
        ({"spatial_dims": 2}, "its config has spatial_dims 2, only 3 can be imported"),
        ({"include_fc": True}, "its config has include_fc True, only False can be imported"),
        ({"dropout": 0.1}, r"its config has dropout 0\.1, an unknown key"),
        ({"num_res_blocks": [1]}, "its config does not fit: .*num_res_blocks needs one entry per"),
        ({"levels": 8}, "its config does not fit: levels: Input should be a valid tuple, found 8"),
        ({"levels": [4, 3, 6]}, r"quantizer\._levels_tensor is \[4, 3, 5\], its config says"),
        ({"num_channels": [8, 24]}, "does not fit the model: .* of another shape: encoder"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, weights, changes, message):
    config = {k: v for k, v in {**CONFIG, **changes}.items() if v is not None}
    path = _saved(tmp_path, {"state_dict": weights, "config": config})
    with pytest.raises(CheckpointError, match=message):
        import_prod9(path)


def test_an_export_without_a_config_is_refused(tmp_path, weights):
    with pytest.raises(CheckpointError, match="has no config beside its weights; export the"):
        import_prod9(_saved(tmp_path, {"state_dict": weights}))


def test_weights_that_do_not_fit_are_named(tmp_path, original, weights):
    sigma = {k: v for k, v in original.state_dict().items() if "log_sigma" in k}
    wrong = copy.copy(weights) | sigma
    del wrong["post_quant_conv.conv.bias"]
    path = _saved(tmp_path, {"state_dict": wrong, "config": CONFIG})
    message = (
        r"1 missing: post_quant_conv\.conv\.bias; 2 unknown: quant_conv_log_sigma\.conv\.bias, "
        r"quant_conv_log_sigma\.conv\.weight; give"
    )
    with pytest.raises(CheckpointError, match=message):
        import_prod9(path)
