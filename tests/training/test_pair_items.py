"""Studies and their texts, as items."""

import logging
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ct3dlib.cohort.store import create_store, stored_volumes, write_node, write_table
from ct3dlib.cohort.studies import Study, group_studies
from ct3dlib.config import RecipeSpec
from ct3dlib.errors import StoreError
from ct3dlib.scan.normalize import normalize
from ct3dlib.scan.volume import Volume
from ct3dlib.text.encoding import EncodedText
from ct3dlib.training.loader import batches, validation_batches
from ct3dlib.training.pair_items import PairItems, derangement
from tests.contracts.objective_cases import spec_of
from tests.stores import write_shard

SHAPE = (2, 3, 4)
PLACES = np.arange(24).reshape(SHAPE)
COUNTS = {"1_a": 3, "1_b": 1, "2_a": 2, "3_a": 2}  # reconstructions of each study


def text_of(number: int, shape: tuple[int, int] = (2, 3)) -> EncodedText:
    ids = np.full(shape, number, np.int32)
    mention = np.full(20, -1, np.int8)
    return EncodedText(ids, ids << 2, mention, np.int64(1000 + number), truncated=0)


TEXTS = {study: text_of(number) for number, study in enumerate(COUNTS)}


def value(study: str, number: int) -> int:
    """Return what the first voxel of a reconstruction holds, by which it is known."""
    return 100 * list(COUNTS).index(study) + 30 * number


def stored(folder: Path, recipe: RecipeSpec) -> tuple[list[Study], list]:
    """Return studies, and regions of all volumes but those of 3_a."""
    names = {f"{s}_{i}": value(s, i) for s, count in COUNTS.items() for i in range(count)}
    arrays = {name: (PLACES + first).astype(np.int16) for name, first in names.items()}
    masks = {n: (a % 21).astype(np.uint8) for n, a in arrays.items() if not n.startswith("3_a")}
    volumes = write_shard(folder / "volumes.parquet", "volumes", arrays, recipe)
    regions = write_shard(folder / "regions.parquet", "regions", masks, recipe)
    rows = [{"volume": n, "study": n[:3], "patient": n[0]} for n in names]
    studies = group_studies(stored_volumes([volumes]), pd.DataFrame(rows))
    return studies, stored_volumes([regions])


def items(folder: Path, recipe: RecipeSpec | None = None, *, texts=TEXTS, **keys) -> PairItems:
    recipe = recipe or RecipeSpec()
    studies, regions = stored(folder, recipe)
    return PairItems(studies, texts, recipe=recipe, **{"regions": regions, **keys})


@pytest.mark.parametrize("axes", ["dhw", "dwh"])
def test_an_item_is_a_scan_its_regions_and_its_text(tmp_path, axes):
    found = items(tmp_path, RecipeSpec(window=(-5, 7), axes=axes))
    assert len(found) == 4
    assert found.shape == ((2, 3, 4) if axes == "dhw" else (2, 4, 3))
    item = found.item(2, np.random.default_rng(0))
    first = int(item["values"][0, 0, 0, 0])
    assert first in {value("2_a", 0), value("2_a", 1)}
    places = PLACES if axes == "dhw" else PLACES.swapaxes(1, 2)
    assert torch.equal(item["values"], torch.from_numpy(places + first).short()[None])
    assert torch.equal(item["regions"], (item["values"] % 21).byte())
    assert item["window"].tolist() == [-5, 7]
    assert item["input_ids"].tolist() == [[2] * 3] * 2
    assert item["token_regions"].tolist() == [[8] * 3] * 2
    assert item["mention"].tolist() == [-1] * 20
    assert item["text_id"].item() == 1002
    assert {name: str(of.dtype)[6:] for name, of in item.items()} == {
        "values": "int16",
        "window": "float32",
        "regions": "uint8",
        "input_ids": "int32",
        "token_regions": "int32",
        "mention": "int8",
        "text_id": "int64",
        "study_id": "int64",
    }


def test_regions_that_nobody_looked_for_are_unknown(tmp_path):
    item = items(tmp_path).item(3, np.random.default_rng(0))
    assert item["regions"].dtype == torch.uint8
    assert item["regions"].shape == (1, *SHAPE)
    assert item["regions"].unique().tolist() == [255]
    without = items(tmp_path / "none", regions=()).item(0, np.random.default_rng(0))
    assert without["regions"].unique().tolist() == [255]


def test_studies_without_a_text_are_left_out_and_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, "ct3dlib.training.pair_items")
    texts = {name: text for name, text in TEXTS.items() if name != "1_b"}
    found = items(tmp_path, texts={**texts, "9_z": text_of(9)})
    assert [study.name for study in found.studies] == ["1_a", "2_a", "3_a"]
    assert found.item(1, np.random.default_rng(0))["text_id"].item() == 1002
    assert caplog.messages == [
        "3 studies of 7 volumes with a text, 5 of the volumes with regions; 1 studies without a "
        "text are left out"
    ]


def test_an_epoch_holds_one_reconstruction_of_each_study_and_all_come_in_time(tmp_path):
    spec = spec_of(steps=40, batch_size=4, micro_batch_size=4)
    found = items(tmp_path)
    seen = set()
    for (batch,) in batches(found, spec, first_step=0):
        text_ids, values = batch["text_id"].tolist(), batch["values"][:, 0, 0, 0, 0].tolist()
        assert sorted(text_ids) == [1000, 1001, 1002, 1003]  # a step is an epoch
        assert len(set(batch["study_id"].tolist())) == 4
        seen |= set(zip(text_ids, values, strict=True))
    wanted = {(1000 + n, value(s, i)) for n, s in enumerate(COUNTS) for i in range(COUNTS[s])}
    assert seen == wanted


def test_validation_takes_the_first_reconstruction(tmp_path):
    found = items(tmp_path, draw=False)
    firsts = {
        (study, int(first))
        for batch, _ in validation_batches(found, spec_of(validation_items=4))
        for study, first in zip(batch["text_id"], batch["values"][:, 0, 0, 0, 0], strict=True)
    }
    assert {(int(text), first) for text, first in firsts} == {
        (1000 + n, value(study, 0)) for n, study in enumerate(COUNTS)
    }
    rngs = [np.random.default_rng(seed) for seed in range(9)]
    assert {int(found.item(0, rng)["values"].min()) for rng in rngs} == {0}


def test_items_cross_to_another_process(tmp_path):
    found = items(tmp_path)
    copied = pickle.loads(pickle.dumps(found))
    for name, of in found.item(0, np.random.default_rng(1)).items():
        assert torch.equal(copied.item(0, np.random.default_rng(1))[name], of)
    assert copied.key == found.key


def test_the_key_tells_all_that_an_item_holds(tmp_path):
    one = items(tmp_path / "a")
    assert one.key == items(tmp_path / "b").key
    spoken = {**TEXTS, "2_a": replace(TEXTS["2_a"], mention=np.zeros(20, np.int8))}
    others = [
        items(tmp_path / "c", texts=spoken),
        items(tmp_path / "d", regions=()),
        items(tmp_path / "e", draw=False),
        items(tmp_path / "f", RecipeSpec(window=(0, 1))),
        one.shuffled(0),
    ]
    assert len({one.key, *(other.key for other in others)}) == 6


def test_what_a_recipe_padded_is_not_valid(tmp_path):
    recipe = RecipeSpec(shape=(4, 2, 6), min_slices=1, axes="dwh")
    affine = np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]]
    scan = Volume(np.full(SHAPE, 40, np.int16), affine, "hu")
    volume, record = normalize(scan, recipe)
    store = tmp_path / "0.zarr"
    create_store(store, "volumes")
    ct3d = {"affine": volume.affine.tolist(), "record": record.model_dump(mode="json")}
    sha256 = write_node(store, "a@0", volume.array, attributes={"ct3d": ct3d})
    row = {"volume": "a", "status": "stored", "reason": "", "message": "", "node": "a@0"}
    table = pd.DataFrame([{**row, "sha256": sha256, "shape": list(volume.shape)}])
    write_table(table, tmp_path / "0.parquet")
    (found,) = stored_volumes([tmp_path / "0.parquet"])
    studies = [Study("a", "p", (found,))]
    item = PairItems(studies, {"a": text_of(0)}, recipe=recipe).item(0, np.random.default_rng(0))
    assert item["valid"].dtype == torch.bool
    # Two slices in the middle of four; four columns of six, which stand where models see rows.
    wanted = torch.zeros(1, 4, 6, 2, dtype=torch.bool)
    wanted[:, 1:3, 1:5] = True
    assert torch.equal(item["valid"], wanted)
    assert torch.equal(item["values"] == 40, wanted)


def test_a_store_without_records_cannot_say_what_is_padded(tmp_path):
    found = items(tmp_path, RecipeSpec(shape=SHAPE))
    with pytest.raises(StoreError, match="has no record of its scan; run its rule again"):
        found.item(0, np.random.default_rng(0))


def test_texts_of_two_shapes_are_refused(tmp_path):
    texts = {**TEXTS, "2_a": text_of(2, (2, 4))}
    with pytest.raises(ValueError, match=r"input_ids of texts need one shape, not \[\(2, 3\), "):
        items(tmp_path, texts=texts)


def test_regions_of_another_grid_are_refused(tmp_path):
    wrong = {"2_a_1": np.zeros((2, 3, 5), np.uint8)}
    table = write_shard(tmp_path / "wrong.parquet", "regions", wrong, RecipeSpec())
    with pytest.raises(StoreError, match=r"2_a_1: its regions have shape \(2, 3, 5\)"):
        items(tmp_path, regions=stored_volumes([table]))


def test_shuffled_studies_have_the_text_of_another_patient(tmp_path):
    texts = {**TEXTS, "3_b": text_of(4), "4_a": text_of(5)}
    studies = [
        Study(name, name[0], stored(tmp_path, RecipeSpec())[0][0].volumes[:1]) for name in texts
    ]
    found = PairItems(studies, texts, recipe=RecipeSpec())
    shuffled = found.shuffled(3)
    given = [int(shuffled.item(i, np.random.default_rng(0))["text_id"]) - 1000 for i in range(6)]
    assert sorted(given) == list(range(6))
    assert all(studies[i].patient != studies[j].patient for i, j in enumerate(given))
    item, before = (of.item(0, np.random.default_rng(0)) for of in (shuffled, found))
    assert torch.equal(item["input_ids"], torch.full((2, 3), given[0], dtype=torch.int32))
    assert torch.equal(item["study_id"], before["study_id"])
    assert torch.equal(item["values"], before["values"])
    assert before["text_id"].item() == 1000  # the items themselves are as they were
    assert shuffled.key == found.shuffled(3).key != found.shuffled(4).key


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_nobody_keeps_a_text_of_the_own_patient_or_an_equal_one(data, seed):
    n = data.draw(st.integers(13, 60))
    # At most 3 studies of a patient and 3 of a text: 2 (3 + 3) < 13.
    patients = [f"p{i // 3}" for i in data.draw(st.permutations(range(n)))]
    texts = [i // 3 for i in data.draw(st.permutations(range(n)))]
    order = derangement(patients, texts, seed=seed)
    assert sorted(order.tolist()) == list(range(n))
    assert all(patients[i] != patients[j] for i, j in enumerate(order))
    assert all(texts[i] != texts[j] for i, j in enumerate(order))
    np.testing.assert_array_equal(order, derangement(patients, texts, seed=seed))


def test_derangements_of_all_kinds_are_drawn():
    # Of four studies of four patients there are nine derangements.
    drawn = {tuple(derangement("abcd", range(4), seed=seed).tolist()) for seed in range(300)}
    assert len(drawn) == 9


def test_a_text_that_half_the_studies_share_is_dealt_to_the_other_half():
    patients, texts = [f"p{i}" for i in range(20)], [0] * 10 + [*range(1, 11)]
    for seed in range(20):
        order = derangement(patients, texts, seed=seed)
        assert sorted(order[:10].tolist()) == list(range(10, 20))


def test_too_many_equal_texts_cannot_be_shuffled():
    wanted = "5 studies cannot each have the text .*: 2 are of one patient, 3 have one text; take"
    with pytest.raises(ValueError, match=wanted):
        derangement(["a", "a", "b", "c", "d"], [7, 7, 7, 1, 2], seed=0)
