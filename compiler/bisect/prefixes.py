"""Models between two stages: the stage before with the first rewrites of the record applied.

Nothing is run again: the nodes that a rewrite removed and added stand in the two stages, and what
both stages share keeps its name.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from compiler.building import WEIGHTS_NAME, writing
from compiler.components import changed_components
from compiler.errors import UserError
from compiler.foreign import is_file_name, origins
from compiler.graph import Graph
from compiler.pipeline import parse_pipeline
from compiler.records import read_record
from compiler.rewrite import DeclaredPass, Pass
from compiler.rewrites import RecordedRewrite, read_rewrites


@dataclass(frozen=True)
class Unit:
    """A rewrite as it can be applied alone: the nodes that go, and those that come."""

    title: str
    place: str
    removed: frozenset[str]
    """By the name of their first output, in the stage before."""
    added: frozenset[str]
    """The same, in the stage after."""


@dataclass(frozen=True)
class Built:
    """The stages of a build, the passes between them, and a place for models between stages."""

    stages: tuple[Path, ...]
    passes: tuple[Pass, ...]
    rewrites: tuple[tuple[RecordedRewrite, ...], ...]
    scratch: Path
    losses: tuple[str, ...]
    """What the build measured that each pass loses, `AbsRel 0.40 %`; empty for what is proven."""

    @classmethod
    def of(cls, folder: Path, scratch: Path) -> Built:
        """The build in a folder. Raises UserError if it is none, or its passes are gone."""
        record = read_record(folder)
        try:
            names = [stage["stage"] for stage in record["stages"]]
            passes = _passes_of(record)
            losses = tuple(_loss_text(stage.get("loss")) for stage in record["stages"][1:])
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{folder}: its build.json is not of this version") from error
        recorded = read_rewrites(folder)
        stages = [folder / f"{name}.onnx" for name in names]
        missing = [path for path in stages if not path.is_file()]
        if missing or len(passes) != len(stages) - 1:
            raise UserError(f"{missing[0] if missing else folder}: a stage is missing: build it "
                            "again")  # fmt: skip
        rewrites = tuple(tuple(recorded.get(name, ())) for name in names[1:])
        return cls(tuple(stages), tuple(passes), rewrites, scratch, losses)

    def units(self, number: int) -> list[Unit]:
        """The rewrites of pass `number`, from 1, that can be applied one after another.

        Empty where they can't be: the pass changes the signature or the opset on the way.
        """
        before, after = (onnx.load(path, load_external_data=False)
                         for path in self.stages[number - 1 : number + 1])  # fmt: skip
        recorded = self.rewrites[number - 1]
        if len(recorded) < 2 or not _is_mixable(before, after, self.passes[number - 1]):
            return []
        units = [_recorded_unit(rewrite, before, after) for rewrite in recorded]
        everything = _applied(before, after, units)
        if everything is not None and plain_nodes(everything) == plain_nodes(after):
            return units
        return self._compared_units(number)

    def _compared_units(self, number: int) -> list[Unit]:
        """Where the record names no nodes (they were changed in place), by comparing the stages."""
        before, after = (Graph.load(path) for path in self.stages[number - 1 : number + 1])
        found = changed_components(before, after, self.passes[number - 1].name)
        units = []
        for rewrite in found:
            old, new = ({n.output[0]: n.SerializeToString() for n in region.nodes}
                        for region in (rewrite.old, rewrite.new))  # fmt: skip
            units.append(Unit(
                rewrite.title, rewrite.place,
                frozenset(name for name in old if new.get(name) != old[name]),
                frozenset(name for name in new if old.get(name) != new[name]),
            ))  # fmt: skip
        return units

    def with_first(self, number: int, units: Sequence[Unit], count: int) -> Path | None:
        """The file of a model with the first `count` rewrites of a pass; None if there is none."""
        if count in (0, len(units)):
            return self.stages[number if count else number - 1]
        before, after = (onnx.load(path, load_external_data=False)
                         for path in self.stages[number - 1 : number + 1])  # fmt: skip
        model = _applied(before, after, units[:count])
        if model is None:
            return None
        weights = self.scratch / WEIGHTS_NAME
        if not weights.exists():
            with writing(weights):  # onnx reads no weights through links
                shutil.copyfile(self.stages[0].with_name(WEIGHTS_NAME), weights)
        path = self.scratch / f"{self.stages[number].stem}_first_{count}.onnx"
        onnx.save(model, path)
        return path


def _loss_text(loss: Mapping[str, Any] | None) -> str:
    return "" if loss is None else f"{loss['measure']} {loss['value']:.2%}"


def _passes_of(record: Mapping[str, Any]) -> list[Pass]:
    """The passes of a build; those in files from where they were, if they are what ran there."""
    ran = record.get("foreign_passes", {})
    items = [item.partition(":") for item in record["pipeline"].split(",")]
    located = [(ran[Path(name).stem]["path"] if is_file_name(name) else name) + colon + options
               for name, colon, options in items]  # fmt: skip
    passes = parse_pipeline(",".join(located))
    now = origins(passes).get("foreign_passes", {})
    for name, origin in ran.items():
        if now[name]["sha256"] != origin["sha256"]:
            raise UserError(f"{origin['path']} is no longer what the build ran: build it again")
    return passes


def _is_mixable(before: onnx.ModelProto, after: onnx.ModelProto, pass_: Pass) -> bool:
    """Whether nodes of the one stage mean the same in the other."""
    return (
        not isinstance(pass_, DeclaredPass)
        and list(before.opset_import) == list(after.opset_import)
        and [v.name for v in before.graph.input] == [v.name for v in after.graph.input]
        and [v.name for v in before.graph.output] == [v.name for v in after.graph.output]
    )


def _recorded_unit(
    rewrite: RecordedRewrite, before: onnx.ModelProto, after: onnx.ModelProto
) -> Unit:
    removed, added = (
        frozenset(node.output[0] for node in model.graph.node if node.name in names)
        for model, names in ((before, set(rewrite.removed)), (after, set(rewrite.added)))
    )
    return Unit(rewrite.title, rewrite.place, removed, added)


def _applied(
    before: onnx.ModelProto, after: onnx.ModelProto, units: Sequence[Unit]
) -> onnx.ModelProto | None:
    """The stage before with these rewrites; None if the nodes can't be put in order."""
    removed = {name for unit in units for name in unit.removed}
    added = {name for unit in units for name in unit.added}
    kept = [node for node in before.graph.node if node.output[0] not in removed]
    new = [node for node in after.graph.node if node.output[0] in added]
    model = onnx.ModelProto()
    model.CopyFrom(after)
    weights = {t.name: t for t in [*after.graph.initializer, *before.graph.initializer]}
    theirs = {name for node in new for name in _reads(node)}
    weights |= {t.name: t for t in after.graph.initializer if t.name in theirs}
    made = {name for node in [*kept, *new] for name in node.output}
    nodes = _ordered([*kept, *new], {v.name for v in after.graph.input} | (set(weights) - made))
    if nodes is None:
        return None
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    read = {name for node in nodes for name in _reads(node)}
    read |= {value.name for value in [*after.graph.output, *after.graph.input]}
    model.graph.initializer.extend(t for n, t in weights.items() if n in read and n not in made)
    return model


def _ordered(nodes: Sequence[onnx.NodeProto], known: set[str]) -> list[onnx.NodeProto] | None:
    """The nodes in topological order; None if something that they read is never computed."""
    waiting, ordered, known = list(nodes), [], known | {""}
    made = {name for node in nodes for name in node.output}
    while waiting:
        later = []
        for node in waiting:
            if known.issuperset({*node.input, *made.intersection(_reads(node))}):
                ordered.append(node)
                known.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            return None
        waiting = later
    return ordered


def _reads(node: onnx.NodeProto) -> list[str]:
    """The tensors that a node reads; those that the bodies of If, Loop and Scan read as well."""
    bodies = [body for a in node.attribute for body in ([a.g] if a.HasField("g") else a.graphs)]
    inner = [name for body in bodies for one in body.node for name in _reads(one)]
    return [*node.input, *inner]


def plain_nodes(model: onnx.ModelProto) -> set[bytes]:
    """The nodes up to their order and provenance."""
    found = set()
    for node in model.graph.node:
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        del twin.metadata_props[:]
        found.add(twin.SerializeToString(deterministic=True))
    return found
