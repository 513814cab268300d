"""`ct3d segment --model` on small scans."""

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from ct3dlib.cli import app
from ct3dlib.config import RecipeSpec, SegmenterNetworkSpec
from ct3dlib.models.exported import save_model
from ct3dlib.models.segmenter import Segmenter
from ct3dlib.regions.classes import class_names
from ct3dlib.scan.nifti import read_nifti, write_nifti
from ct3dlib.scan.nifti_classes import read_classes
from ct3dlib.scan.volume import Volume
from tests.cubes import SHAPE, TINY, WINDOW, bright_logits

# Steps along the file's k, j, i in LPS mm: k to the feet, i to the right, turned by 15 degrees.
TURN = np.deg2rad(15)
OBLIQUE = np.array(
    [
        [0, 2 * np.sin(TURN), -1.5 * np.cos(TURN), 40],
        [0, 2 * np.cos(TURN), 1.5 * np.sin(TURN), -7],
        [-3, 0, 0, 90],
        [0, 0, 0, 1],
    ]
)
BOX = (slice(1, 4), slice(1, 6), slice(14, 20))  # k, j, i; on one side of each axis


@pytest.fixture(autouse=True)
def _knows(monkeypatch):
    monkeypatch.setattr(Segmenter, "forward", bright_logits)


def run(*arguments):
    """Run the command; what it raises is raised here."""
    return CliRunner().invoke(app, ["segment", *map(str, arguments)], catch_exceptions=False)


def model(folder, kinds=("regions", "lesions"), **recipe):
    classes = class_names(kinds)
    encoder = {**TINY, "shape": SHAPE, "range": [0, 1]}
    spec = SegmenterNetworkSpec.model_validate(
        {"encoder": encoder, "filters": 2, "num_classes": len(classes)}
    )
    seen = RecipeSpec(hu_state="hu", min_slices=1, window=WINDOW, range=(0, 1), **recipe)
    contract = {"recipe": seen.model_dump(mode="json"), "classes": list(classes)}
    save_model(folder / "model", Segmenter(spec), spec=spec, contract=contract, training={})
    return folder / "model"


def scan(folder, factor=1, affine=OBLIQUE, shape=(12, 15, 22)):
    """Write a scan whose box is bright; `factor` times as many voxels, that much smaller."""
    inside = np.zeros([n * factor for n in shape], bool)
    inside[tuple(slice(s.start * factor, s.stop * factor) for s in BOX)] = True
    hu = np.where(inside, 700, -700).astype(np.int16)
    finer = affine @ np.diag([1 / factor] * 3 + [1])
    write_nifti(folder / "scan.nii.gz", Volume(hu, finer))
    return folder / "scan.nii.gz", inside


RECIPES = {
    "padded": (1, {"shape": SHAPE}, 0),
    "resampled": (2, {"spacing": (3.0, 2.0, 1.5), "shape": SHAPE}, 1),
}


@pytest.mark.parametrize(("factor", "recipe", "off"), RECIPES.values(), ids=RECIPES)
def test_a_lesion_is_where_it_is_in_an_oblique_and_flipped_file(tmp_path, factor, recipe, off):
    source, inside = scan(tmp_path, factor)
    out, boxes = tmp_path / "mask.nii.gz", tmp_path / "new" / "boxes.csv"
    done = run(source, "--model", model(tmp_path, **recipe), "-o", out, "--boxes", boxes)
    made = read_nifti(out).volume
    np.testing.assert_allclose(made.affine, read_nifti(source).volume.affine, atol=1e-5)
    assert made.shape == inside.shape
    told = made.array == 21
    assert 2 * (told & inside).sum() / (told.sum() + inside.sum()) > (0.8 if off else 0.999)
    # Turned over along any axis it would be another box.
    assert all((np.flip(told, axis) & inside).sum() < told.sum() / 2 for axis in range(3))
    assert read_classes(out)[21] == "lesion"
    assert len(read_classes(out)) == 21
    table = pd.read_csv(boxes)
    assert len(table) == 1
    assert "boxes.csv: 1 lesions" in done.output
    found = table.iloc[0]
    for axis, side in zip("kji", BOX, strict=True):
        ends = found[f"{axis}_start"], found[f"{axis}_stop"]
        wanted = side.start * factor, side.stop * factor
        assert np.abs(np.subtract(ends, wanted)).max() <= off
    # The middle of the box in mm, whose first voxel's centre is that of the file for any factor.
    middle = [(s.start + s.stop - 1 / factor) / 2 for s in BOX]
    centre = (OBLIQUE @ [*middle, 1])[:3]
    assert np.linalg.norm(found[["x_mm", "y_mm", "z_mm"]].to_numpy(float) - centre) < 0.01 + off
    assert found["score"] > 0.95


def test_regions_alone_have_no_boxes(tmp_path):
    source, _ = scan(tmp_path)
    folder = model(tmp_path, ["regions"], shape=SHAPE)
    done = run(source, "--model", folder, "-o", tmp_path / "m.nii", "--boxes", tmp_path / "b.csv")
    assert done.exit_code == 2
    assert "and no lesions" in done.output
    assert not (tmp_path / "m.nii").exists()
    run(source, "--model", folder, "-o", tmp_path / "m.nii")
    assert len(read_classes(tmp_path / "m.nii")) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--boxes", "b.csv"), "of the lesions that it tells"),
        (("--model", "m", "--box", 1, 1, 2, 2, "--slice", 1), "without --box, --slices"),
        (("--model", "m", "--window", "lung"), "without --box, --slices"),
        (("--model", "m", "--boxes", "b.txt"), "the name must end with .csv"),
    ],
    ids=["no model", "box", "window", "name"],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, arguments, message):
    source, _ = scan(tmp_path)
    done = run(source, "-o", tmp_path / "m.nii", *arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())


def test_what_a_recipe_crops_is_background(tmp_path):
    affine = np.diag([3.0, 2.0, 1.5, 1])[[2, 1, 0, 3]]
    source, inside = scan(tmp_path, affine=affine, shape=(16, 20, 30))
    out = tmp_path / "m.nii"
    run(source, "--model", model(tmp_path, ["lesions"], shape=SHAPE), "-o", out)
    told = read_nifti(out).volume.array
    kept = np.zeros_like(inside)
    kept[1:14, 2:18, 3:27] = True
    np.testing.assert_array_equal(told, inside & kept)
