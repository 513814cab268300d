"""Contrastive training of scans, their regions and what was written of them.

Letters: B items, M items of all ranks, D H W voxels, R regions, S sentences, L tokens of one,
E width of the shared space.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ct3dlib.config import VlmNetworkSpec, VlmSpec
from ct3dlib.losses.contrastive import contrastive_loss, similarities
from ct3dlib.losses.region_alignment import (
    region_alignment_loss,
    region_positives,
    within_scan,
    within_scan_loss,
)
from ct3dlib.metrics.retrieval import effective_rank
from ct3dlib.models.vlm import RegionLanguageModel, ScanEmbeddings
from ct3dlib.nn.intensity import windowed
from ct3dlib.training.augment import augment
from ct3dlib.training.distributed import gather_with_gradient
from ct3dlib.training.draws import uniform
from ct3dlib.training.objective import Batch, Batches, Engine, Metrics, Objective, masked_mean
from ct3dlib.training.random_state import random_state, set_random_state

_KNOWN = 211  # stream of an item's random draws
_UNKNOWN = 255  # in `regions`: nobody looked for them
_VECTORS = ("scan", "scan_region", "text", "text_region")
_SCALES = ("scale", "region_scale")
# Keys of a batch that `backward` adds: what a forward pass is for.
_EMBED, _GRADIENT = "embed alone", "gradient of {}"

Embedded = dict[str, Tensor]


class ContrastiveObjective(Objective):
    """A vision-language encoder and its losses over the batch of all ranks.

    A batch holds `values` B 1 D H W as stored, `window` B 2, `regions` B 1 D H W (1 to 20, 255:
    not known), perhaps `valid` B 1 D H W (False where padded), `input_ids` and `token_regions`
    B S L, `mention` B R (-1 not mentioned, 0 normal, 1 abnormal), and `text_id` and `study_id` B:
    items of one text or of one study are each other's right answers.
    """

    def __init__(self, spec: VlmSpec, network: VlmNetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.model = RegionLanguageModel(network)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        """Return the loss of the items of this rank among those of all.

        The mean of the ranks' losses is that of the whole batch, and so are their gradients' mean.
        """
        del turn
        embedded = self._embed(batch)
        return self._compare(embedded, _gathered(embedded))

    def forward(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        """Call `loss`, or embed alone, or embed and return what `backward` has gradients for."""
        gradients = {
            name: batch[_GRADIENT.format(name)]
            for name in (*_VECTORS, *_SCALES)
            if _GRADIENT.format(name) in batch
        }
        if not gradients and _EMBED not in batch:
            return super().forward(batch, turn)
        embedded = self._embed(batch)
        terms = [(embedded[name] * gradient).sum() for name, gradient in gradients.items()]
        return sum(terms, start=embedded["scale"].new_zeros(())), embedded

    def backward(self, micro_batches: Batches, turn: str, engine: Engine) -> Metrics:
        """Add the gradient of a whole step, whose loss does not split into micro-batches.

        Gradient caching (Gao et al., arXiv:2101.06983, section 3): embed everything without a
        graph, take the gradient of the loss with respect to the vectors, then embed each
        micro-batch again, with the same draws, and go on from its vectors' gradients. It takes the
        memory of a micro-batch and one more forward pass, and is exact; the two scales, which all
        share, get their gradient once.

        Returns:
            Loss and metrics; their mean over ranks is that of the step.
        """
        if len(micro_batches) == 1:
            return super().backward(micro_batches, turn, engine)
        device = micro_batches[0]["step"].device
        states, parts = [], []
        for batch in micro_batches:
            states.append(random_state(device))
            with torch.no_grad(), engine.micro_batch(turn, last=False):
                parts.append(engine.forward({**batch, _EMBED: batch["step"]}, turn)[1])
        embedded = _joined(parts)
        loss, metrics = self._compare(embedded, _gathered(embedded))
        gradients = _gradients(loss, embedded, [len(part["scan"]) for part in parts])
        for batch, state, gradient in zip(micro_batches, states, gradients, strict=True):
            set_random_state(state, device)
            with engine.micro_batch(turn, last=batch is micro_batches[-1]):
                surrogate, _ = engine.forward({**batch, **gradient}, turn)
                engine.backward(surrogate, turn)
        return {"loss": loss.detach(), **metrics}

    @torch.no_grad()
    def validate(self, batch: Batch) -> Metrics:
        """Return losses among the items of this batch, and how well answers are found in it.

        `mean_recall` is the mean of the recall at 1, 5 and 10, of texts for scans and of scans for
        texts; `region_accuracy` the share of valid texts of a region that lie nearest to it, of the
        regions of their scan; `effective_rank` how many dimensions the scans fill.
        """
        embedded = self._embed(batch)
        loss, metrics = self._compare(embedded, embedded)
        scans, texts = embedded["scan"], embedded["text"]
        similarity = similarities(scans, texts, scans.new_ones(()))
        same = _same(embedded, embedded)
        both = torch.cat([_ranks(similarity, same), _ranks(similarity.T, same)])
        found = {
            "mean_recall": torch.stack([(both <= k).float().mean() for k in (1, 5, 10)]).mean(),
            "region_accuracy": _region_accuracy(embedded),
            "effective_rank": scans.new_tensor(effective_rank(scans.cpu().numpy())),
        }
        return {"loss": loss, **found, **metrics}

    def blocks(self) -> Sequence[nn.Module]:
        """Return the blocks of both encoders."""
        return self.model.blocks()

    def layers(self, turn: str) -> Sequence[tuple[float, list[nn.Parameter]]]:
        """Return BERT, which may come trained, at its own rate, and all else."""
        rate = self.spec.model.text.rate
        texts = {id(p) for p in self.model.text.bert.parameters()}
        trained = self.parameters_of(turn)
        slow, rest = ([p for p in trained if (id(p) in texts) is own] for own in (True, False))
        return [(rate, slow), (1.0, rest)]

    def decayed(self, turn: str) -> list[nn.Parameter]:
        """Return the weights of layers: tables, queries and scales keep their size."""
        layers = (m for m in self.model.modules() if isinstance(m, (nn.Linear, nn.Conv3d)))
        weights = {id(layer.weight) for layer in layers}
        return [p for p in super().decayed(turn) if id(p) in weights]

    def _embed(self, batch: Batch) -> Embedded:
        """Return the vectors of a batch, both scales, and what tells right answers from others."""
        scans = self._embed_scans(batch)
        texts = self.model.embed_texts(batch["input_ids"], batch["token_regions"])
        scale, region_scale = self.model.scales()
        return {
            "scan": scans.global_,
            "scan_region": scans.region,
            "text": texts.global_,
            "text_region": texts.region,
            "scale": scale,
            "region_scale": region_scale,
            "present": scans.present,
            "valid": scans.present & texts.mentioned & (batch["mention"] >= 0),
            "normal": batch["mention"] == 0,
            "study_id": batch["study_id"],
            "text_id": batch["text_id"],
        }

    def _embed_scans(self, batch: Batch) -> ScanEmbeddings:
        """Return the vectors of scans, in training changed ones, some without their regions."""
        known = (batch["regions"] != _UNKNOWN).flatten(1).any(1)
        if self.training:
            dropped = uniform(batch["item_seed"], (1,), _KNOWN)[:, 0]
            known &= dropped >= self.spec.model.vision.region_dropout
            batch = self._augmented(batch)
        return self.model.embed_scans(
            batch["values"],
            batch["window"],
            regions=batch["regions"],
            valid=batch.get("valid"),
            known=known,
        )

    def _augmented(self, batch: Batch) -> Batch:
        """Return a batch with changed values; regions and what is valid move along."""
        if not self.spec.augment.active:
            return batch
        values, ends = batch["values"], batch["window"].float()
        pictures = values.dtype == torch.uint8
        if not pictures:
            # From the lowest to the highest HU of any window: the model sees nothing beyond.
            bounds = torch.tensor(self.model.spec.vision.bounds, device=values.device)
            ends = torch.stack([bounds.min(), bounds.max()]).expand(len(values), 2)
        unit = windowed(values, ends, onto=(0.0, 1.0))
        changed = augment({**batch, "volume": unit}, self.spec.augment, value_range=(0.0, 1.0))
        low, high = ends.view(-1, 2, 1, 1, 1, 1).unbind(1)
        values = low + changed["volume"] * (high - low)
        return {**changed, "values": values.round().byte() if pictures else values}

    def _compare(self, here: Embedded, everyone: Embedded) -> tuple[Tensor, Metrics]:
        """Return the loss of some items among everyone, and scalars to log."""
        same = _same(here, everyone)
        whole = _both_ways(here, everyone, same)
        region = _both_ways_by_region(here, everyone, same)
        within = within_scan_loss(
            here["text_region"],
            here["scan_region"],
            present=here["present"],
            valid=here["valid"],
            others_valid=everyone["valid"],
            scale=here["region_scale"],
        )
        spec = self.spec
        loss = spec.global_weight * whole + spec.region_weight * region
        loss = loss + spec.within_weight * within
        terms = {"loss_global": whole, "loss_region": region, "loss_within": within}
        scales = {name: here[name].sum() for name in _SCALES}
        return loss, {name: value.detach() for name, value in {**terms, **scales}.items()}


def _both_ways(here: Embedded, everyone: Embedded, same: Bool[Tensor, "B M"]) -> Tensor:
    """Return the loss of whole scans among texts and of texts among scans, the mean."""
    losses = [
        contrastive_loss(here[left], everyone[right], positives=same, scale=here["scale"])
        for left, right in (("scan", "text"), ("text", "scan"))
    ]
    return torch.stack(losses).mean()


def _both_ways_by_region(here: Embedded, everyone: Embedded, same: Bool[Tensor, "B M"]) -> Tensor:
    """Return the loss of regions of scans among those of texts and the other way, the mean."""
    positives = region_positives(same, here["normal"], everyone["normal"])
    losses = [
        region_alignment_loss(
            here[left],
            everyone[right],
            positives=positives,
            valid=here["valid"],
            others_valid=everyone["valid"],
            scale=here["region_scale"],
        )
        for left, right in (("scan_region", "text_region"), ("text_region", "scan_region"))
    ]
    return torch.stack(losses).mean()


def _same(here: Embedded, everyone: Embedded) -> Bool[Tensor, "B M"]:
    """Return which items are of one study or have one text."""
    study = here["study_id"][:, None] == everyone["study_id"]
    return study | (here["text_id"][:, None] == everyone["text_id"])


def _ranks(similarity: Float[Tensor, "B M"], positives: Bool[Tensor, "B M"]) -> Tensor:
    """Return the rank, from 1, of each row's best right answer; of equals wrong ones come first."""
    best = similarity.masked_fill(~positives, -torch.inf).amax(1, keepdim=True)
    return 1 + ((similarity >= best) & ~positives).sum(1)


def _region_accuracy(embedded: Embedded) -> Tensor:
    """Return how often a region's text lies nearest to that region of its scan; 0 of none."""
    texts, scans, present, valid = (
        embedded[name] for name in ("text_region", "scan_region", "present", "valid")
    )
    scale = embedded["region_scale"]
    nearest = within_scan(texts, scans, present=present, valid=valid, scale=scale).argmax(-1)
    right = nearest == torch.arange(texts.shape[1], device=texts.device)
    return masked_mean(right.float(), valid)


def _gathered(embedded: Embedded) -> Embedded:
    """Return what all ranks embedded."""
    return {
        name: value if name in _SCALES else gather_with_gradient(value)
        for name, value in embedded.items()
    }


def _joined(parts: Sequence[Embedded]) -> Embedded:
    """Return micro-batches as one batch whose vectors and scales take gradients."""
    joined = {
        name: value.clone() if name in _SCALES else torch.cat([part[name] for part in parts])
        for name, value in parts[-1].items()
    }
    return {
        name: value.requires_grad_(name in (*_VECTORS, *_SCALES)) for name, value in joined.items()
    }


def _gradients(loss: Tensor, embedded: Embedded, sizes: Sequence[int]) -> list[dict[str, Tensor]]:
    """Return what each micro-batch of these sizes is to go on from; the last has the scales'."""
    names = (*_VECTORS, *_SCALES)
    found = torch.autograd.grad(loss, [embedded[name] for name in names])
    parts: list[dict[str, Tensor]] = [{} for _ in sizes]
    for name, gradient in zip(names, found, strict=True):
        if name in _SCALES:
            shares = [torch.zeros_like(gradient)] * (len(sizes) - 1) + [gradient]
        else:
            shares = gradient.split(list(sizes))
        for part, share in zip(parts, shares, strict=True):
            part[_GRADIENT.format(name)] = share
    return parts
