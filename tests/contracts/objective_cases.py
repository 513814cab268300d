"""Small objectives with their items, one table for all contract tests.

Run as a module under torchrun's environment, it trains every case and writes the weights.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ct3dlib.config import (
    AugmentSpec,
    AutoencoderSpec,
    CausalTokenizerSpec,
    ClassifierSpec,
    DiscriminatorSpec,
    FeaturesSpec,
    FSQSpec,
    HeadSpec,
    KLAutoencoderSpec,
    LFQSpec,
    MaeFinetuneSpec,
    MaeSegmentSpec,
    MaeSpec,
    MaisiTokenizerSpec,
    MaskedAutoencoderNetworkSpec,
    MaskedAutoencoderSpec,
    MaskGITNetworkSpec,
    MaskGITSpec,
    PredictorNetworkSpec,
    SegmenterNetworkSpec,
    SlabSpec,
    SliceFeaturesSpec,
    Task,
    TextSpec,
    TokenizerLossSpec,
    TokenizerSpec,
    TrainSpec,
    TransformerSpec,
    VisionTransformerSpec,
    VlmNetworkSpec,
    VlmSpec,
    VolumeClassifierNetworkSpec,
    VolumeEncoderNetworkSpec,
    VolumeEncoderSpec,
)
from ct3dlib.config.finetune import Pooling
from ct3dlib.objectives.classify import ClassifyObjective
from ct3dlib.objectives.contrastive import ContrastiveObjective
from ct3dlib.objectives.finetune import FinetuneObjective
from ct3dlib.objectives.mae import MaskedAutoencoderObjective
from ct3dlib.objectives.maskgit import MaskGITObjective
from ct3dlib.objectives.segment import SegmentObjective
from ct3dlib.objectives.slice_features import SliceFeaturesObjective
from ct3dlib.objectives.tokenizer import TokenizerObjective
from ct3dlib.training.draws import uniform
from ct3dlib.training.loader import Items
from ct3dlib.training.loop import train
from ct3dlib.training.objective import Batch, Metrics, Objective, masked_mean


class Vectors(Items):
    """Vectors on a curve with a little noise of their own."""

    def __len__(self) -> int:
        return 13

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        x = np.sin(index + np.arange(6)) + rng.normal(0, 0.01, 6)
        return {"x": torch.from_numpy(x).float()}


class Regression(Objective):
    """Sum of a vector; the input noise belongs to the item."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 1))

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        noise = 0.1 * uniform(batch["item_seed"], (6,))
        loss = (self.model(batch["x"] + noise)[:, 0] - batch["x"].sum(1)).square().mean()
        return loss, {"rmse": loss.detach().sqrt()}


class Adversarial(Objective):
    """A bottleneck that a discriminator judges too."""

    turns = ("generator", "discriminator")

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 6))
        self.discriminator = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        made = self.generator(batch["x"])
        if turn == "generator":
            l1 = (made - batch["x"]).abs().mean()
            return l1 - 0.01 * self.discriminator(made).mean(), {"l1": l1.detach()}
        real, fake = self.discriminator(batch["x"]), self.discriminator(made.detach())
        loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        return loss, {"margin": (real - fake).detach().mean()}


class Masked(Objective):
    """Hidden components from visible ones; how many are hidden differs from item to item."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 6))

    def _masked(self, batch: Batch) -> Tensor:
        share = 0.2 + 0.7 * uniform(batch["item_seed"], (1,))
        masked = uniform(batch["item_seed"], (6,), 1) < share
        masked[:, 0] = True
        return masked

    def weight(self, batch: Batch, turn: str) -> Tensor:
        return self._masked(batch).float().sum()

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        masked = self._masked(batch)
        made = self.model(torch.where(masked, 0.0, batch["x"]))
        return masked_mean((made - batch["x"]).square(), masked), {}


class Blobs(Items):
    """Small volumes with one bright ball each."""

    def __len__(self) -> int:
        return 9

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        d, h, w = np.meshgrid(np.arange(3), np.arange(8), np.arange(8), indexing="ij")
        center = rng.uniform(2, 6, 2)
        ball = (d - 1) ** 2 + (h - center[0]) ** 2 + (w - center[1]) ** 2 < 6
        return {"volume": torch.from_numpy(np.where(ball, 0.5, -0.5)).float()[None]}


class BlobPairs(Items):
    """Two slices of the blobs."""

    def __len__(self) -> int:
        return len(Blobs())

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        return {"volume": Blobs().item(index, rng)["volume"][:, 1:].contiguous()}


class LabelledBlobs(Items):
    """Blobs, every other one dark; the labels say which."""

    def __len__(self) -> int:
        return len(Blobs())

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        dark = index % 2
        volume = Blobs().item(index, rng)["volume"]
        return {
            "volume": -volume if dark else volume,
            "labels": torch.tensor([dark, 1 - dark], dtype=torch.float32),
        }


class StoredBlobs(Items):
    """Blobs in HU, as a store has them."""

    def __len__(self) -> int:
        return len(Blobs())

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        volume = Blobs().item(index, rng)["volume"][:, :2].contiguous()
        return {
            "values": (1000 * volume).to(torch.int16),
            "window": torch.tensor([-1000.0, 1000.0]),
        }


class TargetBlobs(Items):
    """Blobs in HU, every other one dark; the targets say which, one of them not always."""

    def __len__(self) -> int:
        return len(Blobs())

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        item, dark = StoredBlobs().item(index, rng), index % 2
        values = -item["values"] if dark else item["values"]
        targets = torch.tensor([dark, np.nan if index == 4 else 1 - dark], dtype=torch.float32)
        return {**item, "values": values, "targets": targets}


class BlobSlices(Items):
    """The middle slices of the blobs, whose balls are regions."""

    def __len__(self) -> int:
        return len(Blobs())

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        volume = Blobs().item(index, rng)["volume"][:, 1:2]
        return {"volume": volume, "regions": (volume > 0).long()}


class BlobMasks(Items):
    """Blobs in HU, whose balls are a class.

    All three slices: where a grid is two deep, oneDNN's gradient of a convolution in bfloat16 holds
    memory that nobody wrote.
    """

    def __len__(self) -> int:
        return len(Blobs())

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        volume = Blobs().item(index, rng)["volume"]
        return {
            "values": (1000 * volume).to(torch.int16),
            "window": torch.tensor([-1000.0, 1000.0]),
            "mask": (volume > 0).byte(),
        }


class Grids(Items):
    """Token grids of two kinds with their label."""

    def __len__(self) -> int:
        return 8

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        kind = index % 2
        return {
            "indices": torch.full((2, 3, 4), 21 * (2 - kind)),
            "labels": torch.tensor([float(kind)]),
            "label_present": torch.tensor(index != 3),
        }


class Slabs(Items):
    """Windows of longer grids, whose indices change half way up."""

    def __len__(self) -> int:
        return len(Grids())

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        start = int(rng.integers(4))
        places = torch.arange(start, start + 3)[:, None, None]
        return {
            **Grids().item(index, rng),
            "indices": torch.where(places < 3, 21, 42).expand(3, 2, 2).contiguous(),
            "start": torch.tensor(start),
        }


class Described(Items):
    """Grids of two kinds that a text tells apart."""

    def __len__(self) -> int:
        return len(Grids())

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        text = torch.tensor([1.0, -1.0, 0.5]) * (1 - 2 * (index % 2))
        return {
            **Grids().item(index, rng),
            "labels": torch.ones(1),
            "text": text,
            "text_present": torch.tensor(index != 5),
        }


class ReportedBlobs(Items):
    """Blobs in HU with twenty regions in stripes, and two sentences with a word for each region."""

    def __len__(self) -> int:
        return len(Blobs())

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        drawn = np.random.default_rng(index)
        abnormal = torch.from_numpy(drawn.integers(2, size=20))
        regions = torch.arange(20)
        words = torch.stack([10 + 2 * regions + abnormal, 1 << regions]).reshape(2, 2, 10)
        input_ids, token_regions = F.pad(words, (1, 1)).int()
        input_ids[:, 0] = 1
        return {
            **StoredBlobs().item(index, drawn),
            "regions": (torch.arange(128).reshape(1, 2, 8, 8) // 2 % 20 + 1).byte(),
            "valid": torch.ones(1, 2, 8, 8, dtype=torch.bool),
            "input_ids": input_ids,
            "token_regions": token_regions,
            "mention": torch.where(regions == index, -1, abnormal).to(torch.int8),
            "text_id": torch.tensor(index),
            "study_id": torch.tensor(100 + index),
        }


CAUSAL = CausalTokenizerSpec(
    filters=4,
    num_res_blocks=1,
    channel_multipliers=(1, 2),
    temporal_downsample=(False,),
    norm_groups=2,
    quantizer=LFQSpec(bits=4),
)


def _tokenizer(
    model: AutoencoderSpec = CAUSAL,
    *,
    loss: TokenizerLossSpec | None = None,
    augment: AugmentSpec | None = None,
) -> TokenizerObjective:
    return TokenizerObjective(
        TokenizerSpec(
            steps=1,
            batch_size=1,
            micro_batch_size=1,
            recipe="small",
            crop=(2 if model.name == "maisi" else 3, 8, 8),
            model=model,
            # The codes' signs are free to flip under rounding alone, so entropy stays out.
            loss=loss or TokenizerLossSpec(),
            discriminator=DiscriminatorSpec(filters=4, num_layers=1, norm="group"),
            augment=augment or AugmentSpec(),
        )
    )


def _augmented() -> TokenizerObjective:
    return _tokenizer(
        augment=AugmentSpec(rotation=10, scale=0.1, shift=1, intensity_scale=0.1, noise=0.01)
    )


def _judged() -> TokenizerObjective:
    """Terms that are means over crops; the adaptive weight and LeCam are of a micro-batch."""
    return _tokenizer(
        loss=TokenizerLossSpec(adversarial=0.1, adversarial_start=2, feature_matching=0.1)
    )


def _maisi() -> TokenizerObjective:
    return _tokenizer(
        MaisiTokenizerSpec(
            num_channels=(4, 8),
            num_res_blocks=(1, 1),
            attention_levels=(False, False),
            norm_groups=2,
            quantizer=FSQSpec(levels=(5, 5, 5)),
        )
    )


def _vae() -> TokenizerObjective:
    model = KLAutoencoderSpec(
        init_filters=4,
        smallest_filters=4,
        latent_channels=3,
        blocks_down=(1,),
        blocks_up=(),
        latent_stride=(1, 2, 2),
        norm_groups=2,
        res_block_weight=1.0,
    )
    return _tokenizer(model, loss=TokenizerLossSpec(kl=0.01))


class Pairs(Items):
    """Grids of two kinds, each with the other kind's grid as its source."""

    def __len__(self) -> int:
        return len(Grids())

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        other = Grids().item(1 - index % 2, rng)
        return {
            **Grids().item(index, rng),
            "source_indices": other["indices"],
            "source_labels": other["labels"],
            "source_present": torch.tensor(index != 5),
        }


def _translation() -> MaskGITObjective:
    model = MaskGITSpec(hidden_size=24, num_layers=1, num_heads=2, dropout=0.0, bits_per_group=3)
    spec = TransformerSpec(
        steps=1, batch_size=1, micro_batch_size=1, model=model, source="study", source_dropout=0.2
    )
    return MaskGITObjective(spec, _network(model).model_copy(update={"source": True}))


def _in_context() -> MaskGITObjective:
    model = MaskGITSpec(
        hidden_size=24,
        num_layers=1,
        num_heads=2,
        dropout=0.0,
        bits_per_group=3,
        conditioning="in_context",
    )
    spec = TransformerSpec(
        steps=1, batch_size=1, micro_batch_size=1, model=model, source="study", source_dropout=0.2
    )
    return MaskGITObjective(spec, _network(model).model_copy(update={"source": True}))


def _network(model: MaskGITSpec) -> MaskGITNetworkSpec:
    fields = model.model_dump(exclude={"bits_per_group"})
    return MaskGITNetworkSpec(**fields, radices=model.radices(LFQSpec(bits=6)), num_labels=1)


def _maskgit() -> MaskGITObjective:
    model = MaskGITSpec(hidden_size=24, num_layers=1, num_heads=2, dropout=0.0, bits_per_group=3)
    spec = TransformerSpec(steps=1, batch_size=1, micro_batch_size=1, model=model)
    return MaskGITObjective(spec, _network(model))


def _slab() -> MaskGITObjective:
    model = MaskGITSpec(hidden_size=24, num_layers=1, num_heads=2, dropout=0.0, bits_per_group=3)
    slab = SlabSpec(size=3, context=1, context_dropout=0.2)
    spec = TransformerSpec(steps=1, batch_size=1, micro_batch_size=1, model=model, slab=slab)
    return MaskGITObjective(spec, _network(model).model_copy(update={"slab": slab}))


def _text() -> MaskGITObjective:
    model = MaskGITSpec(hidden_size=24, num_layers=1, num_heads=2, dropout=0.0, bits_per_group=3)
    text = TextSpec(embeddings="texts.parquet", dropout=0.2)
    spec = TransformerSpec(steps=1, batch_size=1, micro_batch_size=1, model=model, text=text)
    return MaskGITObjective(spec, _network(model).model_copy(update={"text_size": 3}))


def _slice_features() -> SliceFeaturesObjective:
    model = SliceFeaturesSpec(filters=8, num_levels=2, num_regions=2)
    return SliceFeaturesObjective(
        FeaturesSpec(
            steps=1, batch_size=1, micro_batch_size=1, recipe="small", crop=(8, 8), model=model
        )
    )


def _classify() -> ClassifyObjective:
    # A shift would empty volumes of three slices.
    augment = AugmentSpec(intensity_shift=0.02, noise=0.01)
    spec = ClassifierSpec(steps=1, batch_size=1, micro_batch_size=1, augment=augment)
    network = VolumeClassifierNetworkSpec(filters=8, num_levels=1, num_labels=2)
    return ClassifyObjective(spec, network, positive_weights=torch.tensor([1.0, 2.0]))


ENCODER = VolumeEncoderSpec.model_validate(
    {"encoder": {"hidden_size": 24, "num_layers": 2, "num_heads": 2}, "patch_size": [1, 2, 2]}
)


def _mae(norm_pix: bool = False) -> MaskedAutoencoderObjective:
    decoder = VisionTransformerSpec(hidden_size=12, num_layers=1, num_heads=2)
    model = MaskedAutoencoderSpec(**dict(ENCODER), decoder=decoder, norm_pix=norm_pix)
    augment = AugmentSpec(intensity_shift=0.02)
    spec = MaeSpec(
        steps=1, batch_size=1, micro_batch_size=1, recipe="small", model=model, augment=augment
    )
    network = MaskedAutoencoderNetworkSpec(**dict(model), shape=(2, 8, 8), range=(-1, 1))
    return MaskedAutoencoderObjective(spec, network)


def _finetune(task: Task = "multilabel", pooling: Pooling = "both") -> FinetuneObjective:
    spec = MaeFinetuneSpec.model_validate(
        {
            "steps": 1,
            "batch_size": 1,
            "micro_batch_size": 1,
            "recipe": "small",
            "init_from": None,
            "model": ENCODER,
            "task": task,
            "layer_decay": 0.75,
            "labels": {"csv": "x", "columns": ["a", "b"]} if task == "regression" else None,
            "label_smoothing": 0.0 if task == "regression" else 0.1,
            "augment": {"intensity_shift": 0.02, "noise": 0.01},
        }
    )
    network = PredictorNetworkSpec(
        encoder=VolumeEncoderNetworkSpec(**dict(ENCODER), shape=(2, 8, 8), range=(-1, 1)),
        head=HeadSpec(pooling=pooling, init_std=0.02),
        num_outputs=2,
    )
    items, rng = TargetBlobs(), np.random.default_rng(0)
    targets = torch.stack([items.item(i, rng)["targets"] for i in range(len(items))])
    return FinetuneObjective(spec, network, targets=targets)


def _segment() -> SegmentObjective:
    spec = MaeSegmentSpec(
        steps=1,
        batch_size=1,
        micro_batch_size=1,
        recipe="small",
        init_from=None,
        model=ENCODER,
        layer_decay=0.8,
        augment=AugmentSpec(rotation=10, noise=0.01),
    )
    encoder = VolumeEncoderNetworkSpec(**dict(ENCODER), shape=(3, 8, 8))
    return SegmentObjective(spec, SegmenterNetworkSpec(encoder=encoder, filters=4, num_classes=2))


def _contrastive() -> ContrastiveObjective:
    small = {"hidden_size": 24, "num_layers": 2, "num_heads": 2}
    vision = {
        "encoder": small,
        "patch_size": [1, 2, 2],
        "dropout": 0,
        "attention_dropout": 0,
        "least_voxels": 1,
    }
    spec = VlmSpec.model_validate(
        {
            "steps": 1,
            "batch_size": 1,
            "micro_batch_size": 1,
            "recipe": "small",
            "model": {
                "vision": vision,
                "text": {
                    "encoder": {**small, "num_layers": 1},
                    "vocabulary": 300,
                    "dropout": 0,
                    "pooling": "mean",
                    "rate": 0.3,
                    "max_steps": 2,
                },
                "embedding_size": 16,
            },
            "within_weight": 0.1,
            "augment": {"intensity_shift": 0.02, "noise": 0.01},
        }
    )
    network = VlmNetworkSpec(
        **dict(spec.model), shape=(2, 8, 8), spacing=(3.0, 1.0, 1.0), tokens=300
    )
    return ContrastiveObjective(spec, network)


@dataclass(frozen=True)
class Case:
    """One objective of the table.

    Args:
        make: Returns the untrained objective.
        items: What it trains on.
        falls_to: Share of the first validation loss that is left after `steps`.
        steps: Of that longer training.
        tolerance: Largest difference of weights where sums are made in another order.
        idle: Parameters that its loss reaches on no items.
    """

    make: Callable[[], Objective]
    items: Items
    falls_to: float = 0.5
    steps: int = 60
    tolerance: float = 1e-5
    idle: tuple[str, ...] = ()

    def objective(self) -> Objective:
        torch.manual_seed(0)
        return self.make()


CASES = {
    "regression": Case(Regression, Vectors()),
    "adversarial": Case(Adversarial, Vectors(), falls_to=0.7),
    "masked": Case(Masked, Vectors(), falls_to=0.8),
    "tokenizer": Case(_tokenizer, Blobs(), falls_to=0.7, steps=30, tolerance=1e-4),
    "judged": Case(_judged, Blobs(), falls_to=0.7, steps=10, tolerance=1e-4),
    "maisi": Case(_maisi, BlobPairs(), falls_to=0.7, steps=12, tolerance=1e-4),
    "vae": Case(_vae, Blobs(), falls_to=0.7, steps=15),
    "augmented": Case(_augmented, Blobs(), falls_to=0.7, steps=30, tolerance=1e-4),
    "classify": Case(_classify, LabelledBlobs(), steps=30),
    "mae": Case(_mae, StoredBlobs(), falls_to=0.7),
    "mae normalised": Case(partial(_mae, norm_pix=True), StoredBlobs(), falls_to=0.9),
    "finetune": Case(_finetune, TargetBlobs(), tolerance=1e-4),
    "finetune numbers": Case(
        partial(_finetune, task="regression", pooling="attentive"),
        TargetBlobs(),
        tolerance=1e-4,
    ),
    "segment": Case(_segment, BlobMasks(), steps=30, tolerance=1e-4),
    "slice_features": Case(_slice_features, BlobSlices(), steps=30, tolerance=1e-4),
    "translation": Case(_translation, Pairs(), falls_to=0.7, steps=40),
    "in_context": Case(_in_context, Pairs(), falls_to=0.7, steps=40, tolerance=1e-4),
    "maskgit": Case(_maskgit, Grids(), falls_to=0.7, steps=40),
    "slab": Case(_slab, Slabs(), falls_to=0.7, steps=40),
    "text": Case(_text, Described(), falls_to=0.7, steps=40),
    # What stands for a region that a scan does not hold is no answer to any text.
    "contrastive": Case(
        _contrastive,
        ReportedBlobs(),
        falls_to=0.7,
        steps=100,
        tolerance=1e-4,
        idle=("model.vision.pool.absent",),
    ),
}


def spec_of(**changes: object) -> TrainSpec:
    """Return a short training on the CPU: 6 steps of 8 items, in 2 micro-batches."""
    values = {
        "steps": 6,
        "batch_size": 8,
        "micro_batch_size": 4,
        "learning_rate": 1e-2,
        "device": "cpu",
        "log_every": 1,
        "validation_items": 8,
    }
    return TrainSpec.model_validate({**values, **changes})


def main(folder: Path) -> None:
    """Train every case with this rank's part of each batch; write `{case}-{rank}.pt`."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name, case in CASES.items():
        objective = case.objective()
        train(objective, case.items, spec_of(micro_batch_size=2), run_dir=folder / name)
        torch.save(objective.state_dict(), folder / f"{name}-{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
