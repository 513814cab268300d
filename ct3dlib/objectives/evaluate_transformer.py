"""How well a trained token transformer fills in held-out volumes, beside knowing no context.

Letters: G digits of an index, K classes of the largest digit.
"""

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import default_collate

from ct3dlib.config import TransformerSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.inference.loaded import Transformer
from ct3dlib.models.maskgit import MaskGIT
from ct3dlib.objectives.maskgit import MaskGITObjective
from ct3dlib.progress import progress
from ct3dlib.training.draws import seed_of
from ct3dlib.training.objective import Batch
from ct3dlib.training.token_items import TokenItems
from ct3dlib.training.validation import on_device

_MASKINGS = 4  # of each volume; the same ones every time
_MEASURED = ("bits_per_index", "accuracy")


def evaluate_transformer(
    transformer: Transformer,
    spec: TransformerSpec,
    *,
    train: TokenItems,
    held_out: Mapping[str, TokenItems],
) -> dict[str, Any]:
    """Return how well masked indices of held-out splits are predicted, by split.

    `bits_per_index` is the cross entropy of the masked indices, each volume masked in four fixed
    ways by the law of the training, and `accuracy_digit_{g}` how often digit g's likeliest class
    is right. The same with `baseline_` before it is that of a model which sees no context: it
    knows how often each class of each digit comes in the train split, one more of each. `n` is the
    number of volumes; a split without any has no other key.

    Args:
        transformer: On the device to use.
        spec: How it was trained.
        train: The volumes that it was trained on.
        held_out: Volumes of other splits.

    Raises:
        CheckpointError: Tokens are another tokenizer's than those that the transformer learnt.
    """
    for items in (train, *held_out.values()):
        _check_tokens(items, transformer)
    models = {
        "": transformer.model,
        "baseline_": without_context(transformer.model, train),
    }
    return {
        split: {**_measure(models, items, spec), "n": len(items)}
        for split, items in held_out.items()
    }


def without_context(model: MaskGIT, items: TokenItems) -> MaskGIT:
    """Return a model whose prediction is how often each class of each digit comes, anywhere.

    One more is added to each count (Laplace), so that no class is impossible.
    """
    digits = model.digits
    counts = digits.possible.long()  # G K
    for index in range(len(items)):
        classes = digits.split(items.indices(index).to(counts.device)).flatten(0, -2)  # N G
        counts = counts + nn.functional.one_hot(classes, counts.shape[1]).sum(0)
    return _predicting(model, (counts / counts.sum(1, keepdim=True)).log())


@torch.no_grad()
def _predicting(model: MaskGIT, logits: Float[Tensor, "G K"]) -> MaskGIT:
    """Return a copy of a model that predicts the same everywhere; -inf is an impossible class."""
    made = copy.deepcopy(model)
    made.blocks = nn.ModuleList()
    nn.init.zeros_(made.heads.weight)
    made.heads.bias.copy_(logits.masked_fill(~model.digits.possible, 0.0).flatten())
    return made


@torch.no_grad()
def _measure(
    models: Mapping[str, MaskGIT], items: TokenItems, spec: TransformerSpec
) -> dict[str, float]:
    """Return each model's means over all masked positions of all volumes, its prefix before."""
    objectives = {prefix: _objective(model, spec) for prefix, model in models.items()}
    device = models[""].heads.weight.device
    sums: dict[str, float] = defaultdict(float)
    total = 0.0
    for index in progress(range(len(items)), name="evaluate", unit="volume"):
        batch = on_device(_maskings(items, index), 0, device)
        weight = float(objectives[""].weight(batch, "model"))
        for prefix, objective in objectives.items():
            for name, value in objective.validate(batch).items():
                if name.startswith(_MEASURED):
                    sums[f"{prefix}{name}"] += float(value) * weight
        total += weight
    return {name: value / total for name, value in sums.items()}


def _objective(model: MaskGIT, spec: TransformerSpec) -> MaskGITObjective:
    """Return the objective of a model that is there already."""
    objective = MaskGITObjective(spec, model.spec)
    objective.model = model
    return objective.eval()


def _maskings(items: TokenItems, index: int) -> Batch:
    """Return a volume in a batch with itself, each time masked another way."""
    item = items.item(index, np.random.default_rng(seed_of("evaluation", index)))
    seeds = [seed_of("evaluation", index, masking) for masking in range(_MASKINGS)]
    return {**default_collate([item] * _MASKINGS), "item_seed": torch.tensor(seeds)}


def _check_tokens(items: TokenItems, transformer: Transformer) -> None:
    """Refuse tokens that the transformer did not learn from."""
    if not len(items):
        return
    made_by = items.first.attributes["ct3d"]["tokenizer_sha256"]
    if made_by != transformer.tokenizer_sha256:
        raise CheckpointError(
            f"{items.first.node}: its tokenizer_sha256 is {made_by[:12]}, the transformer learnt "
            f"the indices of {transformer.tokenizer_sha256[:12]}; train the transformer again, or "
            f"give the tokens it was trained on"
        )
