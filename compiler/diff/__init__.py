"""What changed between two models: identical changes once, with their count and places.

`diff_files` takes two ONNX files. If both are stages of one build, as it wrote them, the changes
are its recorded rewrites, with how each new weight was made and the proof of each; `diff_pass`
takes a build and a pass. Else the graphs are aligned by structure (`alignment.py`): names are a
hint, never the key. A `Diff` is free of printing; `text.py` and `page.py` show it.

`Diff.record()`, the JSON of `diff --json`, schema 1:

    schema        1
    before, after the two files, as given
    nodes         [nodes before, nodes after]
    differ        whether anything but names differs; the exit code
    source        "record" or "alignment"
    signature     inputs, outputs, operator sets and IR version that differ, a sentence each
    renamed       inputs and outputs that only have other names, a sentence each
    changes       a list of kinds of changes, each:
      pass          the pass that made it, or null
      count         how many places
      places        [{tensor, scope, float64}]: the first tensor that is computed there, the module
                    as the exporter names it or "", and the error at this cut or null
      removed, added   the ops, in order, of one place
      old, new      the region of the first place:
        nodes         names
        inputs, outputs   the cut: tensor → type, as `float[1×1370×384]`
        lines         the expression, outermost op first, each:
          depth         the level; operands follow their op, one level deeper
          op, shape, attributes
          operands      [{kind, text}]; kind is tensor, weight, value (of a constant), below (it
                        is computed by the following lines) or label (by the line so labelled)
          label         "%1" if it is read more than once
          count, unit   so many heads or parts side by side, with other weights
          nodes         behind this line: more than 1 for a copy or a repetition
        repeats       what is there several times: [{unit: head|part, count, parameters:
                      [{label, role, base, scope, values}]}]; a parameter is a weight or tensor
                      that differs between them, with a value each: slices of `base` if it has one,
                      else names; `label` is how the lines call it
      details       what changed of a node that stayed, a sentence each
      weights       [{name, shape, how}]: the new weights, and of which old ones they were made
      float64       the worst error of the places: {status, error, bound, detail}, or null
      float32       that of the whole model after the pass, or null
"""

from __future__ import annotations

from pathlib import Path

from compiler.diff.alignment import Pairing
from compiler.diff.changes import kinds_of
from compiler.diff.interface import (
    Interface,
    aside_changes,
    declared_changes,
    interfaces,
    renamed,
)
from compiler.diff.model import Diff, Kind
from compiler.diff.numbering import Numbered, Numbers
from compiler.diff.pieces import changes_between
from compiler.diff.recorded import record_between
from compiler.diff.side import Side
from compiler.graph import Graph
from compiler.records import stages_around


def diff_pass(build: Path, pass_name: str) -> Diff:
    """What a pass did in a build. Raises UserError if it is no build, or had no such pass."""
    return diff_files(*stages_around(build, pass_name))


def diff_files(before: Path, after: Path) -> Diff:
    """Compares two ONNX files. Raises UserError on a bad one."""
    record = record_between(before, after)
    old = Side.load(before)
    if record is None:
        return _diff_sides(old, Side.load(after), str(before), str(after))
    stages = list(record.changes(old))
    new, changes = stages[-1][0], [change for _, found in stages for change in found]
    pairs = interfaces(old, new)[-1]
    return Diff(
        str(before), str(after), (len(old.nodes), len(new.nodes)),
        tuple(declared_changes(old, new, pairs)), tuple(kinds_of(changes)),
        tuple(renamed(pairs)), from_record=True,
    )  # fmt: skip


def diff_graphs(before: Graph, after: Graph, old_name: str = "", new_name: str = "") -> Diff:
    """Compares two graphs by structure: names are a hint, never the key."""
    return _diff_sides(Side(before), Side(after), old_name, new_name)


def _diff_sides(old: Side, new: Side, old_name: str, new_name: str) -> Diff:
    numbers, pairs = Numbers(), interfaces(old, new)
    found = [_aligned(old, new, way, numbers) for way in pairs]
    best = next((p for p in found if _are_equal(p)), found[-1])
    chosen = pairs[found.index(best)]
    changes, moved_outputs = changes_between(best)
    kinds = sorted(kinds_of(changes), key=lambda k: -len(k.places) * _size(k))
    return Diff(
        old_name, new_name, (len(old.nodes), len(new.nodes)),
        (*declared_changes(old, new, chosen), *aside_changes(best.old, best.new), *moved_outputs),
        tuple(kinds), tuple(renamed(chosen)), is_comparable=old.signature == new.signature,
    )  # fmt: skip


def _aligned(old: Side, new: Side, pairs: Interface, numbers: Numbers) -> Pairing:
    ours, theirs = pairs.input_keys(old, new)
    return Pairing(Numbered(old, numbers, ours), Numbered(new, numbers, theirs), pairs.outputs)


def _are_equal(pairing: Pairing) -> bool:
    """Whether every node and every output has its equal."""
    old, new = pairing.old, pairing.new
    same_outputs = all(old.tensors.get(a) == new.tensors.get(b) for a, b in pairing.outputs)
    return same_outputs and sorted(old.values) == sorted(new.values)


def _size(kind: Kind) -> int:
    return len(kind.old_ops) + len(kind.new_ops)


__all__ = ["Diff", "Kind", "diff_files", "diff_graphs", "diff_pass"]
