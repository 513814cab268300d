"""The code of docs/models.md runs as it stands there, block after block."""

import re
from pathlib import Path

import torch

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_blocks_of_the_page_run(repository: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = BLOCK.findall((repository / "docs/models.md").read_text())
    names: dict[str, object] = {"__name__": "models_page", "run_dir": tmp_path / "run"}
    for block in blocks:
        exec(compile(block, "docs/models.md", "exec"), names)
    assert len(blocks) == 3
    torch.testing.assert_close(names["same"], names["reconstruction"])
    assert names["reconstructed"].shape[1:] == names["large_volume"].shape
    assert names["drawn"].shape == (2, 1, 16, 16, 16)
    assert (tmp_path / "run/metrics.jsonl").is_file()
