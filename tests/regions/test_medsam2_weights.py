"""MedSAM2's files: what is read, what is refused and by which name."""

import hashlib
import pickle
import re
from pathlib import Path

import pytest
import torch

from ct3dlib.errors import CheckpointError
from ct3dlib.regions.medsam2_network import load_network, make_network
from ct3dlib.regions.medsam2_weights import convert, read_weights, rename
from tests.regions.medsam2_golden import FILE, SIZE, native_weights, network


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("native", "name"),
    [
        ("no_obj_ptr", "no_object_pointer"),
        ("mask_downsample.weight", "mask_downsample.weight"),
        ("obj_ptr_proj.layers.0.bias", "object_pointer_proj.proj_in.bias"),
        ("obj_ptr_proj.layers.1.bias", "object_pointer_proj.layers.0.bias"),
        ("obj_ptr_proj.layers.2.bias", "object_pointer_proj.proj_out.bias"),
        (
            "image_encoder.trunk.blocks.11.mlp.layers.1.weight",
            "vision_encoder.backbone.blocks.11.mlp.proj_out.weight",
        ),
        ("image_encoder.trunk.blocks.3.proj.bias", "vision_encoder.backbone.blocks.3.proj.bias"),
        ("image_encoder.neck.convs.3.conv.bias", "vision_encoder.neck.convs.3.bias"),
        (
            "memory_attention.layers.2.cross_attn_image.out_proj.bias",
            "memory_attention.layers.2.cross_attn_image.o_proj.bias",
        ),
        ("memory_encoder.out_proj.weight", "memory_encoder.projection.weight"),
        (
            "memory_encoder.mask_downsampler.encoder.10.weight",
            "memory_encoder.mask_downsampler.layers.3.layer_norm.weight",
        ),
        (
            "memory_encoder.mask_downsampler.encoder.12.weight",
            "memory_encoder.mask_downsampler.final_conv.weight",
        ),
        (
            "sam_mask_decoder.transformer.layers.1.norm4.weight",
            "mask_decoder.transformer.layers.1.layer_norm4.weight",
        ),
        ("sam_mask_decoder.output_upscaling.3.bias", "mask_decoder.upscale_conv2.bias"),
        ("not.of.sam2", "not.of.sam2"),
    ],
)
def test_names_become_those_of_transformers(native, name):
    assert rename(native) == name


def test_every_tensor_is_used_unchanged_points_joined_and_frequencies_twice():
    native = native_weights()
    converted = convert(native, path=FILE)
    assert (len(native), len(converted)) == (471, 469)  # 4 points become 1, 1 copy is added
    for name, tensor in native.items():
        if ".point_embeddings." not in name:
            assert converted[rename(name)] is tensor
    points = [native[f"sam_prompt_encoder.point_embeddings.{i}.weight"] for i in range(4)]
    assert converted["prompt_encoder.point_embed.weight"].equal(torch.cat(points))
    assert (
        converted["shared_image_embedding.positional_embedding"]
        is native["sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    )


def test_two_names_that_become_one_are_refused():
    both = {"no_mem_embed": torch.zeros(1), "no_memory_embedding": torch.ones(1)}
    message = (
        r"weights\.pt: no_mem_embed and no_memory_embedding are both no_memory_embedding; give"
    )
    with pytest.raises(CheckpointError, match=message):
        convert(both, path=FILE)


def _without(name):
    return {key: tensor for key, tensor in native_weights().items() if key != name}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            lambda: _without("sam_mask_decoder.conv_s0.bias"),
            "468 of 469 tensors fit; 1 missing: mask_decoder.conv_s0.bias; give MedSAM2_latest.pt",
        ),
        (
            lambda: {**native_weights(), "image_encoder.trunk.extra": torch.zeros(1)},
            "469 of 469 tensors fit; 1 unknown: vision_encoder.backbone.extra; give",
        ),
        (
            lambda: {**native_weights(), "no_obj_ptr": torch.zeros(1, 128)},
            "468 of 469 tensors fit; 1 of another shape: no_object_pointer [1, 128] for [1, 256];",
        ),
        (
            lambda: _without("sam_prompt_encoder.point_embeddings.2.weight"),
            "1 of another shape: prompt_encoder.point_embed.weight [3, 256] for [4, 256]; give",
        ),
        (
            lambda: {"image_encoder.trunk.patch_embed.proj.weight": torch.zeros(144, 3, 7, 7)},
            "0 of 469 tensors fit; 468 missing: no_memory_embedding, no_memory_positional_encoding,"
            " memory_temporal_positional_encoding, no_object_pointer, "
            "occlusion_spatial_embedding_parameter and 463 more; 1 of another shape: "
            "vision_encoder.backbone.patch_embed.projection.weight [144, 3, 7, 7] for [96, 3, 7, ",
        ),
    ],
    ids=["missing", "unknown", "misshaped", "point", "large"],
)
def test_weights_that_do_not_fit_are_refused_by_name(weights, message):
    prefix = "weights.pt: not the weights of MedSAM2, which is SAM 2.1 with hiera-tiny: "
    with pytest.raises(CheckpointError, match=f"^{re.escape(prefix)}.*{re.escape(message)}"):
        make_network(weights(), path=FILE, size=SIZE)


def test_a_size_that_the_strides_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="size is 200 pixels, wanted a multiple of 32"):
        make_network(native_weights(), path=FILE, size=200)


def test_a_network_is_read_from_its_file_fixed_and_whole(tmp_path):
    path = tmp_path / "medsam2.pt"
    torch.save({"model": native_weights()}, path)
    found = load_network(path, _sha256(path).upper(), device=torch.device("cpu"), size=SIZE)
    assert found.size == SIZE
    assert not any(module.training for module in found.modules())
    assert not any(parameter.requires_grad for parameter in found.parameters())
    wanted = network().state_dict()
    assert wanted.keys() == found.state_dict().keys()
    assert all(tensor.equal(wanted[name]) for name, tensor in found.state_dict().items())


class _Bomb:
    """A pickle that leaves a file where it is opened."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_file_of_another_hash_is_never_opened(tmp_path, monkeypatch):
    path = tmp_path / "bomb.pt"
    path.write_bytes(pickle.dumps(_Bomb(tmp_path / "trace")))
    opened = []
    monkeypatch.setattr("torch.load", lambda *args, **kwargs: opened.append(args))
    message = rf"bomb\.pt: its sha256 is {_sha256(path)}, wanted {'0' * 64}; fetch the file again"
    with pytest.raises(CheckpointError, match=message):
        load_network(path, "0" * 64, device=torch.device("cpu"))
    assert opened == []


def test_code_in_a_file_is_never_run(tmp_path):
    path = tmp_path / "bomb.pt"
    torch.save({"model": _Bomb(tmp_path / "trace")}, path)
    message = r"not a torch file of tensors alone \(UnpicklingError\); give MedSAM2_latest\.pt"
    with pytest.raises(CheckpointError, match=message):
        read_weights(path, _sha256(path))
    assert not (tmp_path / "trace").exists()


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pt: no such file; give MedSAM2_latest\.pt"):
        load_network(tmp_path / "none.pt", "0" * 64, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"no_obj_ptr": torch.zeros(1, 256)}, "holds no weights under 'model'; give MedSAM2"),
        ([torch.zeros(1)], "holds no weights under 'model'; give MedSAM2"),
        ({"model": {"step": 3}}, "step is a int, wanted a tensor; give MedSAM2"),
    ],
    ids=["flat", "list", "number"],
)
def test_a_file_of_another_kind_is_refused(tmp_path, document, message):
    path = tmp_path / "other.pt"
    torch.save(document, path)
    with pytest.raises(CheckpointError, match=message):
        read_weights(path, _sha256(path))


@pytest.mark.parametrize("stop", [0, 1, 300], ids=str)
def test_a_damaged_file_is_refused(tmp_path, stop):
    path = tmp_path / "cut.pt"
    torch.save({"model": {"no_obj_ptr": torch.zeros(1, 256)}}, path)
    path.write_bytes(path.read_bytes()[:stop])
    with pytest.raises(CheckpointError, match=r"cut\.pt: not a torch file of tensors alone"):
        read_weights(path, _sha256(path))
