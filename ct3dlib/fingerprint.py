"""A hash of the code a rule runs, so that Snakemake sees a change in the library.

Standard library only: Snakemake computes it for every job.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

_PACKAGES = {"ct3dlib": Path(__file__).parent}
_PACKAGES["workflow_scripts"] = _PACKAGES["ct3dlib"].parent / "workflow_scripts"
# What a spec says reaches a step through the rule's params already; the rest changes no result.
_DATA = (".css", ".yaml")
_LEFT_OUT = (
    *("ct3dlib.config", "ct3dlib.errors", "ct3dlib.fingerprint", "ct3dlib.progress"),
    "workflow_scripts.step",
)


def fingerprint(*modules: str) -> str:
    """Return a hash of modules and of what they import from this project.

    Comments, docstrings and layout do not count; a data file of a module's name (label_map.yaml
    beside label_map.py) does. `config`, `errors` and what only shows progress are left out.

    Args:
        modules: Dotted names, as `ct3dlib.cohort.shard` or `workflow_scripts.sample`.

    Raises:
        ValueError: A name is not a module of this project.
    """
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module in found or f"{module}.".startswith(tuple(f"{name}." for name in _LEFT_OUT)):
            continue
        found.add(module)
        waiting.extend(_parse(module)[1])
    digest = hashlib.sha256()
    for module in sorted(found):
        digest.update(f"{module}\0{_parse(module)[0]}\0".encode())
    return digest.hexdigest()[:16]


@cache
def _parse(module: str) -> tuple[str, frozenset[str]]:
    """Return a module's syntax without docstrings, and the modules of ours it imports."""
    path = _file_of(module)
    if path is None:
        raise ValueError(f"{module} is not a module of this project")
    tree = ast.parse(path.read_bytes())
    imported: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                imported.update(alias.name for alias in names)
            case ast.ImportFrom(module=str(origin), names=names, level=0):
                imported.add(origin)
                imported.update(f"{origin}.{alias.name}" for alias in names)
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                if ast.get_docstring(node, clean=False) is not None:
                    node.body = node.body[1:]
            case _:
                pass
    ours = {name for name in imported if _file_of(name) is not None}
    data = [f for f in sorted(path.parent.glob(f"{path.stem}.*")) if f.suffix in _DATA]
    return ast.dump(tree) + "".join(f.read_text() for f in data), frozenset(ours)


@cache
def _file_of(module: str) -> Path | None:
    """Return the source file of a module of this project, or None for anything else."""
    head, *rest = module.split(".")
    if head not in _PACKAGES:
        return None
    place = _PACKAGES[head].joinpath(*rest)
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if rest and path.is_file():
            return path
    return None
