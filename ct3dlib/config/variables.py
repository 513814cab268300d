"""Environment variables in the values of config.yaml."""

import re
from collections.abc import Mapping
from typing import Any

from ct3dlib.errors import ConfigError

# A default holds no variable: nested ones match in part, and what is left over is refused.
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::((?:(?!\$\{)[^}])*))?\}")


def expand(value: Any, environ: Mapping[str, str], key: str = "") -> Any:
    """Replace ${NAME} and ${NAME:default} in every string below `value`.

    Args:
        value: What YAML gave.
        environ: The environment.
        key: Where the value stands, for messages.

    Raises:
        ConfigError: A variable is missing and has no default, or cannot be read.
    """
    match value:
        case str():

            def substitute(found: re.Match[str]) -> str:
                name, default = found.groups()
                if name in environ:
                    return environ[name]
                if default is None:
                    raise ConfigError(
                        f"{key}: the environment variable {name} is not set; "
                        f"export {name}=... or write ${{{name}:default}}"
                    )
                return default

            if "${" in _VARIABLE.sub("", value):
                raise ConfigError(
                    f"{key}: {value!r} cannot be read; a variable is ${{NAME}} or "
                    f"${{NAME:default}}, and a default holds no other variable"
                )
            return _VARIABLE.sub(substitute, value)
        case Mapping():
            return {
                k: expand(v, environ, f"{key}.{k}" if key else str(k)) for k, v in value.items()
            }
        case list() | tuple():
            return [expand(v, environ, f"{key}[{i}]") for i, v in enumerate(value)]
        case _:
            return value
