import json
from pathlib import Path

import pytest
import torch

from ct3dlib.config import CausalTokenizerSpec, LFQSpec, MaskGITNetworkSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.models import ModelSpec, build_model
from ct3dlib.models.exported import load_model, save_model

TOKENIZER = CausalTokenizerSpec(
    filters=4,
    num_res_blocks=1,
    channel_multipliers=(1,),
    temporal_downsample=(),
    norm_groups=2,
    quantizer=LFQSpec(bits=4),
)
MASKGIT = MaskGITNetworkSpec(
    hidden_size=24, num_layers=1, num_heads=2, radices=(4, 4), num_labels=3
)
CONTRACT = {"recipe": {"window": [-1000.0, 1000.0]}, "windows_per_batch": 8}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "models" / "lfq", TOKENIZER)
    return tmp_path / "models" / "lfq"


def save(folder: Path, spec: ModelSpec) -> torch.nn.Module:
    module = build_model(spec)
    save_model(folder, module, spec=spec, contract=CONTRACT, training={"steps": 3})
    return module


def edit(folder: Path, **changes: object) -> None:
    path = folder / "spec.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("spec", [TOKENIZER, MASKGIT], ids=lambda spec: spec.name)
def test_a_model_is_rebuilt_from_its_files_alone(tmp_path: Path, spec: ModelSpec):
    module = save(tmp_path, spec)
    loaded = load_model(tmp_path)
    assert loaded.spec == spec
    assert loaded.contract == CONTRACT
    assert loaded.training == {"steps": 3}
    assert not loaded.module.training
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], value)


def test_a_loaded_tokenizer_gives_the_same_indices(folder: Path):
    torch.manual_seed(1)
    module = save(folder, TOKENIZER).eval()
    volumes = torch.randn(1, 1, 9, 8, 8)
    loaded = load_model(folder).module
    assert torch.equal(loaded(volumes).quantized.indices, module(volumes).quantized.indices)


def test_weights_in_another_memory_layout_make_the_same_file(tmp_path: Path):
    module = build_model(TOKENIZER)
    for name in ("plain", "last"):
        save_model(tmp_path / name, module, spec=TOKENIZER, contract={}, training={})
        module.to(memory_format=torch.channels_last_3d)
    assert load_model(tmp_path / "plain").sha256 == load_model(tmp_path / "last").sha256


def test_only_the_two_files_are_left(folder: Path):
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "spec.json"]


def test_a_failed_save_leaves_the_old_model(folder: Path):
    before = load_model(folder).sha256
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_model(
            folder,
            build_model(TOKENIZER),
            spec=TOKENIZER,
            contract={},
            training={"x": float("nan")},
        )
    assert load_model(folder).sha256 == before


@pytest.mark.parametrize("name", ["model.safetensors", "spec.json"])
def test_a_missing_file_is_named(folder: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: no such file; train the model or pull"):
        load_model(folder)


def test_damaged_weights_are_refused(folder: Path):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"sha256 is .*, spec.json wants .*damaged or of two"):
        load_model(folder)


def test_weights_of_another_model_are_refused(folder: Path, tmp_path: Path):
    save(tmp_path / "other", MASKGIT)
    sha256 = load_model(tmp_path / "other").sha256
    (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    edit(folder, weights_sha256=sha256)
    with pytest.raises(
        CheckpointError, match=r"does not fit the spec in spec.json: .*\n.*Missing key"
    ):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format version 99, this program reads 1; export the model"),
        ({"kind": "maskgit"}, "kind 'maskgit' with a spec of 'causal'; the file was edited"),
        ({"spec": {"name": "unet"}}, "no spec of a known model"),
        ({"spec": {"name": "causal", "fliters": 3}}, "no spec of a known model: .*fliters"),
        ({"author": "me"}, "missing or unknown keys: author"),
    ],
)
def test_an_edited_spec_is_refused(folder: Path, changes: dict[str, object], message: str):
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        load_model(folder)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not JSON"), ("[1]", "it has no format_version")]
)
def test_a_spec_that_is_no_spec_is_refused(folder: Path, text: str, message: str):
    (folder / "spec.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)
