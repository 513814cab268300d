"""What is wrong with a config, for people: one line a key."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_LONGEST = 80


def explain(error: ValidationError, schema: Mapping[str, Any]) -> str:
    """Return one line for each wrong key: its path, what is wrong, what was found.

    Args:
        error: What checking the config raised.
        schema: JSON schema of the config, whose keys are offered for a mistyped one.
    """
    known = sorted(set(_keys(schema)))
    return "\n".join(_line(detail, known) for detail in error.errors(include_url=False))


def _line(detail: ErrorDetails, known: list[str]) -> str:
    """Return what is wrong with one key."""
    path = ".".join(map(str, detail["loc"])) or "config"
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
        return f"{path}: unknown key" + (f"; did you mean {near[0]!r}?" if near else "")
    message = detail["msg"].removeprefix("Value error, ")
    found = repr(detail["input"])
    # A check over several keys was given its whole section: its message says what it found.
    if detail["type"] in ("value_error", "missing") or len(found) > _LONGEST:
        return f"{path}: {message}"
    return f"{path}: {message}, found {found}"


def _keys(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of all keys of a schema's sections."""
    for section in (schema, *schema.get("$defs", {}).values()):
        yield from section.get("properties", {})
