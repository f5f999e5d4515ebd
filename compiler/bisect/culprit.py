"""What is known of a bad rewrite, and the reproducer that it leaves."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import onnx

from compiler.bisect.checks import Check, CommandCheck
from compiler.bisect.command import with_file_here
from compiler.bisect.prefixes import Built, plain_nodes
from compiler.building import WEIGHTS_NAME, run_pass
from compiler.errors import UserError
from compiler.graph import Graph
from compiler.rewrite import Rewrite
from compiler.verify.proof import prove
from compiler.verify.reproducer import (
    differing_piece,
    replaced,
    write_replay,
    write_reproducer,
    write_stage_reproducer,
)
from compiler.verify.structure import record_faults


@dataclass(frozen=True)
class Culprit:
    """A bad rewrite of pass `number`, counted from 1."""

    number: int
    title: str
    detail: str
    good: Path
    """The model without it, and with it."""
    bad: Path
    rewrite: Rewrite | None = None
    """The rewrite as the pass made it, if that is at hand."""


def disproven(built: Built, number: int) -> Culprit | None:
    """The first rewrite of a pass that computes something else at its cut, in float64."""
    before, after = built.stages[number - 1 : number + 1]
    pass_ = built.passes[number - 1]
    if pass_.contract == "approximate":  # its loss was judged by the build; there are no proofs
        return None
    again = run_again(built, number)
    for rewrite in again:
        proof = prove(rewrite, pass_)
        if proof.status == "fail":
            return Culprit(number, rewrite.title, proof.detail, before, after, rewrite)
    for fault in record_faults(before, after, pass_, again)[:1] if again else ():
        only = again[0].title if len(again) == 1 else f"{pass_.name}, outside of its rewrites"
        return Culprit(number, only, fault, before, after)
    return None if again or pass_.contract == "declared" else _differing(built, number)


def _differing(built: Built, number: int) -> Culprit | None:
    """The same from the stages alone, where the pass no longer makes what it made."""
    before, after = built.stages[number - 1 : number + 1]
    with suppress(UserError):
        found = differing_piece(before, after, built.passes[number - 1].name)
        if found is not None:
            piece, proof = found
            index = _recorded_at(built, number, piece)
            title = piece.title if index is None else built.rewrites[number - 1][index].title
            return Culprit(number, title, proof.detail, before, after)
    return None


def _recorded_at(built: Built, number: int, piece: Rewrite) -> int | None:
    """The recorded rewrite that a piece of a stage is of."""
    nodes = {node.name for node in piece.new.nodes} | {node.name for node in piece.old.nodes}
    sizes = [len(nodes.intersection([*rewrite.added, *rewrite.removed]))
             for rewrite in built.rewrites[number - 1]]  # fmt: skip
    places = [rewrite.place for rewrite in built.rewrites[number - 1]]
    if piece.place in places:
        return places.index(piece.place)
    return sizes.index(max(sizes)) if any(sizes) else None


def run_again(built: Built, number: int) -> Sequence[Rewrite]:
    """The rewrites of a pass, with their regions, by running it once more.

    Empty if it refuses, or makes another model than it did in the build.
    """
    try:
        graph, done = run_pass(Graph.load(built.stages[number - 1]), built.passes[number - 1])
    except UserError:
        return []
    stage = onnx.load(built.stages[number], load_external_data=False)
    return done.rewrites if plain_nodes(graph.to_model()) == plain_nodes(stage) else []


def write_culprit(folder: Path, built: Built, culprit: Culprit, check: Check) -> None:
    """Writes the reproducer of a bad rewrite; it appears whole or not at all."""
    with replaced(folder) as beside:
        _write_numeric(beside, built, culprit)
        if isinstance(check, CommandCheck) and not _replays_by_command(beside, culprit, check):
            _write_whole(beside, culprit, check)


def _write_numeric(folder: Path, built: Built, culprit: Culprit) -> None:
    pass_ = built.passes[culprit.number - 1]
    again = [] if culprit.rewrite is not None else run_again(built, culprit.number)
    same = (rewrite for rewrite in again if rewrite.title == culprit.title)
    rewrite = culprit.rewrite or next(same, None)
    if rewrite is not None:
        proof = prove(rewrite, pass_)
        if proof.status == "fail":
            write_reproducer(folder, rewrite, pass_, proof)
            return
    fault = f"{culprit.title}: {culprit.detail}" if culprit.detail else f"{culprit.title} is bad"
    write_stage_reproducer(folder, culprit.good, culprit.bad, pass_, fault)


def _replays_by_command(folder: Path, culprit: Culprit, check: CommandCheck) -> bool:
    """Whether the command tells the small models apart; then it is what is replayed."""
    old, new = folder / "old.onnx", folder / "new.onnx"
    if not (old.exists() and new.exists()):
        return False
    if (check(old, culprit.number), check(new, culprit.number)) != ("good", "bad"):
        return False
    _command_replay(folder, check, "new.onnx")
    return True


def _command_replay(folder: Path, check: CommandCheck, model: str) -> None:
    """The user's command may name files of the folder that it was given in: it is run there."""
    where = shlex.quote(str(Path.cwd()))
    write_replay(folder, f"{model} still is bad", [
        'here="$(pwd)"', f"cd {where} || exit 2", "(", with_file_here(check.text, model), ")",
        "case $? in 0) exit 0 ;; 125 | 126 | 127) exit 2 ;; *) exit 1 ;; esac",
    ])  # fmt: skip
    with (folder / "BUG_REPORT.md").open("a", encoding="utf-8") as report:
        report.write(f"\n## The check\n\n`{check.text}` calls `{model}` bad, and the other model "
                     "good.\n")  # fmt: skip


def _write_whole(folder: Path, culprit: Culprit, check: CommandCheck) -> None:
    """Where the command needs whole models: those without and with the rewrite."""
    for name, path in (("good.onnx", culprit.good), ("bad.onnx", culprit.bad)):
        shutil.copyfile(path, folder / name)
    shutil.copyfile(culprit.bad.with_name(WEIGHTS_NAME), folder / WEIGHTS_NAME)
    _command_replay(folder, check, "bad.onnx")
