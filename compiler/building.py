"""A build: a model through a pipeline into a folder of verified stages, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import resource
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compiler.components import changed_components
from compiler.errors import UserError
from compiler.foreign import running
from compiler.graph import Graph
from compiler.pipeline import pipeline_text
from compiler.progress import Progress, nothing
from compiler.records import finite, json_text
from compiler.region import TensorType
from compiler.rewrite import (
    WHOLE_MODEL,
    Applied,
    ApproximatePass,
    GraphPass,
    LocalPass,
    Pass,
    Refusal,
    Rewrite,
    Sensitivity,
    apply_pass,
)
from compiler.rewrites import REWRITES_NAME, RecordedRewrite, record_of
from compiler.weights import WeightsFile

if TYPE_CHECKING:
    from compiler.quantize.judging import Judge

Verify = Literal["each", "final", "full", "none"]

WEIGHTS_NAME = "weights.bin"
MODEL_NAME = "model.onnx"


@dataclass
class StageReport:
    """A line of the build's table: one pass, what it did, and how that was checked."""

    name: str
    stage: str
    contract: str
    rewrites: int = 0
    refusals: list[dict[str, str]] = field(default_factory=list)
    slices_left: int = 0
    nodes_before: int = 0
    nodes_after: int = 0
    seconds: float = 0.0
    verify_seconds: float = 0.0
    peak_memory_nbytes: int = 0
    new_weights_nbytes: int = 0
    float64: dict[str, Any] | None = None
    float32: dict[str, Any] | None = None
    whole_float64: dict[str, Any] | None = None
    loss: dict[str, Any] | None = None
    """What an approximate pass lost (`compiler.quantize.loss`), with its bound."""
    layers: list[dict[str, Any]] = field(default_factory=list)
    """What each layer loses alone, where that was measured."""
    estimate: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Stage:
    """A model between two passes: its graph, its file, and the rewrites that led to it."""

    graph: Graph
    path: Path
    report: StageReport
    rewrites: list[Rewrite] = field(default_factory=list)
    recorded: list[RecordedRewrite] = field(default_factory=list)
    """The rewrites by name, with their proofs once they are verified."""


def approximate(
    graph: Graph, pass_: ApproximatePass, judge: Judge
) -> tuple[Graph, Applied, Sequence[Sensitivity]]:
    """Applies an approximate pass: the new graph, the record, and what layers lose alone."""
    refusals = pass_.refusals(graph)
    if refusals:
        return graph, Applied([], refusals), ()
    with running(pass_):
        done = pass_.approximated(graph, judge.evidence())
    rewrites = changed_components(graph, done.graph, pass_.name)
    if rewrites:
        return done.graph, Applied(rewrites), done.layers
    reason = f"every layer has to stay as it is to lose no more than max_loss={pass_.max_loss:g}"
    return graph, Applied([], [Refusal(WHOLE_MODEL, reason)]), done.layers


def run_pass(graph: Graph, pass_: Pass) -> tuple[Graph, Applied]:
    """Applies one pass; returns the new graph (the same one, for local passes) and the record."""
    if isinstance(pass_, ApproximatePass):
        raise UserError(f"{pass_.name} is approximate: only a build has images to judge it by")
    with running(pass_):
        if isinstance(pass_, GraphPass):
            simplified = pass_.simplified(graph)
            if not isinstance(simplified, Graph):
                raise TypeError(f"simplified() returned {type(simplified).__name__}, not a Graph")
            rewrites = changed_components(graph, simplified, pass_.name)
            return simplified, Applied(rewrites, pass_.refusals(graph))
        local: LocalPass[Any] = pass_  # type: ignore[assignment]
        return graph, apply_pass(graph, local)


class Builder:
    """Runs a pipeline in a folder, stage by stage."""

    def __init__(self, folder: Path, *, allow_noop: bool) -> None:
        self.folder = folder
        self.weights = WeightsFile(folder / WEIGHTS_NAME)
        self._allow_noop = allow_noop

    def source(self, path: Path) -> Stage:
        """Stage 0: the source model, its weights moved to the build's weights file."""
        start = time.perf_counter()
        graph = Graph.load(path)
        report = StageReport("source", "00_source", "", nodes_before=len(graph.nodes))
        if graph.defaults:
            report.notes.append(
                f"callers may feed {_some(graph.defaults)} (initializers that are inputs, too): "
                "none is taken for a constant; if they are, take them out of the inputs"
            )
        return self._finished(graph, report, Applied(), start)

    def apply(self, before: Stage, pass_: Pass, number: int, judge: Judge | None = None) -> Stage:
        """The stage after a pass, `judge` that of an approximate one.

        Raises UserError if the pass finds nothing to rewrite.
        """
        start = time.perf_counter()
        name = f"{number:02d}_{pass_.name}"
        report = StageReport(
            pass_.text(), name, pass_.contract, nodes_before=len(before.graph.nodes)
        )
        if isinstance(pass_, ApproximatePass) and judge is not None:
            graph, applied, layers = approximate(before.graph, pass_, judge)
            report.layers = [asdict(layer) for layer in layers]
        else:
            graph, applied = run_pass(before.graph, pass_)
        # A graph that already is as a GraphPass leaves it is no error; one that it can't change is.
        if not applied.rewrites and (applied.refusals or not isinstance(pass_, GraphPass)):
            self._refuse_noop(pass_, applied, report)
        report.rewrites = len(applied.rewrites)
        report.refusals = [asdict(refusal) for refusal in applied.refusals]
        report.slices_left = sum(rewrite.slices_left for rewrite in applied.rewrites)
        return self._finished(graph, report, applied, start)

    def _finished(self, graph: Graph, report: StageReport, done: Applied, start: float) -> Stage:
        path = self.folder / f"{report.stage}.onnx"
        # Before the new weights are written: then they no longer know how they were made.
        recorded = [RecordedRewrite.of(rewrite, None) for rewrite in done.rewrites]
        nbytes = self.weights.path.stat().st_size
        graph.save(path, self.weights)
        report.seconds = time.perf_counter() - start
        report.nodes_after = len(graph.nodes)
        report.new_weights_nbytes = self.weights.path.stat().st_size - nbytes
        report.peak_memory_nbytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return Stage(graph, path, report, done.rewrites, recorded)

    def _refuse_noop(self, pass_: Pass, applied: Applied, report: StageReport) -> None:
        reasons = [f"{refusal.place}: {refusal.reason}" for refusal in applied.refusals[:5]]
        more = len(applied.refusals) - len(reasons)
        why = "; ".join(reasons) + (f"; and {more} more" if more > 0 else "")
        text = f"pass {pass_.text()!r} rewrote nothing: {why}"
        if not self._allow_noop:
            raise UserError(f"{text} (--allow-noop builds all the same)")
        report.notes.append(text)


def _some(names: Collection[str]) -> str:
    """`a, b, c and 9 more`."""
    first = list(names)[:3]
    more = len(names) - len(first)
    return ", ".join(map(repr, first)) + (f" and {more} more" if more else "")


@contextmanager
def appearing_whole(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place if the block succeeds, and vanishes if not.

    Only an earlier build is replaced. Raises UserError for anything else, and if writing fails.
    """
    if folder.exists() and not _is_replaceable(folder):
        raise UserError(f"{folder} exists and is no build: nothing was written; choose another -o")
    beside = folder.with_name(f".{folder.name}.partial")
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with writing(folder):
            beside.mkdir(parents=True)
            yield beside
            old = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                folder.rename(old)
            beside.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):  # what is not empty stays
                parent.rmdir()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full or forbidden disk into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT_WRITE and not _is_missing_folder(error, path):
            raise
        raise UserError(f"can't write {path}: {error.strerror}; free it or choose -o") from error


def refuse_folder(output: Path) -> None:
    """Raises UserError, before the work, for a file to be written that is a folder."""
    if output.is_dir() or not output.name:
        raise UserError(f"{output} is a folder: give -o the name of a file in it")


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file beside its place and renames it: nobody sees half of it."""
    beside = path.with_name(f".{path.name}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_bytes(content)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def _is_missing_folder(error: OSError, path: Path) -> bool:
    """Whether a folder above `path` can't be made (below /proc, say)."""
    missing = Path(str(error.filename)).absolute()
    return error.errno == errno.ENOENT and missing in path.absolute().parents


def _is_replaceable(folder: Path) -> bool:
    """Whether a path is an earlier build or an empty folder."""
    return folder.is_dir() and ((folder / "build.json").exists() or not any(folder.iterdir()))


def build_stages(
    source: Path, passes: Sequence[Pass], folder: Path, *, allow_noop: bool = False,
    verify: Verify = "each", progress: Progress = nothing, failures: Path,
    spent: Path | None = None, images: Path | None = None,
) -> list[Stage]:  # fmt: skip
    """Runs a pipeline on a model file in an existing folder, verifying every stage.

    A reproducer of a failed check is written to the folder `failures`; the folder `spent` is
    deleted once the source has been taken over. Approximate passes are calibrated and judged with
    the photos in the folder `images`, or with generated ones.

    Raises:
        UserError: on bad input or a pass that rewrites nothing.
        VerificationError: with the folder of a reproducer, or of a loss beyond its bound.
    """
    from compiler.verify import Verifier
    from compiler.verify.structure import checker_faults

    builder = Builder(folder, allow_noop=allow_noop)
    progress("source", 0, len(passes) + 1)
    stages = [builder.source(source)]
    faults = checker_faults(stages[0].path)
    if faults:
        raise UserError(f"{source}: not a valid ONNX model: {faults[0]}")
    if spent is not None:
        shutil.rmtree(spent)
    verifier = None if verify == "none" else Verifier(stages[0], verify, progress, failures)
    for number, pass_ in enumerate(passes, start=1):
        progress(pass_.name, number, len(passes) + 1)
        judge = None
        if isinstance(pass_, ApproximatePass):
            judge = _judge(stages[-1], pass_, images, progress)
        stage = builder.apply(stages[-1], pass_, number, judge)
        if verifier is not None:
            verifier.check(stage, pass_, is_last=_is_last(passes[number:]))
        if judge is not None and stage.rewrites:
            judge.require(stage)
        stages.append(stage)
    shutil.copyfile(stages[-1].path, folder / MODEL_NAME)
    recorded = {stage.report.stage: stage.recorded for stage in stages[1:]}
    write_json(folder / REWRITES_NAME, record_of(recorded))
    return stages


def _judge(before: Stage, pass_: ApproximatePass, images: Path | None, progress: Progress) -> Judge:
    """What calibrates and judges a pass; pictures are loaded for none that is proven."""
    from compiler.quantize.images import Images
    from compiler.quantize.judging import Judge

    return Judge(before, pass_, Images(images), progress)


def _is_last(rest: Sequence[Pass]) -> bool:
    """Whether what the passes so far made is compared as a whole: at the end, or when what is
    behind it computes something else."""
    return not rest or isinstance(rest[0], ApproximatePass)


def build_record(
    stages: Sequence[Stage], passes: Sequence[Pass], model: dict[str, Any], verify: Verify
) -> dict[str, Any]:
    """What `build.json` holds."""
    graph = stages[-1].graph
    record = {
        "model": model,
        "pipeline": pipeline_text(passes),
        "verify": verify,
        "inputs": {t.name: str(TensorType.of(t)) for t in graph.inputs},
        "outputs": {t.name: str(TensorType.of(t)) for t in graph.outputs},
        "stages": [asdict(stage.report) for stage in stages],
        "files": {path.name: sha256(path) for path in sorted({*_files(stages)})},
        "versions": versions(),
    }
    return {key: finite(value) for key, value in record.items()}


def versions() -> dict[str, str]:
    """Of the packages that a build's numbers depend on."""
    return {name: version(name) for name in _VERSIONED}


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Writes a record as indented JSON."""
    path.write_text(json_text(record) + "\n", "utf-8")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(stages: Sequence[Stage]) -> Iterator[Path]:
    for stage in stages:
        yield stage.path
    yield stages[0].path.parent / MODEL_NAME
    yield stages[0].path.parent / WEIGHTS_NAME
    yield stages[0].path.parent / REWRITES_NAME


_CANNOT_WRITE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EBUSY, errno.ENOTEMPTY,
}  # fmt: skip
_VERSIONED = [
    "numpy",
    "onnx",
    "onnx-graphsurgeon",
    "onnxruntime",
    "onnxsim",
    "torch",
    "transformers",
]
