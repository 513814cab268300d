import pytest
import torch
import torch.nn.functional as F

from ct3dlib.config import SliceEncoderSpec
from ct3dlib.config.encoder import VisionTransformerSpec
from ct3dlib.nn.slice_attention import (
    DistanceBias,
    GridAttention,
    SliceBlock,
    from_rows,
    reaches_of,
    to_rows,
)

GRID = (3, 2, 4)
REACHES = ["plane", "z", "joint"]
ENCODER = VisionTransformerSpec(hidden_size=12, num_layers=6, num_heads=3)


def spec(**changes) -> SliceEncoderSpec:
    return SliceEncoderSpec(**{"encoder": ENCODER, "dropout": 0, "attention_dropout": 0} | changes)


def built(*reaches: str, **changes) -> SliceBlock:
    torch.manual_seed(0)
    block = SliceBlock(spec(**changes), reaches, unit=6.0)
    for name, parameter in block.named_parameters():
        if name.endswith("table") or "norm" in name:
            torch.nn.init.normal_(parameter)
    return block


def sees(reach: str, query: int, key: int) -> bool:
    """Whether a token sees another, from their places on the grid."""
    slice_of, column_of = divmod(query, 8), divmod(key, 8)
    same = {"plane": slice_of[0] == column_of[0], "z": slice_of[1] == column_of[1], "joint": True}
    return same[reach]


def slow_attention(
    attention: GridAttention, tokens: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """Attend one item, one head and one query at a time, to the keys that it sees."""
    query, key, value = attention.qkv(attention.norm(tokens)).chunk(3, dim=-1)
    found = torch.zeros_like(tokens)
    scores = None if attention.bias is None else attention.bias(GRID[0])
    for item in range(len(tokens)):
        for n in range(24):
            row = [m for m in range(24) if sees(attention.reach, n, m)]
            keys = [m for m in row if valid[item, m]] or row
            for head in range(3):
                part = slice(4 * head, 4 * head + 4)
                logits = key[item, keys, part] @ query[item, n, part] / 2
                if scores is not None:
                    logits = logits + scores[head, n // 8, [m // 8 for m in keys]]
                found[item, n, part] = logits.softmax(0) @ value[item, keys, part]
    return attention.out(found)


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("reach", REACHES)
def test_attention_is_that_of_a_loop_over_tokens(reach, padded):
    attention, tokens = built(reach).attentions[0], torch.randn(2, 24, 12)
    valid = torch.ones(2, 24, dtype=torch.bool)
    if padded:
        valid[0, 16:] = False  # a whole slice
        valid[0, [1, 9]] = False  # with it, a whole column
        valid[1] = torch.rand(24) < 0.6
    found = attention(tokens, GRID, valid if padded else None)
    torch.testing.assert_close(found, slow_attention(attention, tokens, valid))


def test_a_block_adds_each_attention_and_then_feed_forward():
    block, tokens = built("plane", "z").eval(), torch.randn(2, 24, 12)
    x = tokens + block.attentions[0](tokens, GRID)
    x = x + block.attentions[1](x, GRID)
    norm = block.feed_forward_norm
    y = F.layer_norm(x, (12,), norm.weight, norm.bias, 1e-6)
    wanted = x + block.feed_forward[3](F.gelu(block.feed_forward[0](y)))
    torch.testing.assert_close(block(tokens, GRID), wanted)


@pytest.mark.parametrize("reach", REACHES)
def test_rows_hold_tokens_that_see_each_other_and_go_back(reach):
    places = torch.arange(48).view(2, 24)
    rows = to_rows(places, GRID, reach=reach)
    for row in rows.tolist():
        assert len({place // 24 for place in row}) == 1
        assert all(sees(reach, row[0] % 24, place % 24) for place in row)
    assert torch.equal(from_rows(rows, GRID, reach=reach), places)


@pytest.mark.parametrize("reach", REACHES)
def test_nothing_is_taken_from_padding(reach):
    block, tokens = built(reach), torch.randn(1, 24, 12)
    valid = torch.rand(1, 24) < 0.7
    other = torch.where(valid[..., None], tokens, torch.randn(1, 24, 12))
    found = [block(x, GRID, valid)[valid] for x in (tokens, other)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("reach", REACHES)
def test_an_item_of_padding_alone_stays_finite_with_its_gradients(reach, dtype):
    block = built(reach)
    tokens = torch.randn(2, 24, 12, requires_grad=True)
    valid = torch.zeros(2, 24, dtype=torch.bool)
    valid[1] = True
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = block(tokens, GRID, valid)
    found.float().square().sum().backward()
    assert found.isfinite().all()
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


def test_slices_are_exchangeable_within_planes_alone():
    tokens, order = torch.randn(2, 24, 12), [2, 0, 1]
    moved = tokens.unflatten(1, (3, 8))[:, order].flatten(1, 2)
    for reach in REACHES:
        block = built(reach).eval()
        found = block(moved, GRID).unflatten(1, (3, 8))
        wanted = block(tokens, GRID).unflatten(1, (3, 8))[:, order]
        # Attention without a bias knows no order at all; along z the distance tells slices apart.
        assert torch.allclose(found, wanted, atol=1e-5) is (reach != "z")


def test_distances_are_scored_by_lines_between_knots():
    bias = DistanceBias(2, unit=1.5)
    score = dict(zip(bias.knots.tolist(), range(bias.table.shape[1]), strict=True))
    with torch.no_grad():
        bias.table[0] = bias.knots  # a straight line stays one
        bias.table[1, score[2.0]], bias.table[1, score[-1.0]] = 8.0, 4.0
    found = bias(4)
    places = 1.5 * torch.arange(4.0)
    torch.testing.assert_close(found[0], places - places[:, None])
    # 1.5 mm up: half way from 1 to 2 mm; 3 mm: half way from 2 to 4; 4.5 mm: past all of it.
    torch.testing.assert_close(found[1, 0], torch.tensor([0.0, 4.0, 4.0, 0.0]))
    # 1.5 mm down: half way from 1 to 2 mm.
    torch.testing.assert_close(found[1, 3], torch.tensor([0.0, 0.0, 2.0, 0.0]))


def test_a_distance_has_one_score_at_every_thickness_and_beyond_the_last_knot():
    fine, coarse = DistanceBias(2, unit=3.0), DistanceBias(2, unit=300.0)
    torch.nn.init.normal_(fine.table)
    coarse.load_state_dict(fine.state_dict())
    torch.testing.assert_close(fine(101)[:, 0, 100], coarse(2)[:, 0, 1])
    torch.testing.assert_close(coarse(4)[:, 0, 3], fine.table[:, -1])  # 900 mm, as 512
    torch.testing.assert_close(coarse(4)[:, 3, 0], fine.table[:, 0])


def test_a_grid_one_slice_deep_is_its_own_column():
    attention, tokens = built("z").attentions[0], torch.randn(2, 8, 12)
    value = attention.qkv(attention.norm(tokens)).chunk(3, dim=-1)[2]
    torch.testing.assert_close(attention(tokens, (1, 2, 4)), attention.out(value))


def test_a_divided_block_starts_as_one_within_planes():
    divided, plane, tokens = built("plane", "z"), built("plane"), torch.randn(2, 24, 12)
    divided.start_in_planes_()
    kept = {k: v for k, v in divided.state_dict().items() if not k.startswith("attentions.1")}
    plane.load_state_dict(kept)
    torch.testing.assert_close(divided(tokens, GRID), plane(tokens, GRID))


def test_dropout_acts_in_training_alone():
    tokens = torch.randn(2, 24, 12)
    plain = built("plane")(tokens, GRID)
    for changes in ({"dropout": 0.5}, {"attention_dropout": 0.5}):
        block = built("plane", **changes)
        assert not torch.allclose(block(tokens, GRID), plain)
        torch.testing.assert_close(block.eval()(tokens, GRID), plain)


def test_blocks_take_turns_as_their_mode_says():
    plane, z, joint = ("plane",), ("z",), ("joint",)
    wanted = {
        "plane": [plane] * 6,
        "joint": [joint] * 6,
        "divided": [("plane", "z")] * 6,
        "alternating": [plane, z] * 3,
        "hierarchical": [plane, plane, joint] * 2,
    }
    assert {mode: reaches_of(spec(attention=mode)) for mode in wanted} == wanted
    assert reaches_of(spec(attention="hierarchical", plane_blocks=1)) == [plane, joint] * 3
