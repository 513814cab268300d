"""`ct3d segment` on small scans."""

import hashlib

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from ct3dlib.cli import app
from ct3dlib.errors import CheckpointError, ConfigError, VolumeError
from ct3dlib.regions.label_files import read_label_map
from ct3dlib.regions.label_map import LUNGS, region_id
from ct3dlib.regions.refine import Refiner
from ct3dlib.regions.tracker import Track
from ct3dlib.scan.nifti import read_nifti, write_nifti
from ct3dlib.scan.nifti_classes import read_classes
from ct3dlib.scan.volume import Volume
from tests.regions.analytic_chest import chest
from tests.regions.medsam2_golden import native_weights

SHAPE = (12, 64, 96)
# File axes k, j, i in LPS: as CT-RATE writes them, and with every axis the other way round.
ORDERS = {"lps": (1, 1, 1), "ras": (1, -1, -1), "headfirst": (-1, 1, -1)}


def run(*arguments):
    """Run the command; what it raises is raised here."""
    return CliRunner().invoke(app, ["segment", *map(str, arguments)], catch_exceptions=False)


def scan_file(folder, signs=(1, 1, 1)):
    hu = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = *(np.array(signs) * (3.0, 1.5, 1.5)), 1
    path = folder / "scan.nii.gz"
    write_nifti(path, Volume(hu, affine))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "medsam2.pt"
    torch.save({"model": native_weights()}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return "--weights", path, "--sha256", digest


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setenv("CT3D_TEST_MEDSAM2_SIZE", "128")


@pytest.fixture
def draws_the_box(monkeypatch):
    """Let the network draw each box as it was given, in all slices that it may reach."""

    def draw(self, volume, prompts, window):
        del self, volume, window
        tracks = []
        for prompt in prompts:
            x0, y0, x1, y1 = (value / 4 for value in prompt.box)
            y, x = np.mgrid[:32, :32] + 0.5
            inside = torch.from_numpy((x > x0) & (x < x1) & (y > y0) & (y < y1))
            logits = (inside.float() * 20 - 10).repeat(prompt.stop - prompt.start, 1, 1)
            tracks.append(Track(prompt.start, prompt.stop, logits, torch.ones(len(logits))))
        return tracks

    monkeypatch.setattr(Refiner, "draw", draw)


@pytest.mark.parametrize("signs", ORDERS.values(), ids=ORDERS)
def test_a_box_is_where_the_file_says_in_any_order_of_its_axes(
    tmp_path, weights, small, draws_the_box, signs
):
    source = scan_file(tmp_path, signs)
    box = ("--box", 12, 8, 47, 39, "--slice", 3, "--slices", 2, 6)
    done = run(source, "-o", tmp_path / "mask.nii.gz", *box, *weights)
    made = read_nifti(tmp_path / "mask.nii.gz").volume
    assert made.shape == SHAPE
    np.testing.assert_allclose(made.affine, read_nifti(source).volume.affine, atol=1e-5)
    k, j, i = (np.unique(axis) for axis in np.nonzero(made.array))
    assert k.tolist() == [2, 3, 4, 5, 6]
    assert np.abs(np.subtract((j[0], j[-1], i[0], i[-1]), (8, 39, 12, 47))).max() <= 1
    assert read_classes(tmp_path / "mask.nii.gz") == {1: "object"}
    ml = made.array.sum() * 3.0 * 1.5**2 / 1000
    assert f"{ml:.1f} ml in 5 slices" in done.output


def test_the_network_draws_in_a_box(tmp_path, weights, small):
    out = tmp_path / "mask.nii"
    run(scan_file(tmp_path), "-o", out, "--box", 12, 8, 47, 39, "--slice", 3, *weights)
    assert set(np.unique(read_nifti(out).volume.array)) <= {0, 1}


def test_without_a_box_all_regions_are_written_with_their_names(tmp_path):
    volume, truth = chest((4.0, 4.0, 4.0))
    turned = Volume(
        volume.array[:, ::-1, ::-1].copy(),
        volume.affine
        @ np.array(
            [
                [1, 0, 0, 0],
                [0, -1, 0, volume.shape[1] - 1],
                [0, 0, -1, volume.shape[2] - 1],
                [0, 0, 0, 1],
            ]
        ),
    )
    write_nifti(tmp_path / "scan.nii.gz", turned)
    done = run(tmp_path / "scan.nii.gz", "--out", tmp_path / "regions.nii.gz")
    found = read_label_map(tmp_path / "regions.nii.gz")
    assert found.known == frozenset(range(1, 21))
    np.testing.assert_allclose(found.volume.affine, turned.affine, atol=1e-4)
    there, wanted = found.volume.array, truth[:, ::-1, ::-1]
    for part in (LUNGS[:2], LUNGS[2:]):
        one, other = np.isin(there, part), np.isin(wanted, part)
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.9
    assert "heart" in done.output
    assert "classical" in done.output


def test_a_scan_is_never_written_over(tmp_path):
    path = scan_file(tmp_path)
    before = path.read_bytes()
    done = run(path, "-o", path)
    assert done.exit_code == 2
    assert path.read_bytes() == before


@pytest.mark.parametrize("place", ["a.nii.gz", "P01/ct.nii.gz"])
def test_a_config_says_who_finds_regions(tmp_path, place):
    volume, truth = chest((6.0, 6.0, 6.0))
    scan = tmp_path / "raw" / place
    write_nifti(scan, volume)
    heart = np.where(truth == region_id("heart"), 51, 0).astype(np.uint8)
    write_nifti(tmp_path / "maps" / place, Volume(heart, volume.affine, "uint8"))
    regions = {
        "recipe": "chest",
        "providers": ["labelmap"],
        "labelmap": {"folder": str(tmp_path / "maps"), "numbering": "totalsegmentator_v2"},
    }
    document = {"raw_root": str(tmp_path / "raw"), "regions": regions}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))
    out = tmp_path / "regions.nii.gz"
    run(scan, "-o", out, "--config", tmp_path / "config.yaml")
    found = read_nifti(out).volume.array
    assert ((found == region_id("heart")) == (heart > 0)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--box", 12, 8, 47, 39, "--slice", 12), r"the scan has 96 x 64 x 12 voxels \(i, j, k\)"),
        (("--box", 47, 8, 12, 39, "--slice", 3), r"counted from 0, and X0 <= X1, Y0 <= Y1"),
        (("--box", 12, 8, 96, 39, "--slice", 3), r"box \(12, 8, 96, 39\) in slice 3"),
        (("--box", 12, 8, 47, 39, "--slice", 3, "--slices", 4, 6), r"of slices 4 to 6"),
    ],
    ids=["slice", "corners", "outside", "reach"],
)
def test_a_box_outside_the_scan_is_refused(tmp_path, weights, small, arguments, message):
    with pytest.raises(VolumeError, match=message) as refused:
        run(scan_file(tmp_path), "-o", tmp_path / "mask.nii", *arguments, *weights)
    assert refused.value.reason == "BAD_BOX"


def test_a_box_that_is_not_axial_is_refused(tmp_path, weights, small):
    hu = np.random.default_rng(0).integers(-1000, 1000, (20, 30, 40)).astype(np.int16)
    sagittal = np.array([[2.0, 0, 0, 0], [0, 0, 2.0, 0], [0, -2.0, 0, 0], [0, 0, 0, 1]])
    write_nifti(tmp_path / "scan.nii", Volume(hu, sagittal))
    with pytest.raises(VolumeError, match="axis k does not run from feet to head"):
        run(
            *(tmp_path / "scan.nii", "-o", tmp_path / "mask.nii"),
            *("--box", 2, 2, 9, 9, "--slice", 3, *weights),
        )


def test_a_box_needs_weights_by_name_and_hash(tmp_path, weights, monkeypatch):
    monkeypatch.delenv("MEDSAM2_WEIGHTS", raising=False)
    asked = (scan_file(tmp_path), "-o", tmp_path / "m.nii", "--box", 1, 1, 9, 9, "--slice", 3)
    with pytest.raises(ConfigError, match="set MEDSAM2_WEIGHTS and MEDSAM2_SHA256"):
        run(*asked)
    with pytest.raises(CheckpointError, match="sha256"):
        run(*asked, "--weights", weights[1], "--sha256", "0" * 64)
    with pytest.raises(ConfigError, match="sha256"):
        run(*asked, "--weights", weights[1], "--sha256", "beef")
    assert not (tmp_path / "m.nii").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--box", 1, 1, 9, 9), "belong together"),
        (("--slices", 1, 2), "--slices and --window are for an object"),
        (("--window", "lung"), "--slices and --window are for an object"),
        (("--box", 1, 1, 9, 9, "--slice", 3, "--window=-inf,inf"), "nor LOW,HIGH in HU"),
        (("--box", 1, 1, 9, 9, "--slice", 3, "--window", "liver"), "nor LOW,HIGH in HU"),
    ],
    ids=["no slice", "no box", "no object", "endless", "window"],
)
def test_options_that_do_not_fit_are_refused(tmp_path, weights, arguments, message):
    done = run(scan_file(tmp_path), "-o", tmp_path / "m.nii", *arguments, *weights)
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())
