import io
import json

import matplotlib.image

from ct3dlib.report.curves import curves, read_metrics


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_metrics_are_grouped_by_name(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(
        path,
        [
            {"step": 10, "train/loss": 3.0, "train/lr": 0.1},
            {"step": 20, "train/loss": 2.0, "val/loss": 2.5},
        ],
    )
    assert read_metrics(path) == {
        "train/loss": ([10, 20], [3.0, 2.0]),
        "train/lr": ([10], [0.1]),
        "val/loss": ([20], [2.5]),
    }


def test_run_without_metrics_has_none(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == {}


def test_curves_have_a_panel_for_each_metric_that_is_there():
    series = {"train/loss": ([1, 2], [3.0, 2.0]), "val/loss": ([2], [2.5]), "val/lr": ([1], [0.1])}
    one = matplotlib.image.imread(io.BytesIO(curves(series, ["loss", "nothing"])))
    two = matplotlib.image.imread(io.BytesIO(curves(series, ["loss", "lr"])))
    assert two.shape[1] == 2 * one.shape[1]
    assert one[..., :3].min() < 0.7  # something is drawn


def test_curves_are_the_same_bytes_twice():
    series = {"train/loss": ([1, 2], [3.0, 2.0])}
    assert curves(series, ["loss"]) == curves(series, ["loss"])


def test_no_metric_gives_an_empty_picture():
    assert curves({}, ["loss"]).startswith(b"\x89PNG")
