"""Training of an autoencoder of volumes: reconstruct crops through codes or latents.

Letters: B crops, D H W voxels, C channels of a picture, K codes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from ct3dlib.config import KLAutoencoderSpec, TokenizerSpec
from ct3dlib.losses.adversarial import (
    LeCam,
    adaptive_weight,
    discriminator_loss,
    feature_matching,
    generator_loss,
    r1_penalty,
)
from ct3dlib.losses.divergence import kl_divergence, latent_energy
from ct3dlib.losses.perceptual import perceptual_loss
from ct3dlib.models import build_autoencoder
from ct3dlib.models.autoencoder import Reconstruction
from ct3dlib.models.discriminator import PatchDiscriminator
from ct3dlib.models.perceptual import PerceptualNetwork
from ct3dlib.models.vae import KLAutoencoder
from ct3dlib.objectives.entropy import entropy_terms
from ct3dlib.objectives.latent_pictures import latent_pictures
from ct3dlib.objectives.voxel_terms import voxel_terms
from ct3dlib.training.augment import augment
from ct3dlib.training.distributed import mean_over_ranks
from ct3dlib.training.draws import normal, uniform
from ct3dlib.training.objective import Batch, Metrics, Objective

# Streams of an item's random draws; each turn has latents of its own.
_SLICES = 100
_LATENTS = {"model": 101, "discriminator": 102}


class TokenizerObjective(Objective):
    """The sum of the terms that `spec.loss` gives a weight, each in float32.

    A batch holds `volume`, B 1 D H W in the recipe's range; training changes it as `spec.augment`
    says. Where a term needs a discriminator, it takes a turn of its own after the model's
    (Goodfellow et al., arXiv:1406.2661), from `adversarial_start` on. Validation leaves
    adversarial terms out: their value says nothing about the model alone.

    Args:
        spec: Model and weights of the loss.
        value_range: The recipe's range, for PSNR and pictures.
        perceptual: Frozen features, where the loss has a perceptual term.

    Raises:
        ValueError: The loss has a perceptual term and there are no features.
    """

    def __init__(
        self,
        spec: TokenizerSpec,
        *,
        value_range: tuple[float, float] = (-1.0, 1.0),
        perceptual: PerceptualNetwork | None = None,
    ) -> None:
        super().__init__()
        if spec.loss.perceptual and perceptual is None:
            raise ValueError("loss.perceptual needs a feature network; there is none")
        self.spec = spec
        self.value_range = value_range
        self.model = build_autoencoder(spec.model)
        if spec.freeze_encoder:
            for module in self.model.encoding_modules():
                module.requires_grad_(requires_grad=False)
        self.perceptual = perceptual
        if spec.loss.needs_discriminator:
            flat = isinstance(spec.model, KLAutoencoderSpec) and spec.model.spatial_dims == 2
            self.turns = ("model", "discriminator")
            self.discriminator = PatchDiscriminator(
                spec.discriminator, spatial_dims=2 if flat else 3
            )
            self.lecam = LeCam()

    def train(self, mode: bool = True) -> "TokenizerObjective":
        """Set the mode; a frozen encoder stays in eval mode, so that no statistic of it moves."""
        super().train(mode)
        if self.spec.freeze_encoder:
            for module in self.model.encoding_modules():
                module.eval()
        return self

    def acts(self, turn: str, step: int) -> bool:
        """Return whether a turn takes this step: the discriminator's does from its start on."""
        return turn == "model" or step >= self.spec.loss.adversarial_start

    def rate(self, turn: str) -> float:
        """Return a turn's learning rate, relative to the training's."""
        return 1.0 if turn == "model" else self.spec.discriminator_rate

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        """Return the weighted sum of the terms, and the terms."""
        if self.training:
            batch = augment(batch, self.spec.augment, value_range=self.value_range)
        volumes = batch["volume"]
        if turn == "discriminator":
            return self._judge(batch)
        result = self._reconstruct(batch, turn)
        width = self.value_range[1] - self.value_range[0]
        weighted, metrics = voxel_terms(result.volumes, volumes, self.spec.loss, data_range=width)
        if self.spec.loss.perceptual:
            metrics["perceptual"] = self._perceive(result.volumes, batch)
            weighted = weighted + self.spec.loss.perceptual * metrics["perceptual"]
        weighted = weighted + self._latent_terms(result, batch["step"], metrics)
        psnr_db = self._psnr_db(result.volumes, volumes)
        metrics["psnr_db"] = psnr_db.mean()
        if not self.training:
            metrics["combined"] = combined(psnr_db, metrics)
        if self.training and self._listens(int(batch["step"])):
            weighted = weighted + self._adversarial_terms(
                result.volumes, volumes, weighted, metrics
            )
        return weighted, {name: value.detach() for name, value in metrics.items()}

    def blocks(self) -> Sequence[nn.Module]:
        """Return the model's blocks."""
        return self.model.blocks()

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return slices of the first crop: original, reconstruction, difference + 0.5.

        Of a variational model also what `latent_pictures` shows.
        """
        volumes = batch["volume"][:1]
        original, reconstructed = (
            self._unit(v)[0].movedim(0, 1) for v in (volumes, self.model(volumes).volumes)
        )  # D 1 H W
        difference = (reconstructed - original + 1) / 2
        movie = torch.cat((original, reconstructed, difference), dim=3)
        found = {"reconstruction": movie[len(movie) // 2]}
        if len(movie) > 1:
            found["reconstruction_movie"] = movie
        if isinstance(self.model, KLAutoencoder):
            shown = latent_pictures(self.model, batch["volume"], seed=self.spec.seed)
            found |= {name: self._unit(picture) for name, picture in shown.items()}
        return found

    def _listens(self, step: int) -> bool:
        """Return whether the discriminator is listened to at a step."""
        return self.spec.loss.needs_discriminator and self.acts("discriminator", step)

    def _reconstruct(self, batch: Batch, turn: str) -> Reconstruction:
        """Return a pass of the model; what it draws in training belongs to the item."""
        volumes, model = batch["volume"], self.model
        if not (self.training and isinstance(model, KLAutoencoder)):
            return model(volumes)
        shape = (model.spec.latent_channels, *model.grid(volumes.shape[2:]))
        return model(volumes, normal(batch["item_seed"], shape, _LATENTS[turn]))

    def _judge(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Return the discriminator's loss on real crops and their reconstructions."""
        weights, volumes, step = self.spec.loss, batch["volume"], int(batch["step"])
        with torch.no_grad():
            reconstructed = self._reconstruct(batch, "discriminator").volumes
        real, fake = self.discriminator(volumes).logits, self.discriminator(reconstructed).logits
        loss = discriminator_loss(real, fake, weights.adversarial_loss)
        metrics = {
            "real_logit": real.float().mean().detach(),
            "fake_logit": fake.float().mean().detach(),
            "adversarial": loss.detach(),
        }
        if weights.lecam:
            metrics["lecam"] = self.lecam(real, fake)
            loss = loss + weights.lecam * metrics["lecam"]
        if weights.r1 and step % weights.r1_every == 0:
            metrics["r1"] = r1_penalty(lambda v: self.discriminator(v).logits, volumes)
            loss = loss + weights.r1 * metrics["r1"]
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _adversarial_terms(
        self,
        reconstructed: Float[Tensor, "B 1 D H W"],
        volumes: Float[Tensor, "B 1 D H W"],
        others: Tensor,
        metrics: Metrics,
    ) -> Tensor:
        """Return what the discriminator adds to the model's loss."""
        weights = self.spec.loss
        fake = self.discriminator(reconstructed)
        total = others.new_zeros(())
        if weights.adversarial:
            term = generator_loss(fake.logits, weights.adversarial_loss)
            weight = others.new_tensor(weights.adversarial)
            if weights.adaptive_limit is not None:
                last = self.model.last_layer()
                weight = weight * adaptive_weight(
                    others,
                    term,
                    last_layer=last,
                    limit=weights.adaptive_limit,
                    average=mean_over_ranks,
                )
            metrics |= {"generator": term, "adversarial_weight": weight}
            total = total + weight * term
        if weights.feature_matching:
            with torch.no_grad():
                real = self.discriminator(volumes)
            metrics["feature_matching"] = feature_matching(real.features, fake.features)
            total = total + weights.feature_matching * metrics["feature_matching"]
        return total

    def _latent_terms(
        self, result: Reconstruction, step: Int64[Tensor, ""], metrics: Metrics
    ) -> Tensor:
        """Return the terms of codes or of the posterior, and add them to the metrics."""
        weights = self.spec.loss
        if result.posterior is not None:
            fixed = isinstance(self.spec.model, KLAutoencoderSpec) and self.spec.model.fixed_std
            mean, std = result.posterior.mean, result.posterior.std
            metrics["kl"] = (
                kl_divergence(mean, std, free_bits=weights.free_bits)
                if fixed is None
                else latent_energy(mean)
            )
            metrics["beta"] = self.beta(step)
            return metrics["beta"] * metrics["kl"]
        if result.quantized is None:
            return result.volumes.new_zeros(())
        metrics["code_usage"] = _code_usage(
            result.quantized.indices, self.model.tokens.codebook_size
        )
        if not (weights.entropy or weights.entropy_start or weights.commitment):
            return result.volumes.new_zeros(())
        return entropy_terms(result, weights, step=step, metrics=metrics, whole_batch=self.training)

    def beta(self, step: Int64[Tensor, ""]) -> Float[Tensor, ""]:
        """Return the weight of the KL term at a step: it rises on a line over `kl_warmup`."""
        warmup = self.spec.loss.kl_warmup * self.spec.steps
        return self.spec.loss.kl * (step.float() / max(warmup, 1e-9)).clamp(max=1)

    def _perceive(self, reconstructed: Float[Tensor, "B 1 D H W"], batch: Batch) -> Tensor:
        """Return the distance of the frozen features of some slices."""
        if self.perceptual is None:
            raise ValueError("loss.perceptual needs a feature network; there is none")
        slices = self._drawn_slices(batch, reconstructed.shape[2])
        with torch.no_grad():
            wanted = self.perceptual(batch["volume"], slices)
        return perceptual_loss(self.perceptual(reconstructed, slices), wanted)

    def _drawn_slices(self, batch: Batch, depth: int) -> Int[Tensor, "B S"]:
        """Return the slices of each crop that are compared."""
        count = min(self.spec.perceptual.slices, depth)
        return uniform(batch["item_seed"], (depth,), _SLICES).argsort(dim=1)[:, :count]

    def _psnr_db(
        self, reconstructed: Float[Tensor, "B 1 D H W"], volumes: Float[Tensor, "B 1 D H W"]
    ) -> Float[Tensor, " B"]:
        """Return the PSNR of each clamped reconstruction, at most 100 dB."""
        error = (self._unit(reconstructed) - self._unit(volumes)).square().flatten(1).mean(1)
        return -10 * error.clamp_min(1e-10).log10()

    def _unit(self, volumes: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return values clamped to the range, mapped onto [0, 1], float32."""
        low, high = self.value_range
        return (volumes.float().clamp(low, high) - low) / (high - low)


def combined(psnr_db: Float[Tensor, " B"], metrics: Metrics) -> Float[Tensor, ""]:
    """Return one number to choose weights by, as prod9's.

    clamp((PSNR - 20) / 20, 0, 1), mean over crops, + SSIM - perceptual distance, of which the last
    two count where the loss has them.
    """
    found = ((psnr_db - 20) / 20).clamp(0, 1).mean()
    if "ssim" in metrics:
        found = found + 1 - metrics["ssim"]
    return found - metrics["perceptual"] if "perceptual" in metrics else found


def _code_usage(indices: Int64[Tensor, "B D H W"], codebook_size: int) -> Float[Tensor, ""]:
    """Return distinct indices over the most there could be, without waiting for the device."""
    ordered = indices.flatten().sort().values
    distinct = 1 + (ordered[1:] != ordered[:-1]).sum()
    return distinct / min(codebook_size, ordered.numel())
