import importlib.util
import json

import pytest
import torch


@pytest.fixture
def tracker(repository, monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(repository / "benchmarks")
    path = repository / "benchmarks/tracker.py"
    spec = importlib.util.spec_from_file_location("tracker", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def test_both_draw_the_same_masks_and_the_claim_has_a_record(
    tracker, monkeypatch, tmp_path, capsys
):
    out = tmp_path / "records.json"
    small = "--size 64 --slices 4 --objects 2 --rounds 1"
    monkeypatch.setattr("sys.argv", ["tracker", *small.split(), "--json", str(out)])
    tracker.main()
    (found,) = json.loads(out.read_text())
    assert found["name"] == "tracker/all_tracks_in_one_batch"
    assert found["ours"] > 0
    assert found["name"] in capsys.readouterr().out


def test_dice_is_over_slices_in_which_both_see_the_object(tracker):
    one, other = torch.full((3, 2, 2), -1.0), torch.full((3, 2, 2), -1.0)
    one[0], other[0, 0] = 1, 1  # 4 and 2 pixels, 2 in common
    one[1] = 1  # only one sees it
    assert tracker.dice([one], [other]) == pytest.approx(2 * 2 / 6)
    assert tracker.dice([one[1:]], [other[1:]]) == 0


def test_masks_that_differ_are_no_comparison(tracker, monkeypatch):
    size = {"slices": 2, "objects": 1, "device": torch.device("cpu"), "rounds": 1}
    monkeypatch.setattr(tracker, "peer", lambda *args: [-one for one in tracker.ours(*args)])
    with pytest.raises(RuntimeError, match=r"the masks differ: Dice 0\.\d+, wanted 0\.99"):
        tracker.compare(64, **size)
