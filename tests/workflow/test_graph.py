"""The whole graph in miniature: everything real, everything accounted for."""

import json
import math
import re
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import yaml

from ct3dlib.cohort.store import read_status, stored_volumes

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]


def planned_rules(done: subprocess.CompletedProcess[str]) -> set[str]:
    """Return the rules of a dry run's job table."""
    table = re.search(r"^job +count\n-+ +-+\n(.*?)\ntotal", done.stdout, re.S | re.M)
    return {line.split()[0] for line in table.group(1).splitlines()} if table else set()


@pytest.mark.parametrize("preset", sorted(p.name for p in Path("configs").glob("*.yaml")))
def test_every_preset_dry_runs(preset, repository, snakemake, tmp_path):
    done = snakemake(
        "-n",
        "all",
        directory=tmp_path,
        preset=repository / "configs" / preset,
        CT3D_RAW=str(tmp_path),
        MEDSAM2_WEIGHTS=str(tmp_path / "medsam2.pt"),
        MEDSAM2_SHA256="0" * 64,
    )
    assert done.returncode == 0, done.stderr
    assert "encode" in planned_rules(done)


def test_a_missing_raw_folder_variable_is_named(repository, snakemake, tmp_path):
    done = snakemake("-n", directory=tmp_path, preset=repository / "configs/folder.yaml")
    assert done.returncode != 0
    assert "the environment variable CT3D_RAW is not set" in done.stderr + done.stdout


def test_afterwards_nothing_is_left_to_do(finished, snakemake):
    done = snakemake("-n", "all", directory=finished)
    assert "Nothing to be done" in done.stdout + done.stderr


def test_encoders_say_something_of_every_series(finished):
    catalog = pd.read_parquet(finished / "data/catalog/ct_rate.parquet")
    for split in ("train", "tune", "valid"):
        wanted = sorted(catalog.loc[catalog["split"] == split, "volume"])
        embedded = pd.read_parquet(finished / f"embeddings/{split}.parquet")
        assert embedded["volume"].tolist() == wanted
        made = embedded[embedded["status"] == "embedded"]
        assert {len(row) for row in made["class"]} <= {24}
        assert {len(row) for row in made["regional"]} <= {24 * 64}
    predictions = pd.read_csv(finished / "predictions/valid.csv")
    assert sorted(predictions["volume"]) == wanted
    told = predictions[predictions["status"] == "predicted"].filter(like="prob_")
    assert told.shape == (2, 18)
    assert ((told > 0) & (told < 1)).all().all()
    measured = json.loads((finished / "metrics/mae.json").read_text())
    assert measured["counts"] == {"finetune": 2, "segment": 2}
    assert measured["reconstruction"]["n"] == 2
    assert len(measured["auroc"]) == 18
    assert 0 <= measured["dice"]["lungs"] <= 1
    assert "Masked autoencoder" in (finished / "results/report.html").read_text()


def test_every_series_is_accounted_for_at_every_stage(finished):
    catalog = pd.read_parquet(finished / "data/catalog/ct_rate.parquet")
    files = [
        p
        for split in ("train", "valid")
        for p in (finished / f"data/raw/dataset/{split}").glob("*/*/*")
    ]
    assert len(catalog) == len(files)
    for split in ("train", "tune", "valid"):
        rows = catalog[catalog["split"] == split]
        tokens = pd.read_parquet(finished / f"tokens/{split}.parquet")
        assert sorted(tokens["volume"]) == sorted(rows["volume"])
        stored = [
            read_status(p)
            for p in sorted((finished / f"data/volumes/chest/{split}").glob("*.parquet"))
        ]
        assert sorted(pd.concat(stored)["volume"]) == sorted(rows["volume"])
    assert catalog.groupby("patient")["split"].nunique().max() == 1


def test_each_damaged_series_is_rejected_with_its_own_reason(finished):
    tokens = pd.read_parquet(finished / "tokens/valid.parquet")
    rejected = tokens[tokens["status"] == "rejected"]
    assert sorted(rejected["reason"]) == [
        "FILE_TRUNCATED",
        "NAN_VOXELS",
        "NO_METADATA",
        "SINGLE_SLICE",
    ]
    assert set(rejected["stage"]) == {"volumes"}
    assert all(rejected["message"].str.len() > 20)
    marker = json.loads((finished / "tokens/valid.done").read_text())
    assert marker["volumes"] == len(tokens)
    assert marker["encoded"] == len(tokens) - 4
    assert marker["bits_per_token"] == 18


def test_stored_volumes_are_hu_in_the_window_of_the_format(finished):
    tables = sorted((finished / "data/volumes/chest").glob("*/*.parquet"))
    volumes = stored_volumes(tables)
    assert volumes
    for volume in volumes:
        array = volume.read()
        assert array.dtype == np.int16
        assert array.shape == (25, 40, 48)
        assert array.min() >= -1024
        assert array.max() <= 3071
        assert np.median(array[:, 18:22, 20:28]) > -200  # the mediastinum is soft tissue


def test_stores_are_measured_and_drawn(finished):
    found = json.loads((finished / "data/volumes/chest/statistics.json").read_text())
    catalog = pd.read_parquet(finished / "data/catalog/ct_rate.parquet")
    whole = found["splits"]["all"]
    assert (whole["series"], whole["rejected"]) == (len(catalog), 4)
    assert whole["stored"] == found["disk"]["volumes"] == len(catalog) - 4
    assert found["duplicates"] == []
    sheets = (finished / "results/qc/chest").rglob("*.png")
    assert sorted(str(p.relative_to(finished / "results/qc/chest")) for p in sheets) == [
        *("train/0000.png", "train/0001.png"),
        *("tune/0000.png", "valid/0000.png", "valid/0001.png"),
    ]


def test_metric_files_have_their_keys(finished):
    reconstruction = json.loads((finished / "metrics/reconstruction.json").read_text())
    valid = reconstruction["lfq"]["valid"]
    numbers = ("psnr_db", "ssim", "hu_mae", "code_usage", "mean_volume_psnr_db", "n")
    assert all(math.isfinite(valid[name]) for name in numbers)
    assert 0 < valid["code_usage"] <= 1
    generation = json.loads((finished / "metrics/generation.json").read_text())
    numbers = ("kid", "ms_ssim_diversity", "nearest_train_psnr_db", "copies", "n")
    assert all(math.isfinite(generation[name]) for name in numbers)
    assert generation["frechet"] is None  # two volumes are fewer than its 36 features
    assert "label_balanced_accuracy" in generation
    transformer = json.loads((finished / "metrics/transformer.json").read_text())
    assert {split: found["n"] for split, found in transformer.items()} == {"tune": 2, "valid": 2}
    for found in transformer.values():
        # Four steps teach nothing: no more than what 18 bits hold, and no less than its marginals.
        assert 0 < found["baseline_bits_per_index"] < found["bits_per_index"] + 1 < 25
        assert 0 <= found["accuracy_digit_1"] <= 1
    regions = json.loads((finished / "metrics/regions.json").read_text())
    assert {"dice", "backend", "spacing"} <= set(regions)
    assert regions["dice"]["lungs"] > 0.7


def test_samples_are_nifti_in_hu_on_a_right_grid(finished):
    table = pd.read_csv(finished / "samples/samples.csv")
    assert len(table) == 2
    for name in table["file"]:
        image = nibabel.load(finished / "samples" / name)
        assert image.shape == (48, 40, 25)
        assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
        # Truncated sizes stretch the spacing a little beyond the recipe's.
        assert np.allclose(image.header.get_zooms(), (8, 8, 12), rtol=0.03)
        values = np.asanyarray(image.dataobj)
        assert values.min() >= -1024
        assert values.max() <= 3071


def test_the_report_is_self_contained_and_tells_what_was_rejected(finished):
    page = (finished / "results/report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    for reason in ("FILE_TRUNCATED", "NAN_VOXELS", "NO_METADATA", "SINGLE_SLICE"):
        assert reason in page
    assert page.count("data:image/png;base64,") >= 6


def test_decode_returns_to_the_scans_own_grid(finished, tmp_path, environment):
    tokens = pd.read_parquet(finished / "tokens/train.parquet")
    volume = tokens[tokens["status"] == "encoded"]["volume"].iloc[0]
    output = tmp_path / "x.nii.gz"
    command = ["ct3d", "decode", "tokens/train", "--volume", volume, "-o", str(output)]
    done = subprocess.run(command, cwd=finished, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    catalog = pd.read_parquet(finished / "data/catalog/ct_rate.parquet").set_index("volume")
    decoded = nibabel.load(output)
    depth, height, width = catalog.loc[volume, "shape"]
    assert decoded.shape == (width, height, depth)
    spacing = catalog.loc[volume, "spacing"]
    assert np.allclose(decoded.header.get_zooms(), spacing[::-1], atol=1e-3)


def test_verify_finds_one_flipped_byte_and_describe_prints_the_contract(copy, environment):
    def ct3d(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ct3d", *arguments], cwd=copy, env=environment, capture_output=True, text=True
        )

    assert ct3d("verify", "tokens", "data", "--model", "models/lfq").returncode == 0
    store = next((copy / "data/volumes/chest/tune").glob("*.zarr"))
    store.rename(store.with_name("away"))
    assert "cannot be read" in ct3d("verify", "data").stdout
    payload = next((copy / "tokens/train").glob("*.zarr/*/0/c.0"))
    content = bytearray(payload.read_bytes())
    content[len(content) // 2] ^= 16
    payload.write_bytes(content)
    done = ct3d("verify", "tokens")
    assert done.returncode == 1
    assert "1 problems" in done.stdout
    described = ct3d("describe", "models/lfq").stdout
    assert '"spacing"' in described
    assert "msb_first_channel0" in described
    missing = ct3d("decode", "tokens/train", "--volume", "nobody", "-o", "x.nii.gz")
    assert missing.returncode == 1
    assert "no volume 'nobody'" in missing.stderr


def test_editing_transformer_steps_reruns_only_what_follows(
    finished, snakemake, miniature, tmp_path
):
    changed = yaml.safe_load(miniature.read_text())
    changed["transformer"]["steps"] = 5
    preset = tmp_path / "changed.yaml"
    preset.write_text(yaml.safe_dump(changed))
    done = snakemake("-n", "all", directory=finished, preset=preset)
    assert planned_rules(done) == {
        *("all", "transformer", "evaluate_transformer", "samples", "evaluate_samples", "report")
    }


def test_editing_the_tokenizer_encodes_anew_and_leaves_the_volumes(
    finished, snakemake, miniature, tmp_path
):
    changed = yaml.safe_load(miniature.read_text())
    changed["tokenizers"]["lfq"]["steps"] = 5
    preset = tmp_path / "changed.yaml"
    preset.write_text(yaml.safe_dump(changed))
    planned = planned_rules(snakemake("-n", "all", directory=finished, preset=preset))
    assert {"tokenizer", "encode", "transformer", "samples", "report"} <= planned
    assert not planned & {"phantom", "catalog", "volumes", "regions"}


def test_a_shard_is_made_again_without_redoing_its_volumes(copy, snakemake):
    table = sorted((copy / "data/volumes/chest/train").glob("*.parquet"))[0]
    arrays = {p: p.stat().st_mtime_ns for p in table.with_suffix(".zarr").glob("*/0/c.*")}
    before = table.read_bytes()
    assert arrays
    table.unlink()
    target = str(table.relative_to(copy))
    done = snakemake(target, "--cores", "2", directory=copy)
    assert done.returncode == 0, done.stderr
    assert {p: p.stat().st_mtime_ns for p in arrays} == arrays
    assert table.read_bytes() == before


def test_the_table_of_texts_is_an_input_of_the_transformer(snakemake, tmp_path):
    preset = tmp_path / "texts.yaml"
    preset.write_text("transformer: {text: {embeddings: texts.parquet}}\n")
    plain = snakemake("-n", directory=tmp_path)
    assert plain.returncode == 0, plain.stderr
    assert "texts.parquet" not in plain.stdout
    done = snakemake("-n", directory=tmp_path, preset=preset)
    assert done.returncode != 0
    assert "Missing input files for rule transformer" in done.stderr + done.stdout
    (tmp_path / "texts.parquet").touch()
    done = snakemake("-n", directory=tmp_path, preset=preset)
    assert done.returncode == 0, done.stderr
    assert "texts.parquet" in done.stdout


def test_the_default_report_command_names_an_unknown_key(repository, snakemake, tmp_path):
    preset = tmp_path / "wrong.yaml"
    preset.write_text("transformer: {stepz: 3}\n")
    done = snakemake("-n", directory=tmp_path, preset=preset)
    assert done.returncode != 0
    assert "stepz" in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("nowhere/lfq", r"tokenizers\.lfq\.init_from: no model in .*nowhere/lfq; correct the path"),
        ("models/lfq", r"init_from: models/lfq is what this training makes; name another model"),
    ],
)
def test_a_start_that_is_no_model_is_named(start, message, snakemake, tmp_path):
    preset = tmp_path / "start.yaml"
    preset.write_text(f"tokenizers: {{lfq: {{init_from: {start}, steps: 0}}}}\n")
    done = snakemake("-n", directory=tmp_path, preset=preset)
    assert done.returncode != 0
    assert re.search(message, " ".join((done.stderr + done.stdout).split()))


def test_a_training_may_start_from_another_one_of_the_run(snakemake, tmp_path):
    preset = tmp_path / "start.yaml"
    starts = [
        "tokenizers: {lfq: {init_from: models/fsq}}",
        "mae_finetune: {init_from: ./models/mae/}",
    ]
    preset.write_text("\n".join(starts))
    done = snakemake("-n", directory=tmp_path, preset=preset)
    assert done.returncode == 0, done.stderr
    tuned = done.stdout.split("rule mae_finetune:")[1].split("rule ")[0]
    assert "Input files updated by another job" in tuned
    assert "models/mae/model.safetensors" in tuned.split("reason:")[1]
