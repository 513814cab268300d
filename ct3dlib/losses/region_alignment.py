"""Regions of scans and what was written of them, told from one another.

Letters: n items on the left, m on the right, B items, R regions, E length of a vector.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ct3dlib.losses.contrastive import cross_entropies, similarities

_FEWEST = 2  # items with a region from which on there is something to tell apart


def region_positives(
    same: Bool[Tensor, "n m"], normal: Bool[Tensor, "n R"], others_normal: Bool[Tensor, "m R"]
) -> Bool[Tensor, "n m R"]:
    """Return which items say the same of a region: those of one text, and all that call it normal.

    Most regions of most patients are normal; without this every other patient's "the heart is
    normal" would be a wrong answer (after fVLM: Shui et al., arXiv:2501.14548).
    """
    return same[..., None] | (normal[:, None] & others_normal)


def region_alignment_loss(
    left: Float[Tensor, "n R E"],
    right: Float[Tensor, "m R E"],
    *,
    positives: Bool[Tensor, "n m R"],
    valid: Bool[Tensor, "n R"],
    others_valid: Bool[Tensor, "m R"],
    scale: Float[Tensor, "*one"],
) -> Float[Tensor, ""]:
    """Return the mean cross entropy of valid left regions over the same region of all items, nats.

    One direction of sum_r n_r L_r / sum_r n_r, with n_r the valid items of region r on the right,
    L_r the contrastive loss among them; a region with fewer than two does not count. Without any
    that counts the loss is 0, with gradients of 0.

    Where ranks hold the left items in equal parts and all of the right ones, the mean of their
    losses is that of the whole batch.

    Args:
        left: Of length 1 where valid, finite elsewhere.
        right: Of length 1 where valid, finite elsewhere.
        positives: Of `region_positives`; of a valid item one at least is valid.
        valid: Which regions of the left items count.
        others_valid: Which regions of the right items count.
        scale: Of the cosines: one number.
    """
    items = others_valid.sum(0)  # R
    counted = items >= _FEWEST
    rows = (valid & counted).mT  # R n
    # What does not count keeps its finite logits: a row of -inf alone would give NaN.
    wanted = others_valid.mT[:, None] | ~rows[..., None]  # R n m
    logits = similarities(left.transpose(0, 1), right.transpose(0, 1), scale)
    logits = logits.masked_fill(~wanted, -torch.inf)
    costs = cross_entropies(logits, positives.permute(2, 0, 1) & wanted)
    ranks = len(right) / len(left)
    total = torch.where(counted, items, 0).sum().clamp_min(1)
    return torch.where(rows, costs, 0.0).sum() * ranks / total


def within_scan_loss(
    texts: Float[Tensor, "B R E"],
    scans: Float[Tensor, "B R E"],
    *,
    present: Bool[Tensor, "B R"],
    valid: Bool[Tensor, "B R"],
    others_valid: Bool[Tensor, "M R"],
    scale: Float[Tensor, "*one"],
) -> Float[Tensor, ""]:
    """Return the mean cross entropy of a region's text over the regions of its own scan, nats.

    It keeps the vectors of regions apart, which a loss among items alone does not ask for. Without
    anything valid it is 0, with gradients of 0. Ranks share it as `region_alignment_loss`.

    Args:
        texts: Of length 1 where valid, finite elsewhere.
        scans: Of length 1 where present, finite elsewhere.
        present: Which regions a scan holds: the answers to choose from.
        valid: Which texts count; their regions are present.
        others_valid: `valid` of the items of all ranks.
        scale: Of the cosines: one number.
    """
    logits = within_scan(texts, scans, present=present, valid=valid, scale=scale)
    itself = torch.eye(texts.shape[1], dtype=torch.bool, device=texts.device)
    costs = cross_entropies(logits, itself.expand_as(logits))
    ranks = len(others_valid) / len(valid)
    return torch.where(valid, costs, 0.0).sum() * ranks / others_valid.sum().clamp_min(1)


def within_scan(
    texts: Float[Tensor, "B R E"],
    scans: Float[Tensor, "B R E"],
    *,
    present: Bool[Tensor, "B R"],
    valid: Bool[Tensor, "B R"],
    scale: Float[Tensor, "*one"],
) -> Float[Tensor, "B R R"]:
    """Return scaled cosines of each text (rows) with each region of its scan, -inf where absent.

    The rows of texts that do not count are finite.
    """
    absent = ~present[:, None] & valid[..., None]
    return similarities(texts, scans, scale).masked_fill(absent, -torch.inf)
