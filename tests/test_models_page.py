"""The code of docs/models.md runs as it stands there, block after block."""

import re
from pathlib import Path

import torch

from ct3dlib.nn.patches import patchify

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_blocks_of_the_page_run(repository: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = BLOCK.findall((repository / "docs/models.md").read_text())
    names: dict[str, object] = {"__name__": "models_page", "run_dir": tmp_path / "run"}
    for block in blocks:
        exec(compile(block, "docs/models.md", "exec"), names)
    assert len(blocks) == 4
    torch.testing.assert_close(names["same"], names["reconstruction"])
    assert names["reconstructed"].shape[1:] == names["large_volume"].shape
    assert names["drawn"].shape == (2, 1, 16, 16, 16)
    assert (tmp_path / "run/metrics.jsonl").is_file()
    network, masks = names["network"].network, names["masks"]
    before, after = (patchify(names[name], network.patch_size) for name in ("scans", "filled"))
    kept = masks.visible[..., None].expand(-1, -1, 512)
    assert torch.equal(before.gather(1, kept), after.gather(1, kept))
    hidden = masks.masked[..., None].expand(-1, -1, 512)
    torch.testing.assert_close(after.gather(1, hidden), names["predicted"])
    assert names["tokens"].shape == (2, 1 + 4 * 6 * 5, 192)
