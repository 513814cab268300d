"""What two ranks do in the tests of the contrastive training; run under torchrun's environment."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from ct3dlib.training.distributed import gather_with_gradient, process_group, rank
from ct3dlib.training.engine import TorchEngine
from tests.objectives.contrastive_doubles import batch_of, objective_of, part_of, parts_of

# Items of a micro-batch; 16 is all that a rank has.
RUNS = {
    "plain": (16, False),
    "cached": (4, False),
    "sharded": (4, True),
    "sharded plain": (16, True),
}


def gathered() -> dict[str, torch.Tensor]:
    """Gather items whose losses on the two ranks weigh differently."""
    value = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).add(10 * rank()).requires_grad_()
    everyone = gather_with_gradient(value)
    weights = torch.arange(8.0).reshape(4, 2) * (1 + rank())
    (weights * everyone).sum().backward()
    flags = gather_with_gradient(torch.tensor([rank() == 0, True]))
    return {"everyone": everyone.detach(), "gradient": value.grad, "flags": flags}


def main(folder: Path) -> None:
    """Write what each rank's gradients are after all of them have met."""
    torch.set_num_threads(1)
    found = {"gathered": gathered()}
    for name, (size, sharded) in RUNS.items():
        objective = objective_of()
        spec = objective.spec.model_copy(update={"fully_shard": sharded})
        engine = TorchEngine(objective, spec, torch.device("cpu"))
        mine = part_of(batch_of(), 16 * rank(), 16 * rank() + 16)
        means = objective.backward(parts_of(mine, size), "model", engine)
        gradients = {
            key: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
            for key, p in objective.named_parameters()
        }
        for value in means.values():
            dist.all_reduce(value)
        found[name] = {**gradients, **{key: value / 2 for key, value in means.items()}}
    torch.save(found, folder / f"{rank()}.pt")


if __name__ == "__main__":
    with process_group("cpu"):
        main(Path(sys.argv[1]))
