"""One optimizer step: wrappers for several ranks, precision, clipping, optimizers."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from torch.utils.checkpoint import checkpoint

from ct3dlib.config import TrainSpec
from ct3dlib.errors import TrainingError
from ct3dlib.training.checkpoint import State
from ct3dlib.training.distributed import mean_over_ranks, world_size
from ct3dlib.training.objective import Batch, Batches, Engine, Metrics, Objective
from ct3dlib.training.schedule import learning_rate

# Gathered on the CPU of rank 0, which writes; every rank loads by itself.
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class TorchEngine(Engine):
    """An objective on its device with what PyTorch puts around it.

    Each turn has its own DistributedDataParallel, which looks after that turn's parameters alone;
    `fully_shard` shards the objective once, block by block.

    Args:
        objective: Changed in place: moved, sharded, its blocks recomputed if the spec says so.
        spec: Of the training.
        device: Of this rank.

    Raises:
        ValueError: Keys of the spec that do not go together or do not fit the objective.
    """

    def __init__(self, objective: Objective, spec: TrainSpec, device: torch.device) -> None:
        _check(objective, spec)
        self.objective = objective.to(device)
        self._spec = spec
        self._device = device
        if spec.activation_checkpointing:
            for block in objective.blocks():
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if spec.compile:
            # Block by block one graph serves all, and what is drawn for items stays out of it.
            for part in objective.blocks() or (objective,):
                part.compile()
        if spec.fully_shard:
            _shard(objective, device)
        self._parameters = {turn: objective.parameters_of(turn) for turn in objective.turns}
        self._wrapped: dict[str, nn.Module] = {}
        for turn in objective.turns:
            self._thaw_only(turn)
            self._wrapped[turn] = self._wrap()
        self._thaw_all()
        self._optimizers = {turn: self._optimizer(turn) for turn in objective.turns}
        scaled = spec.precision == "fp16"
        self._scalers = {
            turn: torch.amp.GradScaler(device.type, enabled=scaled) for turn in objective.turns
        }

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of the training's precision; master weights stay float32."""
        match self._spec.precision:
            case "fp32":
                return nullcontext()
            case "bf16":
                return torch.autocast(self._device.type, torch.bfloat16)
            case "fp16":
                return torch.autocast(self._device.type, torch.float16)

    def forward(self, batch: Batch, turn: str) -> tuple[Tensor, Metrics]:
        """Call the objective as wrapped for several ranks, at the training's precision."""
        with self.autocast():
            return self._wrapped[turn](batch, turn)

    def backward(self, loss: Tensor, turn: str) -> None:
        """Add the gradient of a loss, scaled up for fp16."""
        self._scalers[turn].scale(loss).backward()

    def micro_batch(self, turn: str, *, last: bool) -> AbstractContextManager[None]:
        """Enclose one micro-batch; the ranks average gradients in the last one only."""
        wrapped = self._wrapped[turn]
        if isinstance(wrapped, FSDPModule):
            wrapped.set_requires_gradient_sync(last)
        elif isinstance(wrapped, DistributedDataParallel) and not last:
            return wrapped.no_sync()
        return nullcontext()

    def update(self, micro_batches: Batches, turn: str, step: int) -> dict[str, float]:
        """Make one optimizer step of a turn.

        Returns:
            Means of loss and metrics over micro-batches and ranks, `grad_norm` before clipping and
            `lr`.

        Raises:
            TrainingError: The loss, a metric or the gradient is not finite.
        """
        self._thaw_only(turn)
        means = self.objective.backward(micro_batches, turn, self)
        metrics = _reduced(means)
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"step {step}: {name} of {turn} is {value}; lower learning_rate, or see the "
                    f"items of this step"
                )
        rate = learning_rate(self._spec, step) * self.objective.rate(turn)
        metrics |= {"grad_norm": self._step(turn, step, rate), "lr": rate}
        self.objective.zero_grad(set_to_none=True)
        self._thaw_all()
        return metrics

    def weights(self) -> State:
        """Return a copy of the weights, whole, on the CPU, to rank 0; every rank must call it."""
        weights = get_model_state_dict(self.objective, options=_WHOLE)
        return {k: v.clone() for k, v in weights.items() if isinstance(v, Tensor)}

    def copy_weights_to(self, objective: Objective) -> None:
        """Give the weights to an objective that is not sharded; every rank must call it."""
        options = StateDictOptions(full_state_dict=True)
        objective.load_state_dict(get_model_state_dict(self.objective, options=options))

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take whole weights; every rank must call it."""
        set_model_state_dict(self.objective, dict(weights), options=_WHOLE)

    def state(self) -> State:
        """Return weights, optimizers and scalers, as `weights`."""
        return {
            "objective": self.weights(),
            "optimizers": {
                turn: get_optimizer_state_dict(self.objective, optimizer, options=_WHOLE)
                for turn, optimizer in self._optimizers.items()
            },
            "scalers": {turn: scaler.state_dict() for turn, scaler in self._scalers.items()},
        }

    def load_state(self, state: State) -> None:
        """Take what `state` returned."""
        self.load_weights(state["objective"])
        for turn, optimizer in self._optimizers.items():
            saved = state["optimizers"][turn]
            set_optimizer_state_dict(self.objective, optimizer, saved, options=_WHOLE)
            self._scalers[turn].load_state_dict(state["scalers"][turn])

    def _step(self, turn: str, step: int, rate: float) -> float:
        """Clip and step; return the norm of the gradient before clipping."""
        optimizer, scaler = self._optimizers[turn], self._scalers[turn]
        for group in optimizer.param_groups:
            group["lr"] = rate * group["relative_rate"]
        scaler.unscale_(optimizer)
        try:
            norm = nn.utils.clip_grad_norm_(
                self._parameters[turn],
                self._spec.max_grad_norm,
                # The scaler skips a step whose scaled gradient overflowed and lowers its scale.
                error_if_nonfinite=not scaler.is_enabled(),
            )
        except RuntimeError as error:
            raise TrainingError(
                f"step {step}: the gradient of {turn} is not finite; lower learning_rate, or see "
                f"the items of this step"
            ) from error
        scaler.step(optimizer)
        scaler.update()
        if scaler.is_enabled() and scaler.get_scale() < 1:
            raise TrainingError(
                f"step {step}: the gradient of {turn} overflows fp16 at any scale; "
                f"set precision: bf16"
            )
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()

    def _optimizer(self, turn: str) -> AdamW:
        """Return AdamW; what the objective does not name does not decay."""
        decay = {True: self._spec.weight_decay, False: 0.0}
        decayed = {id(p) for p in self.objective.decayed(turn)}
        groups = [
            {
                "params": [p for p in parameters if (id(p) in decayed) is decays],
                "weight_decay": decay[decays],
                "relative_rate": relative,
            }
            for relative, parameters in self.objective.layers(turn)
            for decays in (True, False)
        ]
        return AdamW(
            [group for group in groups if group["params"]],
            lr=self._spec.learning_rate,
            betas=self._spec.betas,
            fused=self._device.type in ("cpu", "cuda"),
        )

    def _wrap(self) -> nn.Module:
        if world_size() == 1 or self._spec.fully_shard:
            return self.objective
        ids = [self._device.index] if self._device.type == "cuda" else None
        return DistributedDataParallel(self.objective, device_ids=ids)

    def _thaw_only(self, turn: str) -> None:
        """Let gradients reach the parameters of one turn alone."""
        for parameters in self._parameters.values():
            for parameter in parameters:
                parameter.requires_grad_(False)
        for parameter in self._parameters[turn]:
            parameter.requires_grad_(True)

    def _thaw_all(self) -> None:
        for parameters in self._parameters.values():
            for parameter in parameters:
                parameter.requires_grad_(True)


def _check(objective: Objective, spec: TrainSpec) -> None:
    """Refuse what would fail later or silently do nothing."""
    for turn in objective.turns:
        if not objective.parameters_of(turn):
            raise ValueError(f"turn {turn!r} of {type(objective).__name__} has nothing to train")
    if spec.activation_checkpointing and not objective.blocks():
        raise ValueError(
            f"activation_checkpointing: {type(objective).__name__} names no blocks; set it to false"
        )
    if spec.fully_shard and world_size() == 1:
        raise ValueError("fully_shard needs several ranks; raise devices or set it to false")
    if spec.fully_shard and spec.precision == "fp16":
        raise ValueError("fully_shard does not go with precision: fp16; set precision: bf16")


def _shard(objective: Objective, device: torch.device) -> None:
    """Shard an objective over all ranks, block by block."""
    mesh = init_device_mesh(device.type, (world_size(),))
    for block in objective.blocks():
        fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    register_fsdp_forward_method(objective, "validate")
    register_fsdp_forward_method(objective, "pictures")


def _reduced(means: Metrics) -> dict[str, float]:
    """Return the means over ranks as numbers, with one exchange and one wait."""
    stacked = mean_over_ranks(torch.stack([value.detach().float() for value in means.values()]))
    return dict(zip(means, stacked.tolist(), strict=True))
