"""`tune`: a model's candidates measured in parallel, kept in a folder, and the best one built."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import compiler
from compiler.building import WEIGHTS_NAME, sha256, write_whole, writing
from compiler.errors import UserError
from compiler.fingerprint import code_of
from compiler.pipeline import parse_pipeline, pipeline_text
from compiler.progress import Progress, nothing
from compiler.quantize.images import Images, approximates
from compiler.records import finite, json_text, read_record
from compiler.rewrite import Pass
from compiler.tuning.candidate import SCRATCH
from compiler.tuning.figures import Figures, pareto
from compiler.tuning.judges import Judge
from compiler.tuning.measuring import STOCK, Measuring
from compiler.tuning.search import search
from compiler.tuning.space import Space
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
    max_loss: float | None = None, images: Path | None = None, memory_gb: float | None = None,
    progress: Progress = nothing, notice: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:  # fmt: skip
    """Searches pipelines for the fastest that keeps the numbers; returns what tune.json holds.

    Args:
        model: with the passes that every candidate has.
        folder: takes `tune.json`, `tune.png`, and the builds `stock` and `best`. Candidates that
            tune.json knows are not measured again.
        judge: where latency is measured.
        minutes: no candidate is begun after that; the best one is still built, fully verified.
        max_loss: approximate passes may lose that much (AbsRel against float32); none without.
        images: for approximate passes, as `compiler.build` takes them.
        memory_gb: what candidates in parallel may take together.
        progress: told (what, done, total).
        notice: told one-line messages about licences and weights.

    Raises:
        UserError: bad input; another tuning in the folder; a stock model that can't be judged.
    """
    deadline = time.monotonic() + 60 * minutes
    base = parse_pipeline(model.passes)
    _refuse(judge, minutes, max_loss)
    _refuse_images(images, base, max_loss)
    budget = memory_budget(memory_gb)
    space = Space.around([pipeline_text([pass_]) for pass_ in base], max_loss)
    of_base = images if approximates(base) else None
    with writing(folder), one_at_a_time(folder, "tune") as lock:
        for left in folder.glob(f"{SCRATCH}*"):  # by workers that were killed
            shutil.rmtree(left, ignore_errors=True)
        compiler.build(
            model.name, model.passes, output=folder / STOCK, size=model.size,
            weights=model.weights, images=of_base, allow_noop=True, progress=progress,
            notice=notice,
        )  # fmt: skip
        record = _Record(folder, judge, space, images)
        bench = Measuring(
            record.source, folder / STOCK, judge, budget, images=images, deadline=deadline,
            locks=[lock], progress=progress, changed=record.write, known=record.candidates,
        )  # fmt: skip
        best = search(
            space, bench.measure, is_over=bench.is_over,
            max_loss=math.inf if max_loss is None else max_loss,
        )  # fmt: skip
        is_complete = not bench.is_over()
        if best is None:
            raise UserError(f"{model.name}: {bench.measure([space.base])[0].error}")
        compiler.build(
            str(record.source), best.effective, output=folder / BEST, canonicalize=False,
            images=images if best.loss is not None else None, progress=progress,
        )  # fmt: skip
        return record.finish(model, best, is_complete=is_complete)


def _refuse(judge: Judge, minutes: float, max_loss: float | None) -> None:
    """Refuses, before any work, what can't be searched for."""
    if not minutes > 0:
        raise UserError(f"--minutes {minutes:g}: give the time that the search may take, say 30")
    if max_loss is not None and not 0 < max_loss < 1:
        raise UserError(f"--max-loss {max_loss:g}: give a part of the depth, say 0.02")
    judge.check()


def _refuse_images(images: Path | None, base: Sequence[Pass], max_loss: float | None) -> None:
    """Refuses a folder without photos, and one that nothing is calibrated with."""
    if images is None:
        return
    if max_loss is None and not approximates(base):
        raise UserError("--images is for approximate passes: give --max-loss, too")
    Images(images).photos()


def folder_for(model: str) -> Path:
    """Where a model is tuned if nobody says where."""
    return Path("tune") / Path(model).stem.replace(":", "_").replace("/", "_")


class _Record:
    """tune.json: what is known of the candidates, as far as it is of the same question.

    That is the model, the passes that the user gave, the code of all that may be tried, the
    images, and the judge.
    """

    def __init__(self, folder: Path, judge: Judge, space: Space, images: Path | None) -> None:
        self.folder = folder
        stages = read_record(folder / STOCK)["stages"]
        self.source = folder / STOCK / f"{stages[1]['stage']}.onnx"
        """The model after canonicalize, before its passes."""
        self.key = {
            "model": sha256(self.source),
            "weights": sha256(folder / STOCK / WEIGHTS_NAME),
            "judge": {**asdict(judge), "chips": list(judge.chips)},
            "versions": {name: _version(name) for name in ("onnxruntime", "onnxruntime-qnn")},
            "passes": list(space.base),
            "code": code_of(parse_pipeline(",".join(space.texts()))),
            "images": images and [sha256(path) for path in Images(images).photos()],
        }
        self.candidates = self._recalled()

    def _recalled(self) -> dict[str, Figures]:
        try:
            record = json.loads((self.folder / RECORD_NAME).read_text("utf-8"))
            found = [Figures.of(candidate) for candidate in record["candidates"]]
        except (OSError, ValueError, KeyError, TypeError):  # there is none, or of another version
            return {}
        same = record.get("key") == self.key
        return {f.pipeline: f for f in found if f.measurements} if same else {}

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


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
