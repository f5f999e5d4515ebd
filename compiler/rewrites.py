"""The rewrites of a build, as its `rewrites.json` keeps them for diffs, reports and bisection.

Of a rewrite there are the names of the nodes that it removed and added (in the stages before and
after), the tensors at its cut with their types, how each new weight was made, and its proof.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compiler.errors import UserError
from compiler.region import Region
from compiler.rewrite import Rewrite
from compiler.weights import NewWeight

REWRITES_NAME = "rewrites.json"
SCHEMA = 1


@dataclass(frozen=True)
class RecordedRewrite:
    """One application of a pass, by the names of nodes and tensors."""

    title: str
    """`split_heads#3 at encoder.layer.3.attention`."""
    place: str
    removed: tuple[str, ...]
    added: tuple[str, ...]
    inputs: Mapping[str, str]
    """The cut: what both regions read, constants aside, with types as text."""
    outputs: Mapping[str, str]
    weights: Mapping[str, str]
    """How each new weight was made: `qkv.weight[:, 64:128]`."""
    slices_left: int
    float64: Mapping[str, Any] | None
    """The proof at the cut: status, error, bound, detail; None if the build was not verified."""

    @classmethod
    def of(cls, rewrite: Rewrite, proof: Mapping[str, Any] | None) -> RecordedRewrite:
        """The record of a rewrite that was just made."""
        regions = [rewrite.new, *(copy for _, copy, _ in rewrite.copies)]
        before, after = _names([rewrite.old]), _names(regions)
        return cls(
            rewrite.title, rewrite.place,
            tuple(name for name in before if name not in after),
            tuple(name for name in after if name not in before),
            {name: str(kind) for name, kind in rewrite.old.inputs.items()},
            {name: str(kind) for name, kind in rewrite.new.outputs.items()},
            {name: weight.how for region in regions for name, weight in region.constants.items()
             if isinstance(weight, NewWeight)},
            rewrite.slices_left, proof,
        )  # fmt: skip


def _names(regions: Sequence[Region]) -> dict[str, None]:
    return dict.fromkeys(node.name for region in regions for node in region.nodes)


def record_of(stages: Mapping[str, Sequence[RecordedRewrite]]) -> dict[str, Any]:
    """What `rewrites.json` holds, given the rewrites that led to each stage."""
    listed = {stage: [asdict(rewrite) for rewrite in done] for stage, done in stages.items()}
    return {"schema": SCHEMA, "stages": listed}


def read_rewrites(folder: Path) -> dict[str, list[RecordedRewrite]]:
    """The rewrites of a build by stage. Raises UserError if the folder has no readable record."""
    path = folder / REWRITES_NAME
    try:
        record = json.loads(path.read_text("utf-8"))
        if record["schema"] != SCHEMA:
            raise UserError(f"{path}: schema {record['schema']}, not {SCHEMA}: build it again")
        return {
            stage: [
                RecordedRewrite(**{**one, "removed": tuple(one["removed"]),
                                   "added": tuple(one["added"])})
                for one in rewrites
            ]
            for stage, rewrites in record["stages"].items()
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: no readable record of rewrites: build it again") from error
