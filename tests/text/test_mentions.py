"""Mentions of regions in sentences written for the purpose, and in the synthetic reports."""

import time

import numpy as np
import pytest

from ct3dlib.datasets.phantom_findings import draw_patient
from ct3dlib.datasets.phantom_text import write_report
from ct3dlib.regions.label_map import NUM_REGIONS
from ct3dlib.text import mentions
from ct3dlib.text.mentions import Mention, find_mentions, lexicon_version
from ct3dlib.text.reasoning import read_reasoning
from tests.text.mention_sentences import GOLD


def expected(text: str) -> dict[int, int]:
    wanted = {}
    for part in text.split():
        names, value = part.split(":")
        for name in names.split(","):
            first, _, last = name.partition("-")
            wanted |= dict.fromkeys(range(int(first), int(last or first) + 1), int(value))
    return wanted


def told(sentences) -> dict[int, int]:
    found: dict[int, int] = {}
    for one in (one for sentence in sentences for one in find_mentions(sentence)):
        found[one.region] = max(found.get(one.region, 0), int(one.abnormal))
    return found


@pytest.mark.parametrize(("sentence", "wanted"), GOLD, ids=range(len(GOLD)))
def test_sentence_mentions(sentence, wanted):
    assert told([sentence]) == expected(wanted)


def test_gold_sentences_know_all_regions_well_and_ill():
    seen = {(region, value) for _, text in GOLD for region, value in expected(text).items()}
    assert {region for region, _ in seen} == set(range(1, NUM_REGIONS + 1))
    assert {region for region, value in seen if value} == set(range(1, NUM_REGIONS + 1))
    assert len(GOLD) >= 100


def test_clauses_have_their_offsets():
    sentence = "Heart size is normal, but there is pleural effusion; liver is normal."
    assert find_mentions(sentence) == (
        Mention(8, 0, 20, False),
        Mention(13, 26, 51, True),
        Mention(15, 53, 69, False),
    )
    assert sentence[26:51] == "there is pleural effusion"


def test_side_counts_until_the_next_one():
    regions = [one.region for one in find_mentions("Left upper, lower and right middle lobes.")]
    assert regions == [1, 2, 4]


@pytest.mark.parametrize(
    ("trap", "true", "region"),
    [
        ("A subpleural nodule in the left upper lobe.", "A pleural nodule.", 13),
        ("Paracardiac fat is increased.", "Cardiac fat is increased.", 8),
        ("A paratracheal node is large.", "A tracheal node is large.", 6),
        ("A para-tracheal node is large.", "A tracheal node is large.", 6),
        ("Pericardial thickening.", "Heart wall thickening.", 8),
        ("The lad has a calcified plaque.", "The LAD has a calcified plaque.", 8),
        ("The renal artery is wide.", "The renal cortex is wide.", 18),
        ("The splenic flexure is wide.", "The splenic hilum and spleen are wide.", 16),
    ],
)
def test_words_that_only_look_alike(trap, true, region):
    assert region not in told([trap])
    assert told([true])[region] == 1


def test_any_text_is_read():
    for text in (
        "",
        " ",
        ",",
        ";;",
        "but",
        "although",
        "\u0130\u0307 heart",
        "no " * 300,
        "a" * 5000,
    ):
        for one in find_mentions(text):
            assert 0 <= one.start < one.end <= len(text)


def test_version_tells_what_the_lexicon_says(monkeypatch):
    number, _, digest = lexicon_version().partition("-")
    assert number == "1"
    assert len(digest) == 12
    document = mentions.read_lexicon()
    assert mentions.Lexicon(document).version == lexicon_version()
    changed = {**document, "negations": [*document["negations"], "lacking"]}
    assert mentions.Lexicon(changed).version != lexicon_version()


def test_lexicon_without_a_region_is_refused():
    document = mentions.read_lexicon()
    fewer = [cue for cue in document["cues"] if cue["regions"] != [14]]
    with pytest.raises(
        ValueError, match=r"mentions.yaml: cues of regions .*13, 15.*wanted 1 to 20"
    ):
        mentions.Lexicon({**document, "cues": fewer})


def test_lexicon_with_a_broken_cue_is_refused():
    document = mentions.read_lexicon()
    with pytest.raises(ValueError, match=r"is no regular expression \(missing \)"):
        mentions.Lexicon({**document, "negations": ["(no"]})


def test_a_sentence_takes_little_time():
    sentences = [sentence for sentence, _ in GOLD]
    find_mentions(sentences[0])
    fastest = 1.0
    for _ in range(5):
        start = time.process_time()
        for sentence in sentences:
            find_mentions(sentence)
        fastest = min(fastest, (time.process_time() - start) / len(sentences))
    assert fastest < 1e-3  # 0.1 ms where nothing else runs


# Region -> what makes it abnormal in a synthetic patient.
HOME = {
    7: {"Hiatal hernia"},
    8: {"Cardiomegaly", "Coronary artery wall calcification", "pacemaker"},
    9: {"Pericardial effusion"},
    10: {"Arterial wall calcification"},
    12: {"Lymphadenopathy"},
    13: {"Pleural effusion"},
}
FOCAL = {
    "Lung nodule",
    "Lung opacity",
    "Consolidation",
    "Pulmonary fibrotic sequela",
    "Bronchiectasis",
}


@pytest.fixture(scope="module")
def cohort():
    patients = []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        patient = draw_patient(rng)
        report = write_report(patient, rng)
        texts = {"findings": report.findings, "impressions": report.impressions}
        patients.append((patient, told(read_reasoning(texts).steps)))
    return patients


@pytest.mark.parametrize("region", HOME)
def test_synthetic_reports_agree_with_their_labels(cohort, region):
    agreed = 0
    for patient, found in cohort:
        names = {name for one in patient.findings for name in (one.label, one.kind)}
        agreed += found.get(region, 0) == int(bool(names & HOME[region]))
    assert agreed / len(cohort) >= 0.9


def test_synthetic_reports_name_the_lobes(cohort):
    places = [
        (found, one.region) for p, found in cohort for one in p.findings if one.label in FOCAL
    ]
    assert len(places) > 200
    assert np.mean([found.get(region) == 1 for found, region in places]) >= 0.9
