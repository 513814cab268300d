"""The report's section on the masked autoencoder: its tables say what the metrics say."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from ct3dlib.inference.evaluate_predictions import Curve
from ct3dlib.report.mae import draw_roc, mae_section
from ct3dlib.report.page import Figure, Table, Text, render

ROW = {
    "auroc": 0.912,
    "auroc_ci": [0.85, 0.961],
    "average_precision": 0.8,
    "average_precision_ci": None,
    "f1": 0.7,
    "sensitivity": 0.66,
    "specificity": 0.9,
    "brier": 0.1,
    "n": 60,
    "n_positive": 12,
}
NONE = {key: None if key not in ("n", "n_positive") else 0 for key in ROW}
MEASURED = {
    "reconstruction": {
        "masked_mse": 0.01,
        "mean_mse": 0.05,
        "explained": 0.8,
        "other_patient_mse": 0.04,
        "unit": "width of the range",
        "n": 60,
    },
    "findings": {"Emphysema": ROW, "Hernia": {**ROW, "auroc": 0.95}, "Never": NONE},
    "small_budget": {
        "pretrained": {"Emphysema": [0.8, 0.9, 0.85], "Never": [None, None, None]},
        "from_scratch": {"Emphysema": [0.6, 0.7, 0.65], "Never": [None, None, None]},
        "patients": 20,
        "steps": 100,
    },
    "dice": {"heart": 0.8, "lungs": 0.95},
    "baseline_dice": {"heart": 0.6},
    "froc": {
        "cpm": 0.4,
        "n_lesions": 5,
        "n_volumes": 3,
        "sensitivity_at_1": 0.5,
        "sensitivity_at_0.125": 0.3,
    },
}


def tables(section) -> list[Table]:
    return [block for block in section.blocks if isinstance(block, Table)]


def test_findings_are_ranked_and_have_their_intervals():
    findings, budget, dice, froc = tables(mae_section(MEASURED, []))
    assert findings.frame["finding"].tolist() == ["Hernia", "Emphysema", "Never"]
    row = findings.frame.iloc[1]
    assert row["AUROC"] == "0.91 [0.85, 0.96]"
    assert row["average precision"] == "0.80"
    assert row["have it"] == "12 of 60"
    assert findings.frame.iloc[2]["AUROC"] == ""
    assert budget.frame.iloc[0].tolist() == ["Emphysema", "0.85 ± 0.05", "0.65 ± 0.05"]
    assert budget.frame.iloc[1].tolist() == ["Never", "", ""]
    assert budget.frame.iloc[2].tolist() == ["mean of all findings", "0.85", "0.65"]
    assert "after 100 steps on 20 patients" in budget.caption
    assert dice.frame.to_numpy().tolist() == [["heart", "0.80", "0.60"], ["lungs", "0.95", ""]]
    assert froc.frame.iloc[0].to_dict() == {"0.125": "0.30", "1": "0.50", "mean": "0.40"}
    assert "of 5 in 3 held-out volumes" in froc.caption


def test_what_was_filled_in_is_told_with_its_control():
    first = mae_section(MEASURED, []).blocks[0]
    assert isinstance(first, Text)
    assert "0.0100" in first.text
    assert "80% of it is explained" in first.text
    assert "another patient's patches, has 0.0400" in first.text


def test_pictures_are_shown_and_missing_parts_left_out(tmp_path: Path):
    picture = tmp_path / "picture.png"
    picture.write_bytes(draw_roc({}, {}))
    section = mae_section({"reconstruction": MEASURED["reconstruction"]}, [picture])
    assert [type(block) for block in section.blocks] == [Text, Figure]
    page = render("title", [section])
    assert "Masked autoencoder" in page


def test_curves_are_drawn_in_colour():
    curves = {"a": Curve((0.0, 0.0, 1.0), (0.0, 1.0, 1.0)), "b": Curve((0.0, 1.0), (0.0, 1.0))}
    drawn = np.array(Image.open(io.BytesIO(draw_roc(curves, {"a": 1.0, "b": 0.5}))).convert("RGB"))
    colored = (np.ptp(drawn.astype(int), axis=2) > 60).sum()
    plain = np.array(Image.open(io.BytesIO(draw_roc({}, {}))).convert("RGB"))
    assert colored > 300
    assert (np.ptp(plain.astype(int), axis=2) > 60).sum() == 0


def test_classes_and_numbers_have_tables_of_their_own():
    scores = {"accuracy": 0.75, "accuracy_ci": [0.5, 0.9], "n": 8, "n_patients": 8}
    (table,) = tables(mae_section({"classes": scores}, []))
    assert table.frame["accuracy"].tolist() == ["0.75 [0.50, 0.90]"]
    (table,) = tables(mae_section({"regression": {"age": scores, "none": None}}, []))
    assert table.frame.iloc[0].tolist() == ["age", "0.75 [0.50, 0.90]"]
