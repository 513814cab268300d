"""Training of a volume tokenizer: reconstruct crops through quantized latents.

Letters: B crops, D H W voxels, C channels of a picture, K codes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ct3dlib.config import TokenizerSpec
from ct3dlib.losses.entropy import (
    batch_entropy,
    code_probabilities,
    commitment,
    sample_entropy,
)
from ct3dlib.losses.reconstruction import absolute_error, squared_error
from ct3dlib.models.tokenizer import CausalTokenizer
from ct3dlib.nn.conv import ResBlock
from ct3dlib.training.augment import augment
from ct3dlib.training.distributed import mean_over_ranks
from ct3dlib.training.objective import Batch, Metrics, Objective


class TokenizerObjective(Objective):
    """L1 of the reconstruction, entropy of the code assignments, commitment to the codes.

    loss = l1 * L1 + w(step) * (H_sample - diversity * H_batch) + commitment * |z - sg(code)|^2,
    with w falling linearly from `entropy_start` to `entropy`; as MAGVIT-v2 (Yu et al.,
    arXiv:2310.05737, eq. 5), without its adversarial and perceptual terms.

    A batch holds `volume`, B 1 D H W in the recipe's range; training changes it as `spec.augment`
    says. H_batch belongs to the whole batch: its code probabilities are averaged over ranks, but
    micro-batches have one each.

    Args:
        spec: Model and weights of the loss.
        value_range: The recipe's range, for PSNR and pictures.
    """

    def __init__(
        self, spec: TokenizerSpec, *, value_range: tuple[float, float] = (-1.0, 1.0)
    ) -> None:
        super().__init__()
        self.spec = spec
        self.value_range = value_range
        self.model = CausalTokenizer(spec.model)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        """Return the weighted sum of the terms, and the terms."""
        del turn  # there is one
        if self.training:
            batch = augment(batch, self.spec.augment, value_range=self.value_range)
        weights, volumes = self.spec.loss, batch["volume"]
        result = self.model(volumes)
        l1 = absolute_error(result.volumes, volumes)
        l2 = squared_error(result.volumes, volumes)
        sure = sample_entropy(result.latents, sharpness=weights.sharpness)
        shares = code_probabilities(result.latents, sharpness=weights.sharpness)
        diverse = batch_entropy([self._of_batch(p) for p in shares])
        committed = commitment(result.latents, result.quantized.codes)
        loss = (
            weights.l1 * l1
            + weights.l2 * l2
            + self.entropy_weight(batch["step"]) * (sure - weights.diversity * diverse)
            + weights.commitment * committed
        )
        metrics = {
            "l1": l1,
            "l2": l2,
            "psnr_db": self._psnr_db(result.volumes, volumes),
            "sample_entropy": sure,
            "batch_entropy": diverse,
            "commitment": committed,
            "code_usage": _code_usage(result.quantized.indices, self.model.quantizer.codebook_size),
        }
        return loss, {name: value.detach() for name, value in metrics.items()}

    def blocks(self) -> Sequence[nn.Module]:
        """Return the residual blocks."""
        return [module for module in self.model.modules() if isinstance(module, ResBlock)]

    def entropy_weight(self, step: Int64[Tensor, ""]) -> Float[Tensor, ""]:
        """Return the weight of the entropy terms at a step."""
        weights = self.spec.loss
        done = (step.float() / max(weights.entropy_warmup_steps, 1)).clamp(max=1)
        if weights.entropy_warmup_steps == 0:
            done = torch.ones_like(done)
        return weights.entropy_start + done * (weights.entropy - weights.entropy_start)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return the first crop's middle slice: original, reconstruction, difference + 0.5."""
        volumes = batch["volume"][:1]
        original, reconstructed = (
            self._unit(v)[0, :, v.shape[2] // 2] for v in (volumes, self.model(volumes).volumes)
        )  # 1 H W
        difference = (reconstructed - original + 1) / 2
        return {"reconstruction": torch.cat((original, reconstructed, difference), dim=2)}

    def _of_batch(self, probabilities: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """Return the mean over ranks, through which the gradient of this rank's part passes.

        Averaged over ranks, as DistributedDataParallel does, it is the gradient of the whole batch.
        Validation stays on its rank: ranks may validate different numbers of batches.
        """
        if not self.training:
            return probabilities
        return probabilities + (mean_over_ranks(probabilities) - probabilities).detach()

    def _psnr_db(
        self, reconstructed: Float[Tensor, "B 1 D H W"], volumes: Float[Tensor, "B 1 D H W"]
    ) -> Float[Tensor, ""]:
        """Return the PSNR of a batch of clamped reconstructions, at most 100 dB."""
        error = squared_error(self._unit(reconstructed), self._unit(volumes))
        return -10 * error.clamp_min(1e-10).log10()

    def _unit(self, volumes: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return values clamped to the range, mapped onto [0, 1], float32."""
        low, high = self.value_range
        return (volumes.float().clamp(low, high) - low) / (high - low)


def _code_usage(indices: Int64[Tensor, "B D H W"], codebook_size: int) -> Float[Tensor, ""]:
    """Return distinct indices over the most there could be, without waiting for the device."""
    ordered = indices.flatten().sort().values
    distinct = 1 + (ordered[1:] != ordered[:-1]).sum()
    return distinct / min(codebook_size, ordered.numel())
