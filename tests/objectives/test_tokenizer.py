import math
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ct3dlib.config import CausalTokenizerSpec, LFQSpec, TokenizerLossSpec, TokenizerSpec
from ct3dlib.objectives.entropy import entropy_weight
from ct3dlib.objectives.tokenizer import TokenizerObjective

ENTROPY_FIRST = TokenizerLossSpec(
    l1=0.001, commitment=0, entropy=1, entropy_start=1, diversity=3, sharpness=0.5
)


def objective_with(loss: TokenizerLossSpec | None = None) -> TokenizerObjective:
    torch.manual_seed(0)
    spec = TokenizerSpec(
        steps=10,
        batch_size=2,
        micro_batch_size=2,
        recipe="lfq",
        crop=(9, 16, 16),
        model=CausalTokenizerSpec(
            filters=8,
            num_res_blocks=1,
            channel_multipliers=(1, 2),
            temporal_downsample=(True,),
            norm_groups=4,
            quantizer=LFQSpec(bits=8),
        ),
        loss=loss or TokenizerLossSpec(),
    )
    return TokenizerObjective(spec)


def batch_of(volumes: torch.Tensor, step: int = 0) -> dict[str, torch.Tensor]:
    return {"volume": volumes, "step": torch.tensor(step)}


@pytest.fixture
def volumes() -> torch.Tensor:
    """Return smooth shapes: a bright ball somewhere in each crop."""
    torch.manual_seed(0)
    d, h, w = torch.meshgrid(torch.arange(9), torch.arange(16), torch.arange(16), indexing="ij")
    centers = torch.tensor([[3.0, 6.0, 9.0], [5.0, 9.0, 5.0]]).view(2, 3, 1, 1, 1)
    distance = (torch.stack((d, h, w)) - centers).square().sum(1).sqrt()
    return torch.where(distance < 4, 0.5, -0.8).unsqueeze(1)


def test_loss_is_the_weighted_sum_of_its_terms(volumes: torch.Tensor):
    weights = TokenizerLossSpec(
        l1=3, entropy=0.2, entropy_start=0.4, entropy_warmup_steps=10, diversity=0.5, commitment=0.7
    )
    loss, m = objective_with(weights).loss(batch_of(volumes, step=5), "model")
    expected = (
        3 * m["l1"] + 0.3 * (m["sample_entropy"] - 0.5 * m["batch_entropy"]) + 0.7 * m["commitment"]
    )
    torch.testing.assert_close(loss.detach(), expected)
    assert not any(value.requires_grad for value in m.values())


@pytest.mark.parametrize(("step", "weight"), [(0, 0.3), (500, 0.25), (2000, 0.1), (9000, 0.1)])
def test_entropy_weight_falls_linearly(step: int, weight: float):
    weights = TokenizerLossSpec(entropy=0.1, entropy_start=0.3)
    assert entropy_weight(weights, torch.tensor(step)).item() == pytest.approx(weight)


def test_entropy_weight_without_warmup_is_its_end():
    weights = TokenizerLossSpec(entropy=0.1, entropy_start=0.3, entropy_warmup_steps=0)
    assert entropy_weight(weights, torch.tensor(0)).item() == pytest.approx(0.1)


def test_terms_are_those_of_the_reconstruction(volumes: torch.Tensor):
    objective = objective_with()
    result = objective.model(volumes)
    _, m = objective.loss(batch_of(volumes), "model")
    assert m["l1"].item() == pytest.approx((result.volumes - volumes).abs().mean().item())
    errors = (result.volumes.clamp(-1, 1) - volumes).square().flatten(1).mean(1).tolist()
    wanted = np.mean([10 * math.log10(4 / error) for error in errors])
    assert m["psnr_db"].item() == pytest.approx(wanted, rel=1e-4)
    indices = result.quantized.indices
    assert m["code_usage"].item() == pytest.approx(
        len(indices.unique()) / min(256, indices.numel())
    )


def test_psnr_uses_the_range_of_the_recipe(volumes: torch.Tensor):
    objective = TokenizerObjective(objective_with().spec, value_range=(0.0, 0.5))
    difference = objective.model(volumes).volumes.clamp(0, 0.5) - volumes.clamp(0, 0.5)
    errors = difference.square().flatten(1).mean(1).tolist()
    _, m = objective.loss(batch_of(volumes), "model")
    wanted = np.mean([10 * math.log10(0.25 / error) for error in errors])
    assert m["psnr_db"].item() == pytest.approx(wanted, rel=1e-4)


def test_training_falls_threefold_and_uses_codes(volumes: torch.Tensor):
    objective = objective_with()
    optimizer = torch.optim.AdamW(objective.parameters_of("model"), lr=4e-3, weight_decay=0)
    _, first = objective.loss(batch_of(volumes), "model")
    encoder = {n: p.detach().clone() for n, p in objective.model.encoder.named_parameters()}
    for step in range(80):
        loss, metrics = objective.loss(batch_of(volumes, step), "model")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics["l1"] * 3 < first["l1"]
    assert metrics["code_usage"] > 0.05
    changed = [n for n, p in objective.model.encoder.named_parameters() if (p != encoder[n]).any()]
    assert len(changed) == len(encoder)


def test_pictures_lie_side_by_side_in_0_to_1(volumes: torch.Tensor):
    objective = objective_with()
    picture = objective.pictures(batch_of(volumes))["reconstruction"]
    assert picture.shape == (1, 16, 48)
    torch.testing.assert_close(picture[:, :, :16], (volumes[0, :, 4] + 1) / 2)
    expected = (picture[:, :, 16:32] - picture[:, :, :16] + 1) / 2
    torch.testing.assert_close(picture[:, :, 32:], expected)
    assert 0 <= picture.min() <= picture.max() <= 1


def test_bfloat16_keeps_the_terms(volumes: torch.Tensor):
    objective = objective_with()
    expected, _ = objective.loss(batch_of(volumes), "model")
    with torch.autocast("cpu", torch.bfloat16):
        loss, metrics = objective.loss(batch_of(volumes), "model")
    assert loss.dtype == torch.float32
    assert {value.dtype for value in metrics.values()} == {torch.float32}
    assert loss.item() == pytest.approx(expected.item(), rel=0.1)


def test_blocks_hold_most_of_the_parameters():
    objective = objective_with()
    inside = sum(p.numel() for block in objective.blocks() for p in block.parameters())
    assert len(objective.blocks()) == 6
    assert inside > 0.4 * sum(p.numel() for p in objective.parameters())


def _entropy_gradient(rank: int, port: int, folder: str, volumes: torch.Tensor) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    objective = objective_with(ENTROPY_FIRST).train()
    objective.loss(batch_of(volumes[rank : rank + 1]), "model")[0].backward()
    gradients = [p.grad for p in objective.model.encoder.parameters()]
    torch.save(gradients, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_batch_entropy_of_two_ranks_has_the_gradient_of_the_whole_batch(
    tmp_path: Path, volumes: torch.Tensor
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_entropy_gradient, (port, str(tmp_path), volumes), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    objective = objective_with(ENTROPY_FIRST).train()
    objective.loss(batch_of(volumes), "model")[0].backward()
    for parameter, *parts in zip(objective.model.encoder.parameters(), *ranks, strict=True):
        torch.testing.assert_close(sum(parts) / 2, parameter.grad, rtol=1e-3, atol=1e-6)
