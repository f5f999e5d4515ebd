"""What a failed check leaves behind: the smallest pair of models that disagree, and a bug report.

The folder holds `old.onnx` and `new.onnx` between the last tensors that agree and the first that
does not, `inputs.npz`, `replay.sh`, `failure.json` (seed and versions included) and
`BUG_REPORT.md`.
"""

from __future__ import annotations

import math
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from compiler.building import versions
from compiler.components import Values, changed_components
from compiler.errors import UserError
from compiler.graph import Graph
from compiler.records import json_text
from compiler.region import Region, whole
from compiler.rewrite import DeclaredPass, Pass, Rewrite
from compiler.verify.declared_pairs import node_pair, pair_of_declared
from compiler.verify.float32_pairs import float32_pairs
from compiler.verify.kernels.call import UnsupportedInFloat64
from compiler.verify.proof import BINDINGS, BOUNDS, REFUSALS, Proof, prove, trials
from compiler.verify.reduction import Pair, reduced, with_one_signature
from compiler.verify.sizes import Sizes

# Of two files each has its weights rounded for itself; so has a table of expected values.
ROUNDED_BOUND = 2.0**-20
# What an evaluation raises of models that it can't run.
_UNEVALUATED = (*REFUSALS, UnsupportedInFloat64, UserError, KeyError)


@dataclass
class Failure:
    """What went wrong, as far as it is known without the pair of models."""

    pass_text: str
    rewrite: str
    detail: str
    error: float
    bound: float
    seed: int
    place: str = ""
    precision: str = "float64"
    notes: list[str] = field(default_factory=list)


def write_reproducer(
    folder: Path, rewrite: Rewrite, pass_: Pass, proof: Proof, seed: int = 0,
    sizes: Sequence[Sizes] = (),
) -> Path:  # fmt: skip
    """Writes the reproducer of a rewrite that its proof rejects into a new folder."""
    failure = Failure(pass_.text(), rewrite.title, proof.detail, proof.error, proof.bound, seed,
                      rewrite.place)  # fmt: skip
    pairs = _pairs(rewrite, pass_, proof, seed, sizes)
    return write_failure(folder, failure, pairs, rewrite)


def write_stage_reproducer(
    folder: Path, before: Path, after: Path, pass_: Pass, fault: str, seed: int = 0,
    rewrites: Sequence[Rewrite] = (),
) -> Path:  # fmt: skip
    """Writes the reproducer of a stage that is wrong as a whole, its rewrites being proven or not.

    The stages are aligned by the names of the tensors that they share, whatever the pass recorded;
    the first piece between shared tensors that computes something else is the pair.

    Args:
        folder: to be written; replaced if it exists.
        before: the stage before.
        after: the stage that is wrong.
        pass_: the pass between them.
        fault: what is wrong, for people.
        seed: of the random inputs.
        rewrites: those of the stage, if they have not been proven.
    """
    for rewrite in rewrites:
        proof = prove(rewrite, pass_, seed)
        if proof.status == "fail":
            return write_reproducer(folder, rewrite, pass_, proof, seed)
    failure = Failure(pass_.text(), "", fault, math.nan, math.nan, seed)
    try:
        return write_failure(folder, failure, _stage_pairs(failure, before, after, pass_), None)
    except _UNEVALUATED as reason:
        # What is no valid model need not be readable, or run, piece by piece.
        failure.notes.append(f"The stage can't be read or run: {' '.join(str(reason).split())}")
    return write_failure(folder, failure, iter(()), None)


def _stage_pairs(failure: Failure, before: Path, after: Path, pass_: Pass) -> Iterator[Pair]:
    """Pairs of models that may show what is wrong with a stage; fills in the failure."""
    edited = _edited_node(before, after, failure.detail, failure.seed)
    if edited is not None:
        failure.place, failure.bound = edited.first_diverging, 0.0
        return iter([edited])
    if isinstance(pass_, DeclaredPass):
        failure.notes.append("The pass changes the function on purpose: the two stages have no "
                             "tensors in common that could be compared.")  # fmt: skip
        return iter(())
    found = differing_piece(before, after, pass_.name, failure.seed)
    if found is None:
        failure.notes.append("In float64 no changed piece of the stage is seen to differ: it is "
                             "the rounding, a kernel of onnxruntime, or a piece that has no "
                             "float64 evaluation.")  # fmt: skip
        failure.bound = ROUNDED_BOUND
        return float32_pairs(before, after, pass_.name, failure.seed)
    piece, proof = found
    failure.place, failure.error, failure.bound = piece.place, proof.error, proof.bound
    failure.notes.append(f"At `{piece.place}`: {proof.detail}.")
    return _pairs_at_cut(piece, proof.bound, failure.seed, ())


def differing_piece(
    before: Path, after: Path, name: str, seed: int = 0
) -> tuple[Rewrite, Proof] | None:
    """The first piece between tensors that two stages share which computes something else."""
    for piece in changed_components(Graph.load(before), Graph.load(after), name):
        bound = _bound_of_files(piece)
        try:
            tried = [proof for _, proof in islice(trials(piece, bound, seed, ()), BINDINGS)]
        except _UNEVALUATED:
            continue
        for proof in tried:
            if proof.status == "fail":
                return piece, proof
    return None


def _edited_node(before: Path, after: Path, fault: str, seed: int) -> Pair | None:
    """A node that `fault` names, in both stages, on the same random inputs."""
    old, new = (whole(Graph.load(path)) for path in (before, after))
    known = {node.name: node for node in old.nodes}
    named = [node for node in new.nodes if node.name in known and repr(node.name) in fault]
    return node_pair(old, new, known[named[0].name], named[0], seed) if named else None


def _bound_of_files(piece: Rewrite) -> float:
    """Where a pass has made weights, their rounding shows between two files."""
    old, new = ([Values(w) for w in region.constants.values()] for region in (piece.old, piece.new))
    return BOUNDS["algebraic"] if all(weight in old for weight in new) else ROUNDED_BOUND


def _pairs(
    rewrite: Rewrite, pass_: Pass, proof: Proof, seed: int, sizes: Sequence[Sizes]
) -> Iterator[Pair]:
    """Pairs of models that may show the fault, the smallest first."""
    if not isinstance(pass_, DeclaredPass):
        yield from _pairs_at_cut(rewrite, proof.bound, seed, sizes)
        return
    with suppress(*_UNEVALUATED):
        found = pair_of_declared(rewrite, pass_, proof.bound, seed, sizes)
        if found is not None:
            yield found


def _pairs_at_cut(
    rewrite: Rewrite, bound: float, seed: int, sizes: Sequence[Sizes]
) -> Iterator[Pair]:
    if not rewrite.old.outputs:
        rewrite = _of_kept_values(rewrite)
    if not rewrite.old.outputs:
        return
    tried = trials(rewrite, bound, seed, sizes)
    feeds = next((feeds for feeds, proof in tried if proof.status == "fail"), None)
    if feeds is None:
        return
    pair = Pair(rewrite.old, rewrite.new, feeds)
    for smaller in (reduced, _unreduced):
        with suppress(*_UNEVALUATED):  # what can't be made smaller may still be shown whole
            yield smaller(pair, bound)


def _of_kept_values(rewrite: Rewrite) -> Rewrite:
    """A rewrite whose new nodes read what they should replace: the old side is that value.

    The driver keeps it as `NAME/inner`.
    """
    kept = {name: read for name in rewrite.new.outputs
            for read in rewrite.new.inputs if read.startswith(f"{name}/inner")}  # fmt: skip
    nodes = [onnx.helper.make_node("Identity", [read], [name]) for name, read in kept.items()]
    new = replace(rewrite.new, outputs={name: rewrite.new.outputs[name] for name in kept})
    inputs = {read: new.inputs[read] for read in kept.values()}
    return replace(rewrite, old=replace(new, nodes=tuple(nodes), inputs=inputs), new=new)


def _unreduced(pair: Pair, _bound: float) -> Pair:
    return with_one_signature(pair)


def write_failure(
    folder: Path, failure: Failure, pairs: Iterator[Pair], rewrite: Rewrite | None
) -> Path:
    """Writes a folder with the first of the pairs whose files still disagree.

    Args:
        folder: to be written; replaced if it exists.
        failure: what went wrong.
        pairs: the candidates, best first.
        rewrite: its regions are kept as they are where no pair replays.
    """
    with replaced(folder) as beside:
        shown = _write_first_shown(beside, failure, pairs)
        if shown is None:
            _write_regions(beside, rewrite, failure)
        _write_record(beside, failure, shown)
        (beside / "BUG_REPORT.md").write_text(_report(failure, shown), "utf-8")
    return folder


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place if the block succeeds, and vanishes if not."""
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_first_shown(folder: Path, failure: Failure, pairs: Iterator[Pair]) -> Pair | None:
    """Writes pairs one over the other until one disagrees; fills in what its files show."""
    for pair in pairs:
        bound = max(failure.bound, ROUNDED_BOUND) if pair.is_table else failure.bound
        _write_pair(folder, pair, bound)
        found = _replayed(folder, bound)
        if found is not None:
            failure.precision, failure.error, failure.bound = found
            return pair
    return None


def _write_pair(folder: Path, pair: Pair, bound: float) -> None:
    for name, region in (("old", pair.old), ("new", pair.new)):
        onnx.save(region.model(), folder / f"{name}.onnx")
    np.savez(folder / "inputs.npz", **pair.feeds)
    write_replay(folder, "the two models still differ", [
        'python -c "import compiler" || exit 2',
        f"python -m compiler verify old.onnx new.onnx --inputs inputs.npz --bound {bound:g}",
    ])  # fmt: skip


def write_replay(folder: Path, meaning: str, commands: Sequence[str]) -> None:
    """Writes `replay.sh`: commands for its own folder, the last of which exits with 1 or 0."""
    lines = ["#!/bin/sh", f"# Exit code 1: {meaning}; 0: no longer; 2: it can't be run.",
             'cd "$(dirname "$0")" || exit 2', *commands]  # fmt: skip
    replay = folder / "replay.sh"
    replay.write_text("\n".join(lines) + "\n", "utf-8")
    replay.chmod(0o755)


def _replayed(folder: Path, bound: float) -> tuple[str, float, float] | None:
    """Precision, error and bound that the files show; None if they are not valid, or agree."""
    from compiler.compare import compare_models

    try:
        for name in ("old.onnx", "new.onnx"):
            onnx.checker.check_model(folder / name, full_check=True)
        found = compare_models(folder / "old.onnx", folder / "new.onnx",
                               inputs=folder / "inputs.npz", bound=bound)  # fmt: skip
    except (
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError, *_UNEVALUATED
    ):  # fmt: skip
        return None
    for precision, proof in (("float64", found.float64), ("float32", found.float32)):
        if proof.status == "fail":
            return precision, proof.error, proof.bound
    return None


def _write_regions(folder: Path, rewrite: Rewrite | None, failure: Failure) -> None:
    """The regions as the pass left them, for reading: they can't be run against each other."""
    for path in folder.iterdir():
        path.unlink()
    failure.notes.append("No pair of models replays this: run the build again to see it.")
    for name, region in (("old", rewrite.old), ("new", rewrite.new)) if rewrite else ():
        if region.nodes:
            onnx.save(region.model(), folder / f"{name}.onnx")


def _write_record(folder: Path, failure: Failure, pair: Pair | None) -> None:
    record: dict[str, Any] = {
        "pass": failure.pass_text, "rewrite": failure.rewrite, "seed": failure.seed,
        "error": failure.error, "bound": failure.bound, "detail": failure.detail,
        "notes": failure.notes, "versions": _versions(),
    }  # fmt: skip
    if pair is not None:
        record |= {"nodes": {"old": len(pair.old.nodes), "new": len(pair.new.nodes)},
                   "last_agreeing": list(pair.last_agreeing),
                   "first_diverging": pair.first_diverging}  # fmt: skip
    (folder / "failure.json").write_text(json_text(record) + "\n", "utf-8")


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **versions()}


# -- the report ------------------------------------------------------------------------------------


def _report(failure: Failure, pair: Pair | None) -> str:
    """The text of `BUG_REPORT.md`."""
    what = failure.rewrite or f"The stage after {failure.pass_text}"
    parts = [f"# {what} computes something else", _summary(failure)]
    parts += failure.notes
    if pair is not None:
        parts += [_where(pair), _side("old.onnx", pair.old), _side("new.onnx", pair.new),
                  _inputs(pair.feeds), _how_to_replay(failure)]  # fmt: skip
    listed = ", ".join(f"{name} {number}" for name, number in _versions().items())
    return "\n\n".join([*parts, f"## Versions\n\n{listed}; {platform.platform()}"]) + "\n"


def _summary(failure: Failure) -> str:
    place = f" at `{failure.place}`" if failure.place else ""
    return (f"Pass `{failure.pass_text}`{place}: {failure.detail}.\n\n"
            f"Error {failure.error:.3g}, bound {failure.bound:.3g}; |difference| / |values − their "
            f"mean| (L2), in {failure.precision}.")  # fmt: skip


def _where(pair: Pair) -> str:
    lines = ["## Where"]
    if pair.is_table:
        lines += ["`old.onnx` holds the values that the pass's own statement of the new function "
                  "gives for these inputs."]  # fmt: skip
    lines += ["The last tensors that agree:", *(f"- `{text}`" for text in pair.last_agreeing)]
    lines += [f"The first that does not: `{pair.first_diverging}`"] if pair.first_diverging else []
    return "\n".join(lines)


def _side(name: str, region: Region) -> str:
    nodes = "\n".join(str(onnx.helper.printable_node(node)) for node in region.nodes)
    held = ", ".join(f"{name} {list(weight.shape)}" for name, weight in region.constants.items())
    return f"## {name}\n\n```\n{nodes}\n```" + (f"\n\nHolds {held}." if held else "")


def _inputs(feeds: Mapping[str, Any]) -> str:
    rows = [f"- `{name}`: {values.dtype} {list(values.shape)}" for name, values in feeds.items()]
    return "\n".join(["## inputs.npz", "", *rows])


def _how_to_replay(failure: Failure) -> str:
    return (f"## To reproduce\n\n`sh replay.sh` runs both models on the inputs (seed "
            f"{failure.seed}); exit code 1: they differ.")  # fmt: skip
