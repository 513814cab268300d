"""A hash of the code a rule runs, so that Snakemake sees a change in the library.

Standard library only: Snakemake computes it for every job.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parent
# What these say reaches a step through its spec, which stands in the rule's params already.
_LEFT_OUT = ("ct3dlib.config", "ct3dlib.errors", "ct3dlib.fingerprint", "ct3dlib.progress")


def fingerprint(*modules: str) -> str:
    """Return a hash of modules of ct3dlib and of what they import from it.

    Comments, docstrings and layout do not count; `config`, `errors` and what only shows progress
    are left out.

    Args:
        modules: Dotted names, as `ct3dlib.cohort.shard`.

    Raises:
        ValueError: A name is not a module of ct3dlib.
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
    """Return a module's syntax without docstrings, and the ct3dlib modules it imports."""
    path = _file_of(module)
    if path is None:
        raise ValueError(f"{module} is not a module of ct3dlib")
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
    return ast.dump(tree), frozenset(ours)


@cache
def _file_of(module: str) -> Path | None:
    """Return the source file of a ct3dlib module, or None for anything else."""
    head, *rest = module.split(".")
    if head != _PACKAGE.name:
        return None
    place = _PACKAGE.joinpath(*rest)
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if rest and path.is_file():
            return path
    return None
