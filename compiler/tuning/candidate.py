"""One candidate, in a worker: built, verified, judged, thrown away."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compiler.building import Stage, build_stages
from compiler.errors import UserError, VerificationError
from compiler.pipeline import parse_pipeline, pipeline_text
from compiler.rewrite import Pass
from compiler.tuning.figures import Figures
from compiler.tuning.judges import Judge

SCRATCH = ".candidate-"
"""How the names of the folders begin that candidates are built in."""


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """The figures of a pipeline, as a record.

    The job: `source`, the canonical model; `stock`, its build with the passes that are not in
    question; `pipeline`; `verify`; `images`, a folder or None; `judge`; `known`, the stock model's
    ms by place; `measured`, the effective pipelines that have been measured (one of them again has
    no measurements).
    """
    source, stock = Path(job["source"]), Path(job["stock"])
    judge = Judge(**{**job["judge"], "chips": tuple(job["judge"]["chips"])})
    with tempfile.TemporaryDirectory(dir=stock.parent, prefix=SCRATCH) as folder:
        try:
            passes = parse_pipeline(job["pipeline"])
            stages = build_stages(
                source, passes, Path(folder), allow_noop=True, verify=job["verify"],
                failures=Path(folder) / "failure", images=job["images"] and Path(job["images"]),
            )  # fmt: skip
            found = _described(stages, passes, job["pipeline"])
            if found.effective not in job["measured"]:
                # Before anything is known it is the stock model that is asked for: one measurement.
                built = Path(folder) if job["known"] else stock
                places = judge.measure(built, stock, job["known"])
                found = replace(found, measurements=tuple(places))
        except (UserError, VerificationError) as error:
            found = Figures(job["pipeline"], error=" ".join(str(error).split()))
    return found.record()


def _described(stages: Sequence[Stage], passes: Sequence[Pass], pipeline: str) -> Figures:
    reports = [stage.report for stage in stages[1:]]
    working = [p for p, report in zip(passes, reports, strict=True) if report.rewrites]
    return Figures(
        pipeline, pipeline_text(working),
        float64=_worst(stage.float64 for stage in reports),
        float32=_worst(stage.float32 for stage in reports),
        loss=max((stage.loss["value"] for stage in reports if stage.loss), default=None),
    )  # fmt: skip


def _worst(proofs: Any) -> float | None:
    errors = [proof["error"] for proof in proofs if proof and proof["error"] is not None]
    return max(errors, default=None)
