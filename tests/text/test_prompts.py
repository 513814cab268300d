import pytest

from ct3dlib.cohort.labels import LABELS
from ct3dlib.text.prompts import CLASS_SETS, ENSEMBLE, PAIR, prompts_of


def test_the_pair_is_that_of_ct_clip():
    found = prompts_of("Lung nodule", PAIR)
    assert found.positive == ("Lung nodule is present.",)
    assert found.negative == ("Lung nodule is not present.",)


def test_the_ensemble_asks_in_seven_ways_and_names_the_finding_in_each():
    found = prompts_of("Pleural effusion", ENSEMBLE)
    assert len(set(found.positive)) == len(set(found.negative)) == 7
    assert not set(found.positive) & set(found.negative)
    for sentence in (*found.positive, *found.negative):
        assert "pleural effusion" in sentence.lower()
        assert sentence[0].isupper()
        assert sentence.endswith(".")
    assert all(" no " in f" {text.lower()}" or " not " in text for text in found.negative)
    assert not any(" no " in text or " not " in text for text in found.positive)


@pytest.mark.parametrize("finding", LABELS)
def test_every_finding_has_its_own_sentences(finding):
    others = {
        text for name in LABELS if name != finding for text in prompts_of(name, PAIR).positive
    }
    assert not others & set(prompts_of(finding, PAIR).positive)


def test_sets_of_findings():
    assert CLASS_SETS[18] == LABELS
    assert {size: len(names) for size, names in CLASS_SETS.items()} == {18: 18, 16: 16}
    assert set(LABELS) - set(CLASS_SETS[16]) == {"Medical material", "Lymphadenopathy"}
