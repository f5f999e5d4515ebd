"""What the code of passes is: a hash of their files and of all that those import of this project.

A record of what passes made is stale when any of these has changed; what else is in the project
(commands, reports) makes no model.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from compiler.rewrite import Pass

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("compiler", "passes")


def code_of(passes: Sequence[Pass]) -> str:
    """The SHA-256, in hex, of the sources that the passes run, those of foreign passes included."""
    waiting = [Path(inspect.getfile(type(pass_))) for pass_ in passes]
    found: dict[Path, str] = {}
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path], imported = _read(path, path.stat().st_mtime_ns)
            waiting += imported
    return hashlib.sha256("".join(sorted(found.values())).encode()).hexdigest()


@lru_cache(maxsize=1024)
def _read(path: Path, _modified_ns: int) -> tuple[str, list[Path]]:
    """The hash of a file, and the files of this project that it imports."""
    code = path.read_bytes()
    return hashlib.sha256(code).hexdigest(), list(_imported(ast.parse(code)))


def _imported(tree: ast.Module) -> Iterator[Path]:
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            path = _ROOT / f"{name.replace('.', '/')}.py"
            if name.partition(".")[0] in _PACKAGES and path.is_file():
                yield path
