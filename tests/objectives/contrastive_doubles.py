"""A small double of the vision-language model, and batches for it; all in double precision."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ct3dlib.config import VlmNetworkSpec, VlmSpec
from ct3dlib.models.vlm import ScanEmbeddings, TextEmbeddings
from ct3dlib.objectives.contrastive import ContrastiveObjective
from ct3dlib.training.engine import TorchEngine

REGIONS = 20
SHAPE = (2, 4, 4)
SMALL = {"hidden_size": 12, "num_layers": 1, "num_heads": 2}
MODEL = {
    "vision": {"encoder": SMALL, "patch_size": [1, 2, 2], "least_voxels": 1},
    "text": {"encoder": SMALL, "vocabulary": 300},
    "embedding_size": 8,
}


class Double(nn.Module):
    """Linear maps of voxels and of word counts, with dropout."""

    def __init__(self, spec: VlmNetworkSpec, dropout: float) -> None:
        super().__init__()
        self.spec = spec
        self.dropout = nn.Dropout(dropout)
        self.scans = nn.Linear(32, 8)
        self.scan_regions = nn.Linear(32, REGIONS * 8)
        self.text = nn.ModuleDict({"bert": nn.Embedding(30, 16)})
        self.whole = nn.Linear(16, 8, bias=False)
        self.text_regions = nn.Linear(16, REGIONS * 8)
        self.log_scale = nn.Parameter(torch.tensor([1.0]))
        self.region_log_scale = nn.Parameter(torch.tensor([1.5]))
        self.seen: list[Tensor] = []

    def blocks(self) -> list[nn.Module]:
        return []

    def embed_scans(self, values, window, *, regions, valid, known) -> ScanEmbeddings:
        self.seen.append(known)
        voxels = self.dropout(values.double().flatten(1) / 1000)
        region = self.scan_regions(voxels).unflatten(1, (REGIONS, 8))
        ids = torch.arange(1, REGIONS + 1)
        present = (regions.flatten(1)[..., None] == ids).any(1)
        whole = F.normalize(self.scans(voxels), dim=-1)
        return ScanEmbeddings(whole, F.normalize(region, dim=-1), present, None)

    def embed_texts(self, input_ids, token_regions) -> TextEmbeddings:
        words = self.dropout(self.text["bert"](input_ids.long()).mean((1, 2)))
        region = self.text_regions(words).unflatten(1, (REGIONS, 8))
        bits = token_regions.flatten(1)[..., None] >> torch.arange(REGIONS) & 1
        whole = F.normalize(self.whole(words), dim=-1)
        return TextEmbeddings(whole, F.normalize(region, dim=-1), bits.bool().any(1))

    def scales(self) -> tuple[Tensor, Tensor]:
        return self.log_scale.exp(), self.region_log_scale.exp()


def spec_of(**changes: object) -> VlmSpec:
    values = {
        "steps": 1,
        "batch_size": 32,
        "micro_batch_size": 8,
        "recipe": "small",
        "device": "cpu",
        "model": MODEL,
        "within_weight": 0.3,
    }
    return VlmSpec.model_validate({**values, **changes})


def network_of(spec: VlmSpec) -> VlmNetworkSpec:
    return VlmNetworkSpec(**dict(spec.model), shape=SHAPE, tokens=300)


def objective_of(dropout: float = 0.0, **changes: object) -> ContrastiveObjective:
    torch.manual_seed(0)
    spec = spec_of(**changes)
    objective = ContrastiveObjective(spec, network_of(spec))
    objective.model = Double(objective.model.spec, dropout)
    return objective.double()


def batch_of(items: int = 32) -> dict[str, Tensor]:
    """Return items of which two each are of one study, and some others say the same."""
    generator = torch.Generator().manual_seed(1)

    def drawn(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    return {
        "values": drawn(-1000, 1000, items, 1, *SHAPE).to(torch.int16),
        "window": torch.tensor([[-1000.0, 1000.0]]).repeat(items, 1),
        "regions": drawn(0, REGIONS + 1, items, 1, *SHAPE).to(torch.uint8),
        "input_ids": drawn(1, 30, items, 2, 3).to(torch.int32),
        "token_regions": drawn(0, 2**REGIONS, items, 2, 3).to(torch.int32),
        "mention": drawn(-1, 2, items, REGIONS).to(torch.int8),
        "text_id": drawn(0, 2 * items, items),
        "study_id": torch.arange(items) // 2,
        "item_seed": torch.arange(items),
        "step": torch.tensor(0),
    }


def part_of(batch: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    return {name: v[start:stop] if v.ndim else v for name, v in batch.items()}


def parts_of(batch: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    return [part_of(batch, i, i + size) for i in range(0, len(batch["values"]), size)]


def gradients(objective: ContrastiveObjective) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in objective.named_parameters()}


def error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Return the largest relative error of any parameter's gradient."""
    return max(((found[k] - v).norm() / v.norm()).item() for k, v in wanted.items())


def cached(objective: ContrastiveObjective, size: int) -> dict[str, Tensor]:
    """Return the gradients of four draws of dropout, a micro-batch each."""
    engine = TorchEngine(objective, objective.spec, torch.device("cpu"))
    torch.manual_seed(3)
    metrics = objective.backward(parts_of(batch_of(), size), "model", engine)
    return {**gradients(objective), "loss": metrics["loss"]}


def graph_of_all(objective: ContrastiveObjective, size: int) -> dict[str, Tensor]:
    """Return the gradients of one graph that holds all micro-batches at once."""
    torch.manual_seed(3)
    parts = [objective._embed(batch) for batch in parts_of(batch_of(), size)]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    whole |= {name: parts[0][name] for name in ("scale", "region_scale")}
    loss, _ = objective._compare(whole, whole)
    loss.backward()
    return {**gradients(objective), "loss": loss.detach()}
