"""The text encoder: what padding, order and regions change, and BERTs of a folder."""

import subprocess
import sys

import pytest
import torch

from ct3dlib.config import TextEncoderSpec
from ct3dlib.models.text_encoder import TextEncoder

TOKENS = 320
SMALL = {"encoder": {"hidden_size": 32, "num_layers": 2, "num_heads": 4}, "max_steps": 6}


def spec(**changes) -> TextEncoderSpec:
    return TextEncoderSpec.model_validate({**SMALL, **changes})


def build(**changes) -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(spec(**changes), TOKENS).eval()


def texts(lengths, *, longest: int = 12, seed: int = 0):
    """Return tokens of texts with steps of the given lengths, and random regions of them."""
    generator = torch.Generator().manual_seed(seed)
    most = max(map(len, lengths))
    ids = torch.randint(5, TOKENS, (len(lengths), most, longest), generator=generator)
    bits = torch.randint(0, 1 << 20, ids.shape, generator=generator)
    bits &= torch.randint(0, 1 << 20, ids.shape, generator=generator)
    for b, steps in enumerate(lengths):
        for s in range(most):
            ids[b, s, steps[s] if s < len(steps) else 0 :] = 0
    return ids.int(), (bits * (ids != 0)).int()


IDS, BITS = texts([[5, 9, 3], [12], [4, 4, 4]])


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
def test_steps_and_regions_are_read_as_one_by_one(pooling):
    model = build(pooling=pooling)
    out = model(IDS, BITS)
    for b in range(len(IDS)):
        steps, tokens, bits = [], [], []
        for s in range(IDS.shape[1]):
            if not IDS[b, s].any():
                continue
            only = IDS[b, s][IDS[b, s] != 0][None].long()
            read = model.bert(input_ids=only)
            states = read.last_hidden_state[0]
            step = {"cls": states[0], "mean": states.mean(0), "pooler": read.pooler_output}
            steps.append(step[pooling].reshape(-1))
            tokens += list(states)
            bits += BITS[b, s, : only.shape[1]].tolist()
        rows = model.order_norm(torch.stack(steps) + model.order.weight[: len(steps)])
        weights = ((rows @ model.key.weight.T) @ model.query / 32**0.5).softmax(0)
        torch.testing.assert_close(out.global_[b], weights @ rows, atol=1e-5, rtol=1e-5)
        for region in range(20):
            chosen = [t for t, bit in zip(tokens, bits, strict=True) if bit >> region & 1]
            assert bool(out.mentioned[b, region]) == bool(chosen)
            wanted = torch.stack(chosen).mean(0) if chosen else torch.zeros(32)
            torch.testing.assert_close(out.region[b, region], wanted, atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing():
    model = build()
    short, told = texts([[5, 3]], longest=8)
    wide, marks = texts([[5, 3], [40] * 6], longest=64, seed=1)
    wide[0], marks[0] = 0, 0
    wide[0, :2, :8], marks[0, :2, :8] = short[0], told[0]
    alone, beside = model(short, told), model(wide, marks)
    assert (alone.global_[0] - beside.global_[0]).abs().max() < 1e-5
    assert (alone.region[0] - beside.region[0]).abs().max() < 1e-5
    assert alone.mentioned[0].tolist() == beside.mentioned[0].tolist()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_order_of_steps_changes_the_text_and_not_its_regions(pooling):
    model = build(pooling=pooling)
    turned = [2, 0, 1]
    first, other = model(IDS[[0]], BITS[[0]]), model(IDS[[0]][:, turned], BITS[[0]][:, turned])
    assert (first.global_ - other.global_).abs().max() > 1e-2
    torch.testing.assert_close(first.region, other.region)


def test_regions_of_padding_do_not_count():
    model = build()
    out, other = model(IDS, BITS), model(IDS, torch.where(IDS == 0, (1 << 20) - 1, BITS))
    torch.testing.assert_close(out.region, other.region)
    assert torch.equal(out.mentioned, other.mentioned)


def test_text_without_tokens_is_zero_and_harms_none():
    model = build()
    ids, bits = IDS.clone(), BITS.clone()
    ids[1] = bits[1] = 0
    out = model(ids, bits)
    assert not out.global_[1].any()
    assert not out.region[1].any()
    assert not out.mentioned[1].any()
    torch.testing.assert_close(out.global_[[0, 2]], model(IDS, BITS).global_[[0, 2]])
    none = model(torch.zeros_like(IDS), torch.zeros_like(BITS))
    assert not none.global_.any()
    (out.global_.sum() + out.region.sum() + none.global_.sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("pooling", ["cls", "pooler"])
def test_every_weight_is_trained(pooling):
    model = build(pooling=pooling).train()
    out = model(IDS, BITS)
    ((out.global_**3).sum() + (out.region**3).sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert model.order.weight.grad[:3].abs().sum() > 0
    assert model.query.grad.abs().sum() > 0


def test_rate_zero_freezes_bert_alone():
    model = build(rate=0, dropout=0.5).train()
    assert model.training
    assert not any(part.training for part in model.bert.modules())
    assert not any(p.requires_grad for p in model.bert.parameters())
    out, again = model(IDS, BITS), model(IDS, BITS)
    assert torch.equal(out.global_, again.global_)
    assert not out.region.requires_grad
    out.global_.sum().backward()
    assert model.query.grad is not None
    assert model.train(mode=False).bert.training is False


def test_dropout_is_that_of_the_spec():
    model = build(dropout=0.5).train()
    assert not torch.equal(model(IDS, BITS).global_, model(IDS, BITS).global_)
    still = build(dropout=0.0).train()
    assert torch.equal(still(IDS, BITS).global_, still(IDS, BITS).global_)


def test_default_has_the_size_of_the_table():
    model = TextEncoder(TextEncoderSpec(), 8192)
    width, layers, inner = 256, 4, 1024
    embeddings = (8192 + 512 + 2) * width + 2 * width
    attention = 4 * (width * width + width) + 2 * width
    feed_forward = 2 * width * inner + inner + width + 2 * width
    bert = embeddings + layers * (attention + feed_forward)
    assert sum(p.numel() for p in model.bert.parameters()) == bert
    assert 5.3e6 < bert < 5.6e6
    assert model.width == 256
    assert len(model.blocks()) == 4
    assert model.bert.config._attn_implementation == "sdpa"


def test_low_precision_is_pooled_in_float32():
    model = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(IDS, BITS)
    assert out.global_.dtype == out.region.dtype == torch.float32
    assert (out.global_ - model(IDS, BITS).global_).abs().max() < 0.1
    exact = model.double()(IDS, BITS)
    assert exact.global_.dtype == exact.region.dtype == torch.float64


def test_joined_texts_have_one_step():
    model = build(joined=True)
    assert model(IDS[:, :1], BITS[:, :1]).global_.shape == (3, 32)
    with pytest.raises(ValueError, match="texts of 3 steps, wanted at most 1; raise max_steps"):
        model(IDS, BITS)


def test_token_beyond_the_vocabulary_is_refused():
    ids = IDS.clone()
    ids[0, 0, 1] = TOKENS
    with pytest.raises(ValueError, match=r"token 320 of a vocabulary of 320; use the tokenizer"):
        build()(ids, BITS)


def test_transformers_is_imported_when_it_is_needed():
    code = "import sys, ct3dlib.models.text_encoder; print('transformers' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
