"""Records as JSON, and reading what a build left: its stages and its model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from compiler.errors import UserError


def read_record(folder: Path) -> dict[str, Any]:
    """A build's `build.json`. Raises UserError if the folder isn't a build."""
    try:
        record: dict[str, Any] = json.loads((folder / "build.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: not the folder of a build (it has no readable build.json)"
        ) from error
    return record


def json_text(record: Any) -> str:
    """A record as strict JSON, indented: JSON has no NaN and no infinities, they become null."""
    return json.dumps(finite(record), indent=1, allow_nan=False, ensure_ascii=False)


def print_json(record: Any) -> None:
    """What `--json` prints."""
    print(json_text(record))


def finite(record: Any) -> Any:
    """The record with null for every number that JSON does not have."""
    if isinstance(record, dict):
        return {key: finite(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [finite(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record


def stages_around(folder: Path, pass_name: str) -> tuple[Path, Path]:
    """The stages around a pass of a build; `split_heads`, or `03_split_heads` if it ran twice."""
    stages = [stage["stage"] for stage in read_record(folder)["stages"]]
    matching = [
        position
        for position, stage in enumerate(stages)
        if position and pass_name in (stage, stage.partition("_")[2])
    ]
    if len(matching) != 1:
        which = "more than one stage of" if matching else "no stage of"
        raise UserError(f"{pass_name!r} is {which} {folder} (stages: {', '.join(stages[1:])})")
    before, after = stages[matching[0] - 1], stages[matching[0]]
    return folder / f"{before}.onnx", folder / f"{after}.onnx"


def model_in(path: Path) -> Path:
    """A model's file: the path itself, or `model.onnx` of a build's folder."""
    return path / "model.onnx" if path.is_dir() else path
