import torch
import torch.nn.functional as F

from ct3dlib.config import BlocksSpec
from ct3dlib.nn.position import grid_positions, rotary_angles
from ct3dlib.nn.transformer import AdaLNZeroBlock, PreNormBlock, SwiGLU

SPEC = BlocksSpec(hidden_size=24, num_layers=1, num_heads=2, dropout=0.0)
ANGLES = rotary_angles(grid_positions((1, 2, 3), torch.device("cpu")), SPEC.head_size)


def test_a_new_block_is_the_identity_for_any_condition():
    torch.manual_seed(0)
    block = AdaLNZeroBlock(SPEC)
    tokens = torch.randn(2, 6, 24)
    out = block(tokens, condition=100 * torch.randn(2, 24), angles=ANGLES)
    assert torch.equal(out, tokens)


def test_a_plain_block_follows_its_equations():
    torch.manual_seed(0)
    block = PreNormBlock(SPEC)
    for norm in (block.attention_norm, block.feed_forward_norm):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    tokens = torch.randn(2, 6, 24)
    attended = tokens + block.attention(block.attention_norm(tokens), ANGLES)
    wanted = attended + block.feed_forward(block.feed_forward_norm(attended))
    torch.testing.assert_close(block(tokens, ANGLES), wanted)


def test_gradients_open_the_gates_and_then_reach_every_parameter():
    torch.manual_seed(0)
    block = AdaLNZeroBlock(SPEC)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    tokens, condition, target = torch.randn(2, 6, 24), torch.randn(2, 24), torch.randn(2, 6, 24)
    for _ in range(2):
        optimizer.zero_grad()
        (block(tokens, condition=condition, angles=ANGLES) - target).square().mean().backward()
        assert block.modulation.weight.grad.abs().sum() > 0
        optimizer.step()
    assert all(p.grad.abs().sum() > 0 for p in block.parameters())


def test_an_open_block_follows_its_equations():
    torch.manual_seed(0)
    block = AdaLNZeroBlock(SPEC)
    torch.nn.init.normal_(block.modulation.weight)
    tokens, condition = torch.randn(2, 6, 24), torch.randn(2, 24)
    parts = block.modulation(F.silu(condition)).view(2, 6, 24).unbind(1)
    shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (p[:, None] for p in parts)
    normed = F.layer_norm(tokens, (24,), eps=1e-6)
    half = tokens + gate_a * block.attention(normed * (1 + scale_a) + shift_a, ANGLES)
    normed = F.layer_norm(half, (24,), eps=1e-6)
    expected = half + gate_f * block.feed_forward(normed * (1 + scale_f) + shift_f)
    out = block(tokens, condition=condition, angles=ANGLES)
    torch.testing.assert_close(out, expected)


def test_swiglu_has_about_the_weights_of_a_plain_layer():
    spec = BlocksSpec(hidden_size=384, num_heads=6, mlp_ratio=4.0)
    weights = sum(p.numel() for p in SwiGLU(spec).parameters() if p.ndim == 2)
    assert abs(weights / (2 * 4 * 384**2) - 1) < 0.01


def test_swiglu_of_a_closed_gate_is_its_bias():
    torch.manual_seed(0)
    layer = SwiGLU(SPEC)
    with torch.no_grad():
        layer.gate_and_value.weight[: layer.out.in_features].zero_()
        layer.gate_and_value.bias[: layer.out.in_features].zero_()
    out = layer(torch.randn(1, 3, 24))
    torch.testing.assert_close(out, layer.out.bias.expand_as(out))
