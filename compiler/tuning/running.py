"""`tune`: a model's candidates measured in parallel, kept in a folder, and the best one built."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import compiler
import passes
from compiler.building import WEIGHTS_NAME, sha256, write_whole, writing
from compiler.errors import UserError
from compiler.pipeline import parse_pipeline, pipeline_text
from compiler.progress import Progress, nothing
from compiler.records import finite, json_text, read_record
from compiler.tuning.figures import Figures, pareto
from compiler.tuning.judges import Judge
from compiler.tuning.measuring import STOCK, Measuring
from compiler.tuning.search import search
from compiler.tuning.space import Slot, Space
from compiler.workers.locking import one_at_a_time
from compiler.workers.tasks import memory_budget

RECORD_NAME = "tune.json"
BEST = "best"


@dataclass(frozen=True)
class Model:
    """What is tuned, as `compiler.build` takes it."""

    name: str
    passes: str = ""
    size: str | None = None
    weights: str = "auto"


def tune(
    model: Model, folder: Path, judge: Judge, *, minutes: float = 30.0,
    max_loss: float | None = None, memory_gb: float | None = None, progress: Progress = nothing,
    notice: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:  # fmt: skip
    """Searches pipelines for the fastest that keeps the numbers; returns what tune.json holds.

    Args:
        model: with the passes that every candidate has.
        folder: takes `tune.json`, `tune.png`, and the builds `stock` and `best`. Candidates that
            tune.json knows are not measured again.
        judge: where latency is measured.
        minutes: no candidate is begun after that; the best one is still built, fully verified.
        max_loss: approximate passes may lose that much (AbsRel against float32); none without.
        memory_gb: what candidates in parallel may take together.
        progress: told (what, done, total).
        notice: told one-line messages about licences and weights.

    Raises:
        UserError: bad input; another tuning in the folder; a stock model that can't be judged.
    """
    judge.check()
    budget = memory_budget(memory_gb)
    if minutes <= 0:
        raise UserError(f"--minutes {minutes:g}: give the time that the search may take, say 30")
    base = tuple(pipeline_text([pass_]) for pass_ in parse_pipeline(model.passes))
    space = Space.around(base, _approximations(max_loss))
    with writing(folder), one_at_a_time(folder, "tune") as lock:
        compiler.build(
            model.name, model.passes, output=folder / STOCK, size=model.size,
            weights=model.weights, allow_noop=True, progress=progress, notice=notice,
        )  # fmt: skip
        record = _Record(folder, judge)
        bench = Measuring(
            record.source, folder / STOCK, judge, budget, deadline=time.monotonic() + 60 * minutes,
            locks=[lock], progress=progress, changed=record.write, known=record.candidates,
        )  # fmt: skip
        best = search(space, bench.measure, is_over=bench.is_over, max_loss=max_loss or 0)
        if best is None:
            raise UserError(f"{model.name}: {bench.measure([base])[0].error}")
        compiler.build(
            str(record.source), best.effective, output=folder / BEST, canonicalize=False,
            progress=progress,
        )  # fmt: skip
        return record.finish(model, best, is_complete=not bench.is_over())


def folder_for(model: str) -> Path:
    """Where a model is tuned if nobody says where."""
    return Path("tune") / Path(model).stem.replace(":", "_").replace("/", "_")


def _approximations(max_loss: float | None) -> list[Slot]:
    """What may be tried where numbers may move: precisions."""
    if max_loss is None:
        return []
    if not 0 < max_loss < 1:
        raise UserError(f"--max-loss {max_loss:g}: give a part of the depth, say 0.02")
    integers = tuple(f"quantize:activations={bits}:max_loss={max_loss:g}" for bits in (16, 8))
    return [Slot(("linear_as_gemm",)), Slot(integers)]


class _Record:
    """tune.json: what is known of the candidates, as far as it is of this model and judge."""

    def __init__(self, folder: Path, judge: Judge) -> None:
        self.folder = folder
        stages = read_record(folder / STOCK)["stages"]
        self.source = folder / STOCK / f"{stages[1]['stage']}.onnx"
        """The model after canonicalize, before its passes."""
        self.key = {
            "model": sha256(self.source),
            "weights": sha256(folder / STOCK / WEIGHTS_NAME),
            "judge": {**asdict(judge), "chips": list(judge.chips)},
            "versions": {name: _version(name) for name in ("onnxruntime", "onnxruntime-qnn")},
            "passes": _digest_of_passes(),
        }
        self.candidates = self._recalled()

    def _recalled(self) -> dict[str, Figures]:
        try:
            record = json.loads((self.folder / RECORD_NAME).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        if record.get("key") != self.key:
            return {}
        return {c["pipeline"]: Figures.of(c) for c in record["candidates"] if c["measurements"]}

    def write(self, **more: Any) -> dict[str, Any]:
        """Writes tune.json, whole."""
        candidates = [figures.record() for figures in self.candidates.values()]
        record: dict[str, Any] = finite({"key": self.key, "candidates": candidates, **more})
        write_whole(self.folder / RECORD_NAME, (json_text(record) + "\n").encode())
        return record

    def finish(self, model: Model, best: Figures, *, is_complete: bool) -> dict[str, Any]:
        """Writes the record and the plot of a search that has ended."""
        from compiler.tuning.plot import drawn

        found = list(self.candidates.values())
        write_whole(self.folder / "tune.png", drawn(found, best))
        return self.write(
            asked=asdict(model), best=best.record(), finished=is_complete,
            pareto=[figures.effective for figures in pareto(found)],
        )  # fmt: skip


def _digest_of_passes() -> str:
    """A hash of the sources of all passes: a changed pass makes other models."""
    files = sorted(Path(passes.__path__[0]).glob("*.py"))
    return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
