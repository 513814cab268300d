import torch
import torch.nn.functional as F

from ct3dlib.config import VisionTransformerSpec
from ct3dlib.nn.vit import ViTBlock

SPEC = VisionTransformerSpec(hidden_size=24, num_layers=1, num_heads=3)


def block(drop_path: float = 0.0) -> ViTBlock:
    torch.manual_seed(0)
    return ViTBlock(SPEC, drop_path)


def test_a_block_is_attention_and_feed_forward_written_out():
    one, tokens = block().eval(), torch.randn(2, 5, 24)
    x = F.layer_norm(tokens, (24,), one.attention_norm.weight, one.attention_norm.bias, 1e-6)
    query, key, value = one.qkv(x).chunk(3, dim=-1)
    gathered = []
    for head in range(3):
        part = slice(8 * head, 8 * head + 8)
        weights = (query[..., part] @ key[..., part].transpose(1, 2) / 8**0.5).softmax(-1)
        gathered.append(weights @ value[..., part])
    x = tokens + one.attention_out(torch.cat(gathered, dim=-1))
    y = F.layer_norm(x, (24,), one.feed_forward_norm.weight, one.feed_forward_norm.bias, 1e-6)
    wanted = x + one.feed_forward[2](F.gelu(one.feed_forward[0](y)))
    torch.testing.assert_close(one(tokens), wanted)


def test_branches_are_dropped_by_item_and_keep_their_mean():
    tokens = torch.randn(1, 4, 24).expand(4000, -1, -1)
    torch.manual_seed(1)
    dropped = block(0.5).train()(tokens) - tokens
    whole = dropped[:, 0].abs().sum(1) > 0
    assert 0.7 < whole.float().mean() < 0.8  # either branch stays with a chance of a half
    attended = block().eval()._attend(block().attention_norm(tokens[:1]))
    kept = block(0.5).train()._kept(attended.expand(4000, -1, -1))
    torch.testing.assert_close(kept.mean(0, keepdim=True), attended, rtol=0.1, atol=0.02)
    torch.testing.assert_close(block(0.5).eval()(tokens[:1]), block().eval()(tokens[:1]))


def test_attention_that_is_looked_at_is_what_the_block_takes():
    one, tokens = block().eval(), torch.randn(2, 5, 24)
    normed = one.attention_norm(tokens)
    value = one.qkv(normed).chunk(3, dim=-1)[2].unflatten(-1, (3, 8)).transpose(1, 2)
    shares = one.attention(tokens)
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, 3, 5))
    gathered = (shares @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(one.attention_out(gathered), one._attend(normed))
