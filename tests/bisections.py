"""Unverified builds, and what the bisection of one finds."""

from pathlib import Path
from typing import Any

from compiler.bisect.bisecting import bisect
from compiler.building import build_record, build_stages, write_json
from compiler.foreign import origins
from compiler.pipeline import parse_pipeline


def built(source: Path, passes: str, folder: Path) -> Path:
    """An unverified build."""
    pipeline = parse_pipeline(passes)
    folder.mkdir()
    stages = build_stages(source, pipeline, folder, verify="none", failures=folder / "failure")
    record = build_record(stages, pipeline, {"name": "m"}, "none") | origins(pipeline)
    write_json(folder / "build.json", record)
    return folder


def bisected(folder: Path, check: str | None = None) -> dict[str, Any]:
    """What the bisection of a build finds; the reproducer is `out` beside the build."""
    scratch = folder.with_name("scratch")
    scratch.mkdir(exist_ok=True)
    return bisect(folder, scratch, folder.with_name("out"), check=check, told=lambda _: None,
                  progress=lambda *_: None)  # fmt: skip
