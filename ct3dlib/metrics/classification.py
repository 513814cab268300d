"""How well labels are told. Letters: N items, L labels."""

from jaxtyping import Bool
from torch import Tensor


def balanced_accuracy(told: Bool[Tensor, "N L"], true: Bool[Tensor, "N L"]) -> list[float | None]:
    """Return the mean of sensitivity and specificity of each label, in [0, 1].

    Whoever tells every item the same, or tosses a coin, has 0.5 however rare a label is. None
    where a label is present in all items, or in none.
    """
    found: list[float | None] = []
    for said, is_so in zip(told.T, true.T, strict=True):
        if is_so.all() or not is_so.any():
            found.append(None)
            continue
        sensitivity = said[is_so].double().mean()
        specificity = (~said[~is_so]).double().mean()
        found.append(float((sensitivity + specificity) / 2))
    return found
