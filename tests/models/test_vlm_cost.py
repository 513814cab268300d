import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ct3dlib.config import SliceEncoderSpec, VlmModelSpec
from ct3dlib.config.encoder import VisionTransformerSpec
from ct3dlib.models.slice_encoder import SliceEncoder
from ct3dlib.models.vlm_cost import scan_cost

SEED = (64, 512, 512)
# Forward operations of the blocks alone, TF, and parameters with projections, millions.
PUBLISHED = {
    "joint": (12.68, 89.64),
    "hierarchical": (6.49, 89.64),
    "divided": (4.34, 118.01),
    "alternating": (3.10, 89.64),
}


def of_mode(mode: str, **vision) -> VlmModelSpec:
    return VlmModelSpec(vision=SliceEncoderSpec(attention=mode, **vision))


@pytest.mark.parametrize("mode", PUBLISHED)
def test_the_published_size_costs_what_it_should(mode):
    cost = scan_cost(of_mode(mode), SEED)
    flops, parameters = PUBLISHED[mode]
    blocks = sum(n for part, n in cost.flops.items() if part.startswith(("linear", "attention")))
    assert cost.grid == (16, 32, 32)
    assert cost.tokens == 16384
    assert round(blocks / 1e12, 2) == flops
    assert round(cost.all_parameters / 1e6, 2) == parameters
    assert cost.all_flops == sum(cost.flops.values())


def test_parts_of_the_published_size_are_those_worked_out_by_hand():
    cost = scan_cost(of_mode("joint"), SEED)
    # 12 (12 768^2 + 13 768), 1024 768 + 768, (16 + 32 32) 768.
    assert cost.parameters["feed_forward"] + cost.parameters["attention"] == 85_054_464
    assert cost.parameters["patches"] == 787_200
    assert cost.parameters["positions"] == 798_720
    assert cost.flops["linear"] == 12 * 2 * 16384 * 12 * 768**2
    assert cost.flops["attention_joint"] == 12 * 4 * 16384**2 * 768


@pytest.mark.parametrize("mode", [*PUBLISHED, "plane"])
@pytest.mark.parametrize("region_input", [True, False], ids=["told", "untold"])
def test_parameters_are_those_of_the_module(mode, region_input):
    spec = of_mode(mode, region_input=region_input, windows=("lung", "bone"))
    with torch.device("meta"):
        encoder = SliceEncoder(spec.vision, (60, 500, 512))
    cost = scan_cost(spec, (60, 500, 512))
    own = cost.all_parameters - cost.parameters["projections"]
    assert own == sum(p.numel() for p in encoder.parameters())
    assert cost.parameters["projections"] == 2 * 768 * 768


@pytest.mark.parametrize("mode", [*PUBLISHED, "plane"])
def test_operations_are_those_that_pytorch_counts(mode):
    small = VisionTransformerSpec(hidden_size=24, num_layers=6, num_heads=3, mlp_ratio=3)
    spec = of_mode(mode, encoder=small, patch_size=(2, 4, 4), windows=("lung", "bone"))
    shape = (8, 12, 20)
    with torch.device("meta"):
        encoder = SliceEncoder(spec.vision, shape).eval()
        counter = FlopCounterMode(display=False)
        with counter:
            encoder(torch.empty(1, 2, *shape), torch.empty(1, 1, *shape, dtype=torch.uint8))
    cost = scan_cost(spec, shape)
    assert cost.all_flops - cost.flops["projections"] == counter.get_total_flops()
