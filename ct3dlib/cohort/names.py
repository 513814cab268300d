"""Names that are safe as file names on every system."""

import hashlib
import re
import unicodedata

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_LONGEST = 160


def safe_name(text: str) -> str:
    """Return a text as a volume id: every run of other characters becomes one `_`.

    A name with letters beyond ASCII, or too long for a file system, gets a hash at its end: both
    ways of writing an accent are one name. A safe name stays as it is.
    """
    text = unicodedata.normalize("NFC", text)
    name = _UNSAFE.sub("_", text).lstrip(".-")
    name = name if name.strip("_") else "volume"
    if text.isascii() and len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 9]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
