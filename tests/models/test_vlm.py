import math

import pytest
import torch
from torch import Tensor

from ct3dlib.config import VlmNetworkSpec
from ct3dlib.models.exported import load_model, save_model
from ct3dlib.models.vlm import RegionLanguageModel

SMALL = {"hidden_size": 12, "num_layers": 1, "num_heads": 2}
SHAPE = (2, 4, 6)


def network_of(**changes: object) -> VlmNetworkSpec:
    return VlmNetworkSpec.model_validate(
        {
            "vision": {"encoder": SMALL, "patch_size": [1, 2, 2], "least_voxels": 1},
            "text": {"encoder": SMALL, "vocabulary": 300, "max_steps": 2},
            "embedding_size": 8,
            "shape": SHAPE,
            "tokens": 300,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def model() -> RegionLanguageModel:
    torch.manual_seed(0)
    return RegionLanguageModel(network_of()).eval()


def _scans() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-1000, 1000, (3, 1, *SHAPE), generator=generator).to(torch.int16)
    regions = torch.randint(0, 3, (3, 1, *SHAPE), generator=generator).to(torch.uint8)
    return values, torch.tensor([[-1000.0, 1000.0]] * 3), regions


def _texts() -> tuple[Tensor, Tensor]:
    ids = torch.tensor([[[1, 7, 8, 0], [1, 9, 0, 0]], [[1, 7, 0, 0], [0, 0, 0, 0]]]).int()
    bits = torch.tensor([[[0, 1, 1, 0], [0, 4, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]]]).int()
    return ids, bits


def _lengths(vectors: Tensor) -> Tensor:
    assert vectors.dtype == torch.float32
    return vectors.norm(dim=-1)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_vectors_of_scans_have_length_1_in_float32(model, precision):
    values, window, regions = _scans()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        found = model.embed_scans(values, window, regions=regions, want_local=True)
    for vectors in (found.global_, found.region, found.local):
        torch.testing.assert_close(_lengths(vectors), torch.ones(vectors.shape[:-1]))
    assert found.present.tolist() == [[True, True] + [False] * 18] * 3
    assert found.local.shape == (3, 12, 8)


def test_vectors_of_texts_have_length_1_and_what_is_not_said_is_0(model):
    found = model.embed_texts(*_texts())
    torch.testing.assert_close(_lengths(found.global_), torch.ones(2))
    mentioned = torch.zeros(2, 20, dtype=torch.bool)
    mentioned[0, [0, 2]] = True
    assert torch.equal(found.mentioned, mentioned)
    torch.testing.assert_close(_lengths(found.region), mentioned.float())


def test_regions_that_are_not_known_are_as_none_given(model):
    values, window, regions = _scans()
    regions[1] = 255
    found = model.embed_scans(values, window, regions=regions)
    nothing = model.embed_scans(values, window)
    assert nothing.local is None
    torch.testing.assert_close(found.global_[1], nothing.global_[1])
    torch.testing.assert_close(found.region[1], nothing.region[1])
    assert (found.region[0] - nothing.region[0]).abs().max() > 1e-3
    shown = model.embed_scans(values, window, regions=regions, known=torch.tensor([False] * 3))
    torch.testing.assert_close(shown.region, nothing.region)


def test_scales_start_at_one_over_the_temperature(model):
    for scale in model.scales():
        assert scale.item() == pytest.approx(1 / 0.07)
    assert model.log_scale.item() == pytest.approx(2.659, abs=1e-3)


def test_a_scale_stays_at_most_100_and_can_come_back():
    model = RegionLanguageModel(network_of())
    torch.nn.init.constant_(model.log_scale, math.log(100) + 0.5)
    scale, region_scale = model.scales()
    assert scale.item() == pytest.approx(100)
    for sign, wanted in ((1, 100.0), (-1, 0.0)):
        (gradient,) = torch.autograd.grad(sign * scale.sum(), model.log_scale, retain_graph=True)
        assert gradient.item() == pytest.approx(wanted)
        (inside,) = torch.autograd.grad(
            sign * region_scale.sum(), model.region_log_scale, retain_graph=True
        )
        assert inside.item() == pytest.approx(sign / 0.07)


def test_a_fixed_temperature_is_not_learnt():
    model = RegionLanguageModel(network_of(learnable_temperature=False, temperature=0.1))
    assert not any(
        name.endswith("scale") for name, p in model.named_parameters() if p.requires_grad
    )
    assert model.scales()[1].item() == pytest.approx(10)


def test_the_blocks_are_those_of_both_encoders(model):
    kinds = [type(block).__name__ for block in model.blocks()]
    assert kinds == ["SliceBlock", "BertLayer"]


def test_it_is_rebuilt_from_its_files(model, tmp_path):
    save_model(tmp_path, model, spec=model.spec, contract={}, training={})
    found = load_model(tmp_path).module
    assert isinstance(found, RegionLanguageModel)
    ids, bits = _texts()
    values, window, regions = _scans()
    pairs = zip(
        (*found.embed_texts(ids, bits), *found.embed_scans(values, window, regions=regions)[:3]),
        (*model.embed_texts(ids, bits), *model.embed_scans(values, window, regions=regions)[:3]),
        strict=True,
    )
    for ours, its in pairs:
        torch.testing.assert_close(ours, its, rtol=0, atol=0)
