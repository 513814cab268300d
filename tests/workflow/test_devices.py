"""How many ranks a training is started with, and what it asks of the scheduler for them."""

import re

import pytest
import yaml

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]


def test_two_devices_are_two_ranks_and_one_needs_no_launcher(snakemake, tmp_path):
    preset = tmp_path / "devices.yaml"
    mae = {"devices": 2, "threads": 3, "num_workers": 1, "batch_size": 8, "micro_batch_size": 2}
    preset.write_text(yaml.safe_dump({"mae": mae}))
    targets = [f"models/{name}/model.safetensors" for name in ("mae", "mae_finetune")]
    done = snakemake("-n", "-p", "--cores", "8", *targets, directory=tmp_path, preset=preset)
    assert done.returncode == 0, done.stderr
    plans = {
        name: re.split(rf"^rule {name}:", done.stdout, flags=re.M)[1].partition("\nrule ")[0]
        for name in ("mae", "mae_finetune")
    }
    (command,) = re.findall(r"^Shell command: (.*)", plans["mae"], re.M)
    assert (
        " -m torch.distributed.run --standalone --nproc_per_node 2 -m -- workflow_scripts.train_mae"
        " --spec " in command
    )
    # 3 cores and a loader process for each rank.
    assert re.search(r"^    threads: 8$", plans["mae"], re.M)
    assert re.search(r"^    resources: .*\bgpu=2\b", plans["mae"], re.M)
    (command,) = re.findall(r"^Shell command: (.*)", plans["mae_finetune"], re.M)
    assert re.search(r"python\S* -m workflow_scripts\.train_finetune --spec ", command)
    assert "torch.distributed" not in command
    assert re.search(r"^    resources: .*\bgpu=1\b", plans["mae_finetune"], re.M)
