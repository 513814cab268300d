"""A trained segmenter on volumes: axes, windows, boxes."""

import numpy as np
import pytest
import torch

from ct3dlib.config import RecipeSpec, SegmenterNetworkSpec, VolumeEncoderNetworkSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.inference.segmenter import TrainedSegmenter, lesion_table, load_segmenter
from ct3dlib.models.exported import save_model
from ct3dlib.models.segmenter import Segmenter
from ct3dlib.models.volume_encoder import VolumeEncoder
from ct3dlib.scan.volume import Volume
from tests.cubes import SHAPE, TINY, WINDOW, bright_logits, cube

RECIPE = RecipeSpec(shape=SHAPE, window=WINDOW, range=(-1, 1))
CLASSES = ("background", "fat", "lesion")


def network(shape=SHAPE, patch=(13, 8, 8)) -> SegmenterNetworkSpec:
    encoder = {**TINY, "patch_size": patch, "shape": shape, "range": [-1, 1]}
    return SegmenterNetworkSpec.model_validate({"encoder": encoder, "filters": 4, "num_classes": 3})


def segmenter(spec=None, *, recipe=RECIPE, classes=CLASSES) -> TrainedSegmenter:
    torch.manual_seed(0)
    return TrainedSegmenter(Segmenter(spec or network()).eval(), recipe, classes)


@pytest.fixture
def knows(monkeypatch):
    monkeypatch.setattr(Segmenter, "forward", bright_logits)


def test_a_volume_is_what_the_model_says_of_it():
    found, (hu, _) = segmenter(), cube(np.random.default_rng(0))
    told = found.segment(hu, WINDOW)
    seen = torch.from_numpy(hu / 1000).float().clamp(-1, 1)[None, None]
    with torch.no_grad():
        wanted = found.model(seen)[0].softmax(0)
    np.testing.assert_array_equal(told.classes, wanted.argmax(0))
    np.testing.assert_allclose(told.lesions, wanted[2], rtol=1e-5, atol=1e-6)
    assert told.classes.dtype == np.uint8
    assert segmenter(classes=("background", "heart", "aorta")).segment(hu, WINDOW).lesions is None


def test_windows_are_exact_where_one_is_enough():
    found, (hu, _) = segmenter(), cube(np.random.default_rng(1))
    seen = torch.from_numpy(hu / 1000).float().clamp(-1, 1)[None, None]
    with torch.no_grad():
        whole = found.model(seen).softmax(1)
        torch.testing.assert_close(found.in_windows(seen), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "shape", [(20, 30, 41), (13, 16, 25), (9, 40, 11)], ids=["larger", "by one", "smaller too"]
)
def test_windows_cover_a_volume_of_any_shape(knows, shape):
    hu, inside = cube(np.random.default_rng(2), shape)
    told = segmenter().segment(hu, WINDOW)
    np.testing.assert_array_equal(told.classes == 2, inside)
    np.testing.assert_array_equal(told.lesions > 0.5, inside)


def test_what_fills_a_small_volume_is_the_low_end_of_the_range(monkeypatch):
    lows = []

    def look(model, volumes):
        lows.append(volumes[..., -1].max().item())
        return bright_logits(model, volumes)

    monkeypatch.setattr(Segmenter, "forward", look)
    hu, _ = cube(np.random.default_rng(3), (13, 16, 20))
    segmenter().segment(hu, WINDOW)
    assert lows == [-1]


def test_a_model_sees_its_own_order_of_axes_and_gives_back_that_of_the_store(monkeypatch):
    shape, seen = (13, 16, 16), []

    def look(model, volumes):
        seen.append(volumes[0, 0])
        return bright_logits(model, volumes)

    monkeypatch.setattr(Segmenter, "forward", look)
    recipe = RECIPE.model_copy(update={"axes": "dwh", "shape": shape})
    hu, inside = cube(np.random.default_rng(4), shape)
    told = segmenter(network(shape), recipe=recipe).segment(hu, WINDOW)
    np.testing.assert_array_equal(seen[0] > 0, inside.swapaxes(1, 2))
    np.testing.assert_array_equal(told.classes == 2, inside)
    np.testing.assert_array_equal(told.lesions > 0.5, inside)
    # Only so: the box has sides of its own, so one turned over lies elsewhere.
    assert (told.classes.swapaxes(1, 2) != 2 * inside).any()


# Rows: LPS of a step along k, j, i; turned by 20 degrees, k downwards and i to the right.
TURN = np.deg2rad(20)
OBLIQUE = np.array(
    [
        [0, 2 * np.sin(TURN), -1.5 * np.cos(TURN), 40],
        [0, 2 * np.cos(TURN), 1.5 * np.sin(TURN), -7],
        [-3, 0, 0, 90],
        [0, 0, 0, 1],
    ]
)


def test_boxes_are_in_voxels_of_the_file_and_in_mm():
    told = np.zeros((6, 8, 10), np.float32)
    told[1:3, 2:7, 4:5] = 0.6
    told[1, 3, 4] = 0.9
    told[5, 7, 9] = 0.5
    told[4, 0, 0] = 0.4  # too faint
    table = lesion_table(Volume(told, OBLIQUE, "mr"))
    assert table["score"].tolist() == pytest.approx([0.9, 0.5])
    assert table["voxels"].tolist() == [10, 1]
    first, second = table.to_dict("records")
    ends = [first[f"{axis}_{end}"] for axis in "kji" for end in ("start", "stop")]
    assert ends == [1, 3, 2, 7, 4, 5]
    assert [first[f"{axis}_mm"] for axis in "kji"] == pytest.approx([6, 10, 1.5], abs=1e-3)
    centre = OBLIQUE @ [1.5, 4, 4, 1]
    assert [first[f"{axis}_mm"] for axis in "xyz"] == pytest.approx(centre[:3], abs=1e-3)
    assert [second[f"{axis}_start"] for axis in "ijk"] == [9, 7, 5]


def test_without_lesions_the_columns_are_there():
    table = lesion_table(Volume(np.zeros((2, 3, 4), np.float32), OBLIQUE, "mr"))
    assert len(table) == 0
    assert list(table)[:3] == ["score", "voxels", "i_start"]


def test_it_is_loaded_with_its_contract(tmp_path):
    made = segmenter()
    contract = {"recipe": RECIPE.model_dump(mode="json"), "classes": list(CLASSES)}
    save_model(tmp_path, made.model, spec=made.model.spec, contract=contract, training={})
    found = load_segmenter(tmp_path, torch.device("cpu"))
    assert (found.recipe, found.classes) == (RECIPE, CLASSES)
    hu, _ = cube(np.random.default_rng(5))
    np.testing.assert_array_equal(
        found.segment(hu, WINDOW).lesions, made.segment(hu, WINDOW).lesions
    )


def test_another_model_and_an_incomplete_contract_are_refused(tmp_path):
    spec = VolumeEncoderNetworkSpec.model_validate({**TINY, "shape": SHAPE})
    save_model(tmp_path / "a", VolumeEncoder(spec), spec=spec, contract={}, training={})
    with pytest.raises(CheckpointError, match="a VolumeEncoder, no segmenter; give what the rule"):
        load_segmenter(tmp_path / "a", torch.device("cpu"))
    made = segmenter()
    contract = {"recipe": RECIPE.model_dump(mode="json")}
    save_model(tmp_path / "b", made.model, spec=made.model.spec, contract=contract, training={})
    with pytest.raises(CheckpointError, match=r"its contract is incomplete \('classes'\)"):
        load_segmenter(tmp_path / "b", torch.device("cpu"))
