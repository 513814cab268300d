"""The terms of lookup-free quantization in a training's loss.

Letters: K codes.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ct3dlib.config import TokenizerLossSpec
from ct3dlib.losses.entropy import (
    batch_entropy,
    code_probabilities,
    commitment,
    sample_entropy,
)
from ct3dlib.models.autoencoder import Reconstruction
from ct3dlib.training.distributed import mean_over_ranks
from ct3dlib.training.objective import Metrics


def entropy_terms(
    result: Reconstruction,
    weights: TokenizerLossSpec,
    *,
    step: Int64[Tensor, ""],
    metrics: Metrics,
    whole_batch: bool,
) -> Float[Tensor, ""]:
    """Return w(step) * (H_sample - diversity * H_batch) + commitment * |z - sg(code)|^2.

    As MAGVIT-v2 (Yu et al., arXiv:2310.05737, eq. 5). H_batch belongs to the whole batch: its code
    probabilities are averaged over ranks, but micro-batches have one each.

    Args:
        result: Of a model with an LFQ quantizer.
        weights: Of the terms.
        step: Of the training.
        metrics: Takes the terms.
        whole_batch: Average over ranks; not in validation, as ranks may validate different numbers
            of batches.
    """
    quantized = result.quantized
    if quantized is None:
        raise ValueError("entropy terms are of codes, and the model has no quantizer")
    sure = sample_entropy(result.latents, sharpness=weights.sharpness)
    shares = code_probabilities(result.latents, sharpness=weights.sharpness)
    diverse = batch_entropy([_of_batch(p) if whole_batch else p for p in shares])
    committed = commitment(result.latents, quantized.codes)
    metrics |= {"sample_entropy": sure, "batch_entropy": diverse, "commitment": committed}
    surprise = sure - weights.diversity * diverse
    return entropy_weight(weights, step) * surprise + weights.commitment * committed


def entropy_weight(weights: TokenizerLossSpec, step: Int64[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the weight of the entropies at a step: a line from `entropy_start` to `entropy`."""
    done = (step.float() / max(weights.entropy_warmup_steps, 1)).clamp(max=1)
    if weights.entropy_warmup_steps == 0:
        done = torch.ones_like(done)
    return weights.entropy_start + done * (weights.entropy - weights.entropy_start)


def _of_batch(probabilities: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """Return the mean over ranks, through which the gradient of this rank's part passes.

    Averaged over ranks, as DistributedDataParallel does, it is the gradient of the whole batch.
    """
    return probabilities + (mean_over_ranks(probabilities) - probabilities).detach()
