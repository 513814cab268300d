"""A trained encoder in use: the vectors of its model, its texts, and what its files must say."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import RecipeSpec, VlmNetworkSpec
from ct3dlib.errors import CheckpointError, StoreError
from ct3dlib.inference import vlm
from ct3dlib.inference.embed_studies import embed_stored, held_voxels
from ct3dlib.inference.evaluate_vlm import evaluate_vlm
from ct3dlib.inference.vlm import TrainedVlm, freshly_drawn, load_vlm, vlm_contract
from ct3dlib.models.vlm import RegionLanguageModel
from ct3dlib.scan.normalize import normalize
from ct3dlib.scan.volume import Volume
from ct3dlib.text.encoding import encode
from ct3dlib.text.reasoning import Reasoning
from ct3dlib.text.tokenizer import save_tokenizer, train_tokenizer
from tests.inference.vlms import RECIPE as SMALL
from tests.inference.vlms import write_split
from tests.stores import write_shard

# D H W of three lengths; the model sees D W H.
RECIPE = RecipeSpec(
    shape=(8, 16, 12), spacing=(2, 2, 2), range=(0, 1), hu_state="hu", min_slices=2, axes="dwh"
)
SENTENCES = [
    "The heart is enlarged and there is a pleural effusion on the left.",
    "No pleural effusion. The heart is normal in size and shape.",
    "A nodule is seen in the right upper lobe, and the liver is normal.",
]
TEXTS = [Reasoning("", (text, "The aorta is normal."), "report") for text in SENTENCES]
SPEC = VlmNetworkSpec.model_validate(
    {
        "vision": {
            "encoder": {"hidden_size": 16, "num_layers": 2, "num_heads": 2},
            "patch_size": [4, 4, 4],
            "least_voxels": 4,
        },
        "text": {
            "encoder": {"hidden_size": 16, "num_layers": 1, "num_heads": 2},
            "vocabulary": 300,
            "max_steps": 3,
            "max_tokens": 96,
        },
        "embedding_size": 8,
        "shape": [8, 12, 16],
        "spacing": [2, 2, 2],
        "tokens": 300,
    }
)


@pytest.fixture(scope="module")
def trained() -> TrainedVlm:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(SENTENCES, 300)
    return TrainedVlm(RegionLanguageModel(SPEC).eval(), RECIPE, tokenizer, "cd" * 32)


def test_texts_are_those_of_the_model_whatever_the_batch(trained, monkeypatch):
    table = trained.embed_texts(TEXTS)
    monkeypatch.setattr(vlm, "_TEXTS", 2)
    again = trained.embed_texts(TEXTS)
    np.testing.assert_allclose(table.global_, again.global_, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(table.global_, axis=1), 1, atol=1e-5)
    encoded = encode(TEXTS[1], trained.tokenizer, SPEC.text)
    with torch.no_grad():
        one = trained.model.embed_texts(
            torch.from_numpy(encoded.input_ids)[None], torch.from_numpy(encoded.token_regions)[None]
        )
    np.testing.assert_allclose(table.global_[1], one.global_[0], atol=1e-6)
    np.testing.assert_allclose(table.region[1], one.region[0], atol=1e-6)
    assert table.truncated == 0


def test_mentions_and_the_ids_of_what_is_said_of_a_region(trained):
    table = trained.embed_texts([*TEXTS, TEXTS[0]])
    heart, aorta, pleura, spine = 8 - 1, 10 - 1, 13 - 1, 19 - 1
    assert table.mention[:3, heart].tolist() == [1, 0, -1]
    assert table.mention[:3, pleura].tolist() == [1, 0, -1]
    assert table.mention[:3, aorta].tolist() == [0, 0, 0]
    assert (table.mention[:, spine] == -1).all()
    assert table.text_ids[0] == table.text_ids[3]
    assert len(set(table.text_ids[:3])) == 3
    # All say the same of the aorta; of the heart each says something else.
    assert len(set(table.region_ids[:3, aorta])) == 1
    assert len(set(table.region_ids[:3, heart])) == 3
    assert (table.region_ids[0] == table.region_ids[3]).all()
    assert (table.region[:, spine] == 0).all()


def test_sentences_are_texts_of_one_step(trained):
    found = trained.embed_sentences(SENTENCES)
    texts = trained.embed_texts([Reasoning("", (text,), "report") for text in SENTENCES])
    assert (found == texts.global_).all()
    with pytest.raises(ValueError, match="there is no text to embed"):
        trained.embed_sentences([])


def stored_of(folder):
    """Write scans smaller than the recipe, so that they are padded, and masks of one of them."""
    rng = np.random.default_rng(0)
    arrays, records = {}, {}
    for name in "abcde":
        hu = rng.integers(-1000, 800, (6, 10, 9)).astype(np.int16)
        volume, record = normalize(Volume(hu, np.diag([2.0, 2, 2, 1])[[2, 1, 0, 3]]), RECIPE)
        arrays[name], records[name] = np.asarray(volume.array), record
    volumes = stored_volumes([write_shard(folder / "v.parquet", "volumes", arrays, RECIPE)])
    mask = np.zeros(RECIPE.shape, np.uint8)
    mask[2:6, 4:12, 3:9] = 8
    regions = stored_volumes([write_shard(folder / "r.parquet", "regions", {"c": mask}, RECIPE)])
    return volumes, regions, records


def test_stored_volumes_are_seen_as_in_training(trained, tmp_path, monkeypatch):
    volumes, regions, records = stored_of(tmp_path)
    monkeypatch.setattr(
        "ct3dlib.inference.embed_studies.scan_record", lambda volume: records[volume.volume]
    )
    table = embed_stored(trained, volumes, regions=regions)
    assert table.global_.shape == (5, 8)
    assert np.flatnonzero(table.present[2]).tolist() == [7]  # the heart
    assert table.present[[0, 1, 3, 4]].all()  # nobody knows their regions: any may be there
    held = np.zeros(RECIPE.shape, bool)
    held[1:7, 3:13, 1:10] = True  # 6 x 10 x 9 voxels in the middle of 8 x 16 x 12
    assert (held_voxels(records["c"]) == held).all()
    mask = np.asarray(regions[0].read())
    turned = [
        torch.from_numpy(np.ascontiguousarray(array.swapaxes(1, 2)))[None, None]
        for array in (volumes[2].read(), mask, held)
    ]
    with torch.no_grad():
        one = trained.model.embed_scans(
            turned[0], torch.tensor([[-1000.0, 1000.0]]), regions=turned[1], valid=turned[2]
        )
    np.testing.assert_allclose(table.global_[2], one.global_[0], atol=1e-5)
    np.testing.assert_allclose(table.region[2], one.region[0], atol=1e-5)
    # Its mask makes a difference, and so does its padding.
    without = embed_stored(trained, volumes, regions=[])
    assert np.abs(without.global_[2] - table.global_[2]).max() > 1e-4
    np.testing.assert_allclose(
        without.global_[[0, 1, 3, 4]], table.global_[[0, 1, 3, 4]], atol=1e-5
    )


def test_a_mask_of_another_grid_is_refused(trained, tmp_path):
    volumes, regions, _ = stored_of(tmp_path)
    wrong = replace(regions[0], shape=(1, 2, 3))
    with pytest.raises(StoreError, match=r"c: its regions have shape \(1, 2, 3\), the volume \(8,"):
        embed_stored(trained, [volumes[2]], regions=[wrong])


def test_fresh_weights_are_drawn_by_their_seed_alone(trained):
    state = torch.get_rng_state()
    one, same, other = (freshly_drawn(trained, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    found = [m.model.scan_projection.weight for m in (one, same, other, trained)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[3])
    assert not one.model.training
    assert one.recipe == trained.recipe


def exported(trained, **changes):
    """Return what `load_model` finds in a model's folder."""
    contract = {**vlm_contract(trained.recipe, trained.tokenizer), **changes}
    contract = {key: value for key, value in contract.items() if value is not None}
    return SimpleNamespace(module=trained.model, contract=contract, sha256=trained.sha256)


def test_a_folder_holds_model_tokenizer_and_contract(trained, tmp_path, monkeypatch):
    save_tokenizer(trained.tokenizer, tmp_path / "tokenizer")
    monkeypatch.setattr(vlm, "load_model", lambda folder: exported(trained))
    found = load_vlm(tmp_path, torch.device("cpu"))
    assert (found.recipe, found.sha256) == (RECIPE, trained.sha256)
    assert (found.embed_sentences(SENTENCES) == trained.embed_sentences(SENTENCES)).all()
    assert found.shape == (8, 12, 16)
    assert found.scale == pytest.approx(1 / 0.07)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": None}, r"its contract is incomplete \('recipe'\)"),
        ({"tokenizer_sha256": "00" * 32}, "the model was trained with 000000000000; put the token"),
        ({"label_map": "0"}, "trained on label map 0, this program has .*train the model again"),
    ],
    ids=["recipe", "tokenizer", "label-map"],
)
def test_a_contract_that_does_not_fit_is_refused(trained, tmp_path, monkeypatch, changes, message):
    save_tokenizer(trained.tokenizer, tmp_path / "tokenizer")
    monkeypatch.setattr(vlm, "load_model", lambda folder: exported(trained, **changes))
    with pytest.raises(CheckpointError, match=message):
        load_vlm(tmp_path, torch.device("cpu"))


def test_another_model_or_no_tokenizer_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(vlm, "load_model", lambda folder: exported(trained))
    with pytest.raises(CheckpointError, match=r"tokenizer: no tokenizer\.json"):
        load_vlm(tmp_path, torch.device("cpu"))
    other = SimpleNamespace(module=torch.nn.Linear(1, 1), contract={}, sha256="")
    monkeypatch.setattr(vlm, "load_model", lambda folder: other)
    with pytest.raises(CheckpointError, match="a Linear, no vision-language encoder; give what"):
        load_vlm(tmp_path, torch.device("cpu"))


def test_another_lexicon_is_warned_of(trained, tmp_path, monkeypatch, caplog):
    save_tokenizer(trained.tokenizer, tmp_path / "tokenizer")
    monkeypatch.setattr(vlm, "load_model", lambda folder: exported(trained, lexicon="older"))
    load_vlm(tmp_path, torch.device("cpu"))
    assert "trained with lexicon older of mentions" in caplog.text


def test_a_whole_evaluation_of_real_weights_beside_fresh_ones(trained, tmp_path):
    split = write_split(tmp_path, 6, seed=3)
    vision = SPEC.vision.model_copy(update={"patch_size": (2, 3, 4)})
    torch.manual_seed(0)
    model = RegionLanguageModel(SPEC.model_copy(update={"vision": vision})).eval()
    one = replace(trained, model=model, recipe=SMALL)
    found = evaluate_vlm(one, split, tune=split, random=freshly_drawn(one, seed=1), resamples=3)
    metrics = found.metrics
    json.dumps(metrics, allow_nan=False)
    assert (metrics["n"], len(found.ranks)) == (6, 12)
    assert metrics["retrieval"]["first"]["both"]["chance_r1"] == pytest.approx(1 / 6)
    assert found.ranks["rank"].between(1, 6).all()
    assert metrics["region_accuracy"] is not None
    fresh = metrics["random_initialisation"]
    assert fresh["zero_shot_auroc"].keys() == metrics["zero_shot_auroc"].keys()
    assert fresh["zero_shot_auroc"] != metrics["zero_shot_auroc"]
