"""The pipeline as a drawing, with what went through each stage."""

import html
from collections.abc import Sequence

_WIDTH, _HEIGHT, _GAP = 128, 62, 26


def pipeline(stages: Sequence[tuple[str, str]]) -> str:
    """Return inline SVG: boxes in a row, each with its name and what came out of it."""
    width = len(stages) * (_WIDTH + _GAP) - _GAP
    parts = []
    for i, (name, result) in enumerate(stages):
        x = i * (_WIDTH + _GAP)
        if i:
            middle = _HEIGHT / 2
            parts.append(
                f'<path d="M{x - _GAP + 3} {middle}H{x - 8}" stroke="#5b6876" stroke-width="1.5"/>'
                f'<path d="M{x - 3} {middle}l-7 -4v8z" fill="#5b6876"/>'
            )
        parts.append(
            f'<rect x="{x + 0.5}" y="0.5" width="{_WIDTH - 1}" height="{_HEIGHT - 1}" rx="8" '
            f'fill="#f5f7f9" stroke="#1f6f8b"/>'
            f'<text x="{x + _WIDTH / 2}" y="26" font-weight="600">{html.escape(name)}</text>'
            f'<text x="{x + _WIDTH / 2}" y="46" fill="#5b6876">{html.escape(result)}</text>'
        )
    return (
        f'<svg viewBox="-2 -2 {width + 4} {_HEIGHT + 4}" role="img" font-size="13" '
        f'text-anchor="middle" font-family="system-ui, sans-serif" fill="#1d2733">'
        f"{''.join(parts)}</svg>"
    )
