"""A miniature of the whole graph that runs in a minute or two, and the runs that tests share."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_config import merged
from tests.workflow.killing import Killed, kill_on_the_way

SHORT = {
    "steps": 4,
    "validate_every": 2,
    "validation_items": 2,
    "save_every": 2,
    "log_every": 1,
}
MINIATURE = {
    "phantom": {
        "train_patients": 3,
        "valid_patients": 2,
        "reconstructions": [1, 1],
        "matrix": [64, 64],
        "slice_spacing": [6.0, 8.0],
        "dicom_every": 3,
        "faults": ["truncated", "nan", "no_metadata", "single_slice"],
    },
    "catalog": {"tune": 0.3, "shards": {"train": 2, "tune": 1, "valid": 2}},
    "recipes": {"chest": {"spacing": [12.0, 8.0, 8.0], "shape": [25, 40, 48]}},
    "regions": {"classical": {"spacing": 8.0}},
    "tokenizers": {
        "lfq": {
            "crop": [17, 24, 24],
            "model": {
                "filters": 8,
                "num_res_blocks": 1,
                "channel_multipliers": [1, 1, 1],
                "norm_groups": 4,
            },
            "steps": 4,
            "batch_size": 2,
            "micro_batch_size": 2,
            "validate_every": 2,
            "validation_items": 2,
            "save_every": 2,
            "log_every": 1,
        },
        "fsq": None,
        "vae": None,
    },
    "latents": None,
    "transformer": {
        "model": {"hidden_size": 32, "num_layers": 1, "num_heads": 2},
        "steps": 4,
        "batch_size": 2,
        "micro_batch_size": 2,
        "validate_every": 2,
        "validation_items": 2,
        "save_every": 2,
        "log_every": 1,
    },
    "samples": {"num_samples": 2, "steps": 3},
    "mae": {
        **SHORT,
        "batch_size": 2,
        "micro_batch_size": 2,
        "model": {
            "encoder": {"hidden_size": 24, "num_layers": 1, "num_heads": 2},
            "decoder": {"hidden_size": 12, "num_layers": 1, "num_heads": 2},
            "patch_size": [5, 8, 8],
        },
    },
    "mae_finetune": {**SHORT, "batch_size": 2, "micro_batch_size": 2},
    "mae_segment": {**SHORT, "filters": 4},
    "report": {"num_examples": 2},
}


# Over the miniature: all three kinds of tokenizers. One in two stages, of which the second has a
# frozen encoder and listens to the slices' features, and one with a discriminator. And a judge of
# the samples.
THREE = {
    "tokenizers": {
        "fsq": {
            **SHORT,
            "crop": [9, 24, 24],
            "model": {"filters": 8, "norm_groups": 4},
            "stages": [
                {"steps": 2},
                {"steps": 2, "freeze_encoder": True, "loss": {"l1": 1, "perceptual": 1}},
            ],
        },
        "vae": {
            **SHORT,
            "crop": [8, 24, 24],
            "loss": {"l1": 1, "kl": 0.001, "adversarial": 0.1, "adversarial_start": 2},
            "discriminator": {"filters": 8, "num_layers": 2},
        },
    },
    "features": {**SHORT, "crop": [24, 24], "batch_size": 2, "micro_batch_size": 2},
    "classifier": {
        **SHORT,
        "batch_size": 2,
        "micro_batch_size": 2,
        "model": {"filters": 8, "num_levels": 2},
    },
}


def every_tokenizer(preset: dict[str, Any]) -> dict[str, Any]:
    """Return a preset of one tokenizer with the other two of the default, as short."""
    tokenizers = {**preset["tokenizers"], **THREE["tokenizers"]}
    kept = {name: value for name, value in preset.items() if name != "latents"}
    return {**kept, **THREE, "tokenizers": tokenizers}


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a preset that shrinks the embedded default."""
    path = tmp_path_factory.mktemp("preset") / "miniature.yaml"
    path.write_text(yaml.safe_dump(MINIATURE))
    return path


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Return the environment of a run: this interpreter's tools first, few threads."""
    tools = Path(sys.executable).parent
    kept = {k: v for k, v in os.environ.items() if k not in ("CT3D_PARENT", "CT3D_RAW")}
    return {**kept, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def snakemake(repository: Path, miniature: Path, environment: dict[str, str]) -> Run:
    """Return a function that runs Snakemake on a preset in a folder."""

    def run(
        *arguments: str,
        directory: Path,
        preset: Path | Sequence[Path] = miniature,
        **variables: str,
    ) -> subprocess.CompletedProcess[str]:
        presets = [preset] if isinstance(preset, Path) else preset
        command = [
            "snakemake",
            *arguments,
            "--directory",
            str(directory),
            "--configfile",
            *map(str, presets),
        ]
        return subprocess.run(
            command,
            cwd=repository,
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def killed(
    tmp_path_factory: pytest.TempPathFactory,
    repository: Path,
    miniature: Path,
    environment: dict[str, str],
    snakemake: Run,
) -> Killed:
    """Return a run of the miniature that was killed on the way and started again to its end."""
    folder = tmp_path_factory.mktemp("run")
    command = ["snakemake", "all", "--cores", "2"]
    command += ["--directory", str(folder), "--configfile", str(miniature)]
    kept = kill_on_the_way(command, folder, cwd=repository, environment=environment)
    done = snakemake("all", "--cores", "2", directory=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return Killed(folder, kept)


@pytest.fixture(scope="session")
def finished(killed: Killed) -> Path:
    """Return a finished run of the miniature, which tests leave as it is.

    It is the one that was killed: whatever holds of a run holds of it.
    """
    return killed.folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """Return a finished run to change."""
    target = tmp_path / "copy"
    shutil.copytree(finished, target, symlinks=True)
    return target


TRACKED = (
    *("Snakefile", "rules", "workflow_scripts", "ct3dlib", "profiles", "slurm", "dvc.yaml"),
    *("config.yaml", ".dvc", ".dvcignore", ".gitignore", "pyproject.toml"),
)


@pytest.fixture(scope="session")
def reproduced(
    tmp_path_factory: pytest.TempPathFactory, repository: Path, environment: dict[str, str]
) -> Path:
    """Return a fresh checkout after `dvc repro`, its embedded default the miniature of all three.

    DVC keeps every tokenizer of the embedded default.
    """
    target = tmp_path_factory.mktemp("dvc") / "clone"
    target.mkdir()
    for name in TRACKED:
        source = repository / name
        ignored = shutil.ignore_patterns("__pycache__", "cache", "tmp")
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=ignored)
        else:
            shutil.copy(source, target / name)
    base = yaml.safe_load((repository / "config.yaml").read_text())
    # Two shards where tests join their tables, one elsewhere.
    few = {**MINIATURE, "catalog": {"shards": {"train": 1, "tune": 1, "valid": 2}}}
    small = merged(base, every_tokenizer(few))
    (target / "config.yaml").write_text(yaml.safe_dump(small))
    run_in(target, environment, "git", "init", "-q")
    run_in(target, environment, "dvc", "repro")
    return target


def run_in(folder: Path, environment: dict[str, str], *command: str) -> str:
    """Return what a command that succeeds in a folder says."""
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr
