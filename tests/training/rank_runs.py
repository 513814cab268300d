"""What several ranks do in the tests of the loop; run as a module under torchrun's environment."""

import sys
from dataclasses import asdict
from pathlib import Path

import torch

from ct3dlib.training.distributed import process_group, rank
from ct3dlib.training.loop import train
from tests.contracts.objective_cases import CASES, spec_of

# Sharding: no dropout, so the ranks' own draws do not matter.
SHARDED = {
    "fully_shard": True,
    "ema": 0.8,
    "micro_batch_size": 2,
    "validate_every": 3,
    "validation_items": 5,
    "activation_checkpointing": True,
}


def main(folder: Path) -> None:
    """Train with sharded weights: stopped, resumed, validated; then an uneven validation."""
    torch.set_num_threads(1)
    case = CASES["maskgit"]
    for stop_at in (3, 6):
        objective = case.objective()
        summary = train(
            objective,
            case.items,
            spec_of(**SHARDED, stop_at=stop_at),
            run_dir=folder / "sharded",
            validation=case.items,
        )
    saved = {"weights": objective.state_dict(), "summary": asdict(summary)}
    torch.save(saved, folder / f"sharded-{rank()}.pt")
    adversarial = CASES["adversarial"]
    objective = adversarial.objective()
    train(
        objective,
        adversarial.items,
        spec_of(fully_shard=True, micro_batch_size=2),
        run_dir=folder / "adversarial",
    )
    torch.save(objective.state_dict(), folder / f"adversarial-{rank()}.pt")


if __name__ == "__main__":
    # One group for all trainings: a store that is opened again at its port may be the old one.
    with process_group("cpu"):
        main(Path(sys.argv[1]))
