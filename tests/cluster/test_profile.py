"""The Slurm profile beside the rules."""

import re
from pathlib import Path

import yaml


def test_every_rule_that_asks_for_a_gpu_goes_to_its_partition(repository: Path):
    rules = "\n".join(path.read_text() for path in sorted((repository / "rules").glob("*.smk")))
    parts = re.split(r"^ *rule (\w+):$", rules, flags=re.MULTILINE)[1:]
    asking = {
        # A rule that asks in some configs alone has another name in them.
        f"{name}_gpu" if f'"{name}_gpu" if' in body else name
        for name, body in zip(parts[::2], parts[1::2], strict=True)
        if re.search(r"^ +gpu=", body, flags=re.MULTILINE)
    }
    profile = yaml.safe_load((repository / "slurm/profile.yaml").read_text())
    assert {"transformer", "classifier", "encode"} < asking
    assert profile["set-resources"] == {rule: {"slurm_partition": "gpu"} for rule in asking}
