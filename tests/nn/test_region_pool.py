import pytest
import torch

from ct3dlib.config.encoder import VisionTransformerSpec
from ct3dlib.nn.region_pool import RegionPool, bias

SPEC = VisionTransformerSpec(hidden_size=12, num_layers=1, num_heads=3)
EVERYONE = torch.ones(2, dtype=torch.bool)


def built() -> RegionPool:
    torch.manual_seed(0)
    pool = RegionPool(SPEC)
    torch.nn.init.normal_(pool.queries)
    return pool


def shares(**regions: list[float]) -> torch.Tensor:
    """Return shares of five patches, the same in two volumes: r3=[...] is region 3's."""
    occupied = torch.zeros(2, 5, 20)
    for name, of_patches in regions.items():
        occupied[:, :, int(name[1:]) - 1] = torch.tensor(of_patches)
    return occupied


def slow_pool(pool: RegionPool, tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Pool with one query, head by head: softmax of scores, each patch counted `weights` times."""
    key, value = pool.key_value(tokens).chunk(2, dim=-1)
    found = torch.zeros(21, 12)
    for query in range(21):
        for head in range(3):
            part = slice(4 * head, 4 * head + 4)
            grown = (key[:, part] @ pool.queries[query, part] / 2).exp() * weights
            found[query, part] = (grown / grown.sum()) @ value[:, part]
    return pool.out(found)


def pooled(pool, tokens, occupied, *, known=EVERYONE, valid=None):
    present = occupied.sum(1) > 0
    return pool(tokens, occupied, present=present, known=known, valid=valid)


def test_a_region_weighs_its_patches_by_their_shares():
    pool, tokens = built(), torch.randn(2, 5, 12)
    found = pooled(pool, tokens, shares(r1=[0.5, 0.125, 0, 0, 0], r20=[0, 0, 0, 0, 1]))
    for item in range(2):
        weighed = slow_pool(pool, tokens[item], torch.tensor([0.5, 0.125, 0, 0, 0]))
        torch.testing.assert_close(found.region[item, 0], weighed[1])
        alone = pool.out(pool.key_value(tokens[item, 4])[12:])
        torch.testing.assert_close(found.region[item, 19], alone)
        everywhere = slow_pool(pool, tokens[item], torch.ones(5))
        torch.testing.assert_close(found.global_[item], everywhere[0])


def test_nothing_outside_a_regions_patches_reaches_it():
    pool = built()
    tokens = torch.randn(2, 5, 12, requires_grad=True)
    found = pooled(pool, tokens, shares(r4=[0, 1, 0.25, 0, 0], r5=[0, 0, 0.5, 1, 1]))
    for region, inside in ((4, [1, 2]), (5, [2, 3, 4])):
        of_tokens = torch.autograd.grad(
            found.region[:, region - 1].sum(), tokens, retain_graph=True
        )[0]
        touched = of_tokens.abs().sum(-1) > 0
        assert touched[0].nonzero().flatten().tolist() == inside
    everywhere = torch.autograd.grad(found.global_.sum(), tokens)[0]
    assert (everywhere.abs().sum(-1) > 0).all()


def test_swapped_labels_swap_what_two_regions_look_at():
    pool, tokens = built(), torch.randn(2, 5, 12)
    with torch.no_grad():
        pool.queries[2] = pool.queries[3]  # regions 2 and 3 ask the same
    first, second = [0.5, 1.0, 0, 0, 0], [0, 0, 0.25, 1.0, 0]
    one = pooled(pool, tokens, shares(r2=first, r3=second)).region
    other = pooled(pool, tokens, shares(r2=second, r3=first)).region
    torch.testing.assert_close(one[:, [1, 2]], other[:, [2, 1]])
    assert not torch.allclose(one[:, 1], one[:, 2])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_absent_regions_are_learnt_vectors_and_gradients_stay_finite(precision):
    pool = built()
    tokens = torch.randn(2, 5, 12, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        found = pooled(pool, tokens, shares(r2=[1, 0, 0, 0, 0]))
    gone = [r for r in range(20) if r != 1]
    torch.testing.assert_close(found.region[:, gone], pool.absent[gone].expand(2, -1, -1))
    (found.region.float().square().sum() + found.global_.float().square().sum()).backward()
    for part in (tokens, *pool.parameters()):
        assert part.grad is not None
        assert part.grad.isfinite().all()
    assert pool.absent.grad is not None
    assert not pool.absent.grad[1].any()


def test_queries_look_anywhere_where_regions_are_not_known():
    pool, tokens = built(), torch.randn(2, 5, 12)
    known = torch.tensor([True, False])
    found = pooled(pool, tokens, shares(r3=[1, 0, 0, 0, 0]), known=known)
    free = slow_pool(pool, tokens[1], torch.ones(5))
    torch.testing.assert_close(found.region[1], free[1:])
    torch.testing.assert_close(found.region[0, 0], pool.absent[0])
    nothing = pooled(pool, tokens, shares(), known=known)
    torch.testing.assert_close(nothing.region[1], free[1:])


def test_padding_is_not_looked_at():
    pool, tokens = built(), torch.randn(2, 5, 12)
    valid = torch.tensor([[True, True, True, False, False], [True] * 5])
    known = torch.tensor([True, False])
    occupied = shares(r3=[0, 0.5, 0.5, 0, 0])
    found = pooled(pool, tokens, occupied, known=known, valid=valid)
    cut = slow_pool(pool, tokens[0], valid[0].float())
    torch.testing.assert_close(found.global_[0], cut[0])
    other = torch.where(valid[..., None], tokens, 9.0)
    again = pooled(pool, other, occupied, known=known, valid=valid)
    torch.testing.assert_close(again.region, found.region)


def test_a_query_with_nothing_to_look_at_has_no_infinite_scores():
    occupied = shares(r1=[0.5, 0, 0, 0, 1])
    valid = torch.zeros(2, 5, dtype=torch.bool)
    assert not bias(occupied, known=EVERYONE, valid=valid).any()
    scores = bias(occupied, known=EVERYONE, valid=None)
    assert scores.shape == (2, 21, 5)
    wanted = torch.tensor([0.5, 0, 0, 0, 1]).log()
    assert torch.equal(scores[0, 1], wanted)
    assert not scores[0, 0].any()
    assert not scores[0, 2:].any()
