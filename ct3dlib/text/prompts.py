"""Sentences that say a finding is there, and that it is not: what a scan is asked without training.

The pair is the one that CT-CLIP (arXiv:2403.17834) is evaluated with; the ensemble asks in seven
ways, of which the embeddings are averaged.
"""

from dataclasses import dataclass

from ct3dlib.cohort.labels import LABELS

# Positive and negative. {} is a finding in lower case; a sentence starts with a capital.
PAIR: tuple[tuple[str, str], ...] = (("{} is present.", "{} is not present."),)
ENSEMBLE: tuple[tuple[str, str], ...] = (
    *PAIR,
    ("There is {}.", "There is no {}."),
    ("The scan shows {}.", "The scan shows no {}."),
    ("{} is seen.", "{} is not seen."),
    ("Signs of {} are visible.", "No signs of {} are visible."),
    ("The images are consistent with {}.", "The images give no evidence of {}."),
    ("The patient has {}.", "The patient does not have {}."),
)

# fVLM and HLIP leave these out: the first is no disease, the second a matter of size alone.
_DROPPED = ("Medical material", "Lymphadenopathy")
# Findings over which means are taken, by their number; means of two sets cannot be compared.
CLASS_SETS: dict[int, tuple[str, ...]] = {
    18: LABELS,
    16: tuple(name for name in LABELS if name not in _DROPPED),
}


@dataclass(frozen=True)
class Prompts:
    """What is asked of one finding.

    Args:
        positive: Sentences that say it is there.
        negative: Those that say it is not, as many.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]


def prompts_of(finding: str, templates: tuple[tuple[str, str], ...]) -> Prompts:
    """Return the sentences of a finding.

    Args:
        finding: As in `LABELS`.
        templates: `PAIR` or `ENSEMBLE`.
    """
    filled = [[_sentence(side, finding) for side in pair] for pair in templates]
    positive, negative = zip(*filled, strict=True)
    return Prompts(positive, negative)


def _sentence(template: str, finding: str) -> str:
    """Return a template with a finding in it, its first letter a capital."""
    text = template.format(finding.lower())
    return text[0].upper() + text[1:]
