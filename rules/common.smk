"""What every rule uses: the checked config, wildcards, params functions, one run at a time.

One pip environment serves all rules, so none names a conda environment.
"""

import fcntl
import os
import shlex
import shutil
import sys
import time
from pathlib import Path

from ct3dlib.config import SPLITS, load_config
from ct3dlib.errors import ConfigError
from ct3dlib.fingerprint import fingerprint

try:
    CONFIG = load_config(config)
except ConfigError as error:
    raise WorkflowError(f"config.yaml with its preset:\n{error}")
RAW_ROOT = CONFIG.raw_root
DATASET = CONFIG.catalog.dataset
# The key of the pseudonyms and what they stand for; what a run publishes lies elsewhere.
PRIVATE = "data/private"
PYTHON = shlex.quote(sys.executable)


wildcard_constraints:
    split="|".join(SPLITS),
    shard=r"\d{4}",
    recipe="|".join(CONFIG.recipes),
    tokenizer="|".join(CONFIG.tokenizers),


def spec(path):
    """Return a params function giving a section of the config, defaults included, as JSON.

    Wildcards in `path` are filled in: spec("recipes.{recipe}").
    """

    def section(wildcards):
        value = CONFIG
        for name in path.format(**wildcards).split("."):
            value = value[name] if isinstance(value, dict) else getattr(value, name)
        return value.model_dump_json()

    return section


def shards(split):
    """Return the shard names of a split, known from the config alone."""
    return [f"{i:04d}" for i in range(CONFIG.catalog.shards[split])]


def status_tables(pattern, splits):
    """Return a params-free list of every shard's status table of some splits."""
    return [pattern.format(split=s, shard=shard) for s in splits for shard in shards(s)]


def launch(training):
    """Return what starts a training's module: torchrun for more than one GPU."""
    if training.devices == 1:
        return "-m"
    # "--" ends torchrun's own options: it would take a step's `--run` for a short form of one.
    return f"-m torch.distributed.run --standalone --nproc_per_node {training.devices} -m --"


def gpus(training):
    """Return how many GPUs a training asks for."""
    return 0 if training.device in ("cpu", "mps") else training.devices


def cores(training):
    """Return how many CPU cores a training asks for."""
    return (training.threads + training.num_workers) * training.devices


def made_here(start):
    """Return which model of this run a folder is, however it is spelt; None for any other."""
    made = {
        Path("models", name).resolve(): name
        for name in (*CONFIG.tokenizers, *CONFIG.encoders())
    }
    return made.get(Path(start).resolve())


def check_start(key, start, *, makes):
    """Raise unless the model that a training starts from is there, or another one of this run.

    Snakemake does not ask for the input of a model that has been made already.
    """
    if start is None:
        return
    folder = Path(start).resolve()
    if made_here(start) == makes:
        raise WorkflowError(
            f"{key}.init_from: {start} is what this training makes; name another model"
        )
    if made_here(start) is None and not Path(folder, "spec.json").is_file():
        raise WorkflowError(
            f"{key}.init_from: no model in {folder}; correct the path, or train or import the "
            f"model first"
        )


def start_files(start):
    """Return the files of the model that a training starts from, if there is one.

    A model of this run goes by the name that its rule gives it.
    """
    if start is None:
        return []
    folder = f"models/{made_here(start)}" if made_here(start) else start
    return [f"{folder}/model.safetensors", f"{folder}/spec.json"]


def by_attempt(amount):
    """Return a resource that grows with every retry."""

    def resource(wildcards, attempt):
        return amount * attempt

    return resource


def claim_directory():
    """Hold this working directory until the process dies, and clear the locks of a dead run.

    Steps watch the process that CT3D_PARENT names and die with it, so after a SIGKILL nothing of
    the old run writes any more and Snakemake's lock files are stale. On a cluster jobs outlive
    their submitter: its locks stay until a person has cancelled them (docs/cluster.md).
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    if (
        os.environ.get("CT3D_PARENT", "").partition(":")[0] != job
        or workflow.is_main_process
    ):
        os.environ["CT3D_PARENT"] = f"{job}:{os.getpid()}"
    if not workflow.is_main_process:
        return None
    state = Path(".snakemake")
    state.mkdir(exist_ok=True)
    claim = (state / "ct3d.lock").open("a+")
    for _ in range(10):
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            time.sleep(
                0.3
            )  # a dry run is soon over; a real one is left to Snakemake's own lock
    else:
        return None
    claim.seek(0)
    locks = state / "locks"
    of_cluster = claim.read() == "cluster" and locks.is_dir() and any(locks.iterdir())
    if not of_cluster:
        shutil.rmtree(locks, ignore_errors=True)
    here = "slurm_partition" in (workflow.resource_settings.default_resources or {})
    claim.seek(0)
    claim.truncate()
    claim.write("cluster" if of_cluster or here else "local")
    claim.flush()
    return claim


CLAIM = claim_directory()
