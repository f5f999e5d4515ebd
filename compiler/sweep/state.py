"""What a sweep's folder already holds: which builds are current, and what was measured of them.

A variant is `OUT/LABEL/`, a build's folder with one file more: `variant.json` says which inputs it
was built from and holds its estimates. A new build replaces the whole folder, so that a figure
always belongs to the model beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from compiler.building import MODEL_NAME, WEIGHTS_NAME, sha256, write_whole
from compiler.errors import UserError
from compiler.fingerprint import code_of
from compiler.pipeline import parse_pipeline
from compiler.records import json_text, read_record
from compiler.sweep.grid import Variant

_STATE = "variant.json"
# Each level proves what those before it do.
_LEVELS = ("none", "final", "each", "full")


def fingerprint(variant: Variant) -> str:
    """A hash of all that a build is made from: description, files of weights, passes' sources."""
    description = asdict(variant)
    del description["label"], description["published_ms"]
    files = [*_files(Path(variant.model)), *_files(Path(variant.weights))]
    description["files"] = [_digest(path) for path in files]
    first = "canonicalize," if variant.canonicalize else ""
    description["code"] = code_of(parse_pipeline(first + variant.passes))
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def is_current(folder: Path, wanted: str, verify: str) -> bool:
    """Whether a folder holds a whole build with this fingerprint, verified at least so far."""
    if read_state(folder).get("fingerprint") != wanted:
        return False
    try:
        record = read_record(folder)
        files = {name: record["files"][name] for name in (MODEL_NAME, WEIGHTS_NAME)}
        return (
            _LEVELS.index(record["verify"]) >= _LEVELS.index(verify)
            and all(version(name) == known for name, known in record["versions"].items())
            and all(sha256(folder / name) == known for name, known in files.items())
        )
    except (UserError, OSError, KeyError, PackageNotFoundError):
        return False


def read_state(folder: Path) -> dict[str, Any]:
    """What `variant.json` holds; empty if there is none that can be read."""
    try:
        state = json.loads((folder / _STATE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Writes `variant.json` whole or not at all."""
    write_whole(folder / _STATE, (json_text(state) + "\n").encode())


def _files(path: Path) -> Iterator[Path]:
    """What a path to a model or to weights stands for; nothing if it is a name."""
    if path.suffix.lower() == ".onnx":
        yield from sorted({path, *_external(path)})
    elif path.is_dir():
        yield from sorted(file for file in path.iterdir() if file.is_file())
    elif path.is_file():
        yield path


def _external(path: Path) -> Iterator[Path]:
    from onnx import TensorProto

    from compiler.graph import read_model
    from compiler.weights import external_source

    for tensor in read_model(path).graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            yield external_source(tensor, path.parent)[0]


def _digest(path: Path) -> str:
    known = path.stat()
    return _digest_of(path, known.st_mtime_ns, known.st_size)


@lru_cache(maxsize=1024)  # the variants of a sweep share their files
def _digest_of(path: Path, _modified_ns: int, _nbytes: int) -> str:
    return sha256(path)
