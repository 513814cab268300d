"""What the measures of a trained transformer say, on grids whose entropy is known."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import default_collate

from ct3dlib.cohort.packing import pack_indices
from ct3dlib.cohort.store import create_store, write_node, write_table
from ct3dlib.config import MaskGITNetworkSpec, MaskGITSpec, SlabSpec, TransformerSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.inference.loaded import Transformer
from ct3dlib.losses.masked import masked_cross_entropy
from ct3dlib.models.maskgit import Conditions, MaskGIT
from ct3dlib.objectives.evaluate_transformer import evaluate_transformer, without_context
from ct3dlib.objectives.maskgit import MaskGITObjective, draw_masked
from ct3dlib.training.draws import seed_of
from ct3dlib.training.token_items import TokenItems

GRID = (2, 3, 4)
MADE_BY = "a" * 64
NETWORK = MaskGITNetworkSpec(
    hidden_size=24, num_layers=1, num_heads=2, dropout=0.0, radices=(4, 3), num_labels=0
)
SPEC = TransformerSpec(
    steps=1,
    batch_size=1,
    micro_batch_size=1,
    label_smoothing=0.1,
    model=MaskGITSpec(hidden_size=24, num_layers=1, num_heads=2, dropout=0.0),
)


def _items(folder: Path, split: str, grids: Sequence[np.ndarray]) -> TokenItems:
    """Store grids as the tokens of a split, without labels."""
    store = folder / split / "0000.zarr"
    store.parent.mkdir(parents=True)
    create_store(store, "tokens")
    rows = []
    for number, grid in enumerate(grids):
        name = f"{split}{number}"
        ct3d = {"bits": 4, "shape": list(grid.shape), "tokenizer_sha256": MADE_BY}
        packed = pack_indices(grid, 4)
        sha256 = write_node(store, f"{name}@0", packed, attributes={"ct3d": ct3d})
        row = {"volume": name, "status": "encoded", "reason": "", "message": "", "shard": 0}
        rows.append({**row, "node": f"{name}@0", "sha256": sha256, "shape": list(grid.shape)})
    columns = ["volume", "status", "reason", "message", "shard", "node", "sha256", "shape"]
    table = pd.DataFrame(rows, columns=columns)
    write_table(table, folder / f"{split}.parquet")
    catalog = table[["volume"]].assign(study=table["volume"], labels=None, label=None)
    return TokenItems([folder / f"{split}.parquet"], catalog)


def _loaded(model: MaskGIT) -> Transformer:
    return Transformer(model.eval(), GRID, GRID, np.eye(4), (), MADE_BY)


def _untrained() -> MaskGIT:
    torch.manual_seed(0)
    return MaskGIT(NETWORK)


def _fit(objective: MaskGITObjective, items: TokenItems) -> None:
    """Take 60 steps on all items at once."""
    rng = np.random.default_rng(0)
    batch = default_collate([items.item(index, rng) for index in range(len(items))])
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for step in range(60):
        seeds = torch.arange(len(items)) + step * len(items)
        loss, _ = objective.loss({**batch, "item_seed": seeds}, "model")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _plain(number: int) -> list[np.ndarray]:
    """Return grids of one index each: any visible one tells all others."""
    return [np.full(GRID, 4 * (i % 3) + i % 4, dtype=np.int64) for i in range(number)]


def test_the_baseline_is_worked_out_by_hand(tmp_path):
    # Digits of index 5 are (1, 1), of index 6 (2, 1): 24 positions of each in the train split.
    items = _items(tmp_path, "train", [np.full(GRID, 5), np.full(GRID, 6)])
    held_out = {"tune": _items(tmp_path, "tune", [np.full(GRID, 5)])}
    held_out["valid"] = _items(tmp_path, "valid", [np.full(GRID, 8)])  # digits (0, 2)
    found = evaluate_transformer(_loaded(_untrained()), SPEC, train=items, held_out=held_out)
    tune = -math.log2(25 / 52) - math.log2(49 / 51)
    assert found["tune"]["baseline_bits_per_index"] == pytest.approx(tune, rel=1e-5)
    assert found["tune"]["baseline_accuracy_digit_1"] == 1
    valid = -math.log2(1 / 52) - math.log2(1 / 51)  # never seen, and still possible
    assert found["valid"]["baseline_bits_per_index"] == pytest.approx(valid, rel=1e-5)
    assert found["valid"]["baseline_accuracy_digit_0"] == 0
    assert found["valid"]["baseline_accuracy_digit_1"] == 0
    assert (found["tune"]["n"], found["valid"]["n"]) == (1, 1)


def test_the_bits_are_the_mean_over_all_masked_positions_of_four_fixed_maskings(tmp_path):
    rng = np.random.default_rng(0)
    grids = [rng.integers(0, 12, GRID) for _ in range(3)]
    items, model = _items(tmp_path, "valid", grids), _untrained().eval()
    found = evaluate_transformer(_loaded(model), SPEC, train=items, held_out={"valid": items})
    nats, right, positions = 0.0, 0.0, 0
    everywhere = torch.ones((1, *GRID), dtype=torch.bool)
    nothing = Conditions(torch.zeros(1, 0), torch.zeros(1, dtype=torch.bool))
    for index, grid in enumerate(grids):
        indices = torch.from_numpy(grid)[None]
        for masking in range(4):
            seed = torch.tensor([seed_of("evaluation", index, masking)])
            masked = draw_masked(seed, everywhere, SPEC.mask_schedule)
            with torch.no_grad():
                logits = model(indices, masked, nothing)
            classes = model.digits.split(indices)
            nats += float(masked_cross_entropy(logits, classes, masked).sum())
            right += float((logits.argmax(-1) == classes)[..., 0][masked].sum())
            positions += int(masked.sum())
    assert found["valid"]["bits_per_index"] == pytest.approx(nats / positions / math.log(2))
    assert found["valid"]["accuracy_digit_0"] == pytest.approx(right / positions)


def test_a_trained_model_beats_the_baseline_and_an_untrained_one_does_not(tmp_path):
    items = _items(tmp_path, "train", _plain(12))
    held_out = {"valid": items}
    objective = MaskGITObjective(SPEC, NETWORK)
    objective.model = _untrained()
    before = evaluate_transformer(_loaded(objective.model), SPEC, train=items, held_out=held_out)[
        "valid"
    ]
    # 12 indices as often as each other: no context, no knowledge.
    assert before["baseline_bits_per_index"] == pytest.approx(math.log2(12), abs=0.01)
    assert before["bits_per_index"] > math.log2(12) - 0.5
    _fit(objective, items)
    model = objective.model
    after = evaluate_transformer(_loaded(model), SPEC, train=items, held_out=held_out)["valid"]
    assert after["bits_per_index"] < 0.6 * after["baseline_bits_per_index"]
    assert after["accuracy_digit_0"] > 0.8 > after["baseline_accuracy_digit_0"]
    torch.manual_seed(7)  # nothing hangs on what was drawn before
    again = evaluate_transformer(_loaded(model), SPEC, train=items, held_out=held_out)["valid"]
    assert again == after


def test_who_sees_no_context_says_the_same_everywhere(tmp_path):
    items = _items(tmp_path, "train", _plain(5))
    model = _untrained()
    blind = without_context(model, items)
    nothing = Conditions(torch.zeros(1, 0), torch.zeros(1, dtype=torch.bool))
    masked = torch.rand((1, *GRID)) < 0.5
    with torch.no_grad():
        shares = blind(torch.randint(12, (1, *GRID)), masked, nothing).softmax(-1)
    torch.testing.assert_close(shares, shares[:, :1, :1, :1].expand_as(shares))
    assert shares[0, 0, 0, 0, 1, 3] == 0  # the second digit has three classes
    # Of five grids, two have the first digit 0: (2 x 24 + 1) of 5 x 24 + 4.
    assert float(shares[0, 0, 0, 0, 0, 0]) == pytest.approx(49 / 124)
    assert len(model.blocks) == 1  # the model stays as it was
    assert model.heads.weight.abs().max() > 0


def test_the_baseline_counts_whole_volumes_however_items_are_cut(tmp_path):
    items = _items(tmp_path, "train", _plain(3))
    items._slab = SlabSpec(size=1, context=0)
    model = _untrained()
    blind = without_context(model, items)
    counts = sum(
        torch.bincount(model.digits.split(items.indices(i))[..., 0].flatten(), minlength=4)
        for i in range(3)
    )
    shares = blind.heads.bias.detach().view(2, 4)[0].exp()
    torch.testing.assert_close(shares, (counts + 1) / (counts + 1).sum())


def test_a_split_without_volumes_has_no_measures(tmp_path):
    items, none = _items(tmp_path, "train", _plain(3)), _items(tmp_path, "tune", [])
    found = evaluate_transformer(_loaded(_untrained()), SPEC, train=items, held_out={"tune": none})
    assert found == {"tune": {"n": 0}}


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    items = _items(tmp_path, "train", _plain(1))
    other = Transformer(_untrained(), GRID, GRID, np.eye(4), (), "b" * 64)
    message = r"train0@0: its tokenizer_sha256 is a{12}, the transformer learnt .* of b{12}; train"
    with pytest.raises(CheckpointError, match=message):
        evaluate_transformer(other, SPEC, train=items, held_out={})
