"""`explain MODEL NODE`: the history of a node, back to the source model and its PyTorch module."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.markup import escape

from compiler.errors import UserError
from compiler.exported import CLASSES_KEY, SCOPES_KEY, listed
from compiler.graph import PASS_KEY, REWRITE_KEY, SOURCES_KEY, read_model
from compiler.records import model_in, read_record
from compiler.rewrite import MORE, ORIGIN_KEY, PASSES_KEY
from compiler.rewrites import RecordedRewrite, read_rewrites

# Where PyTorch's exporters write the path of the module that a node comes from.
# So many names are offered for one that no node has.
SUGGESTED = 3
# Of the nodes that a rewrite took out, so many are printed.
LISTED = 8


@dataclass(frozen=True)
class Origin:
    """A node of the source model, and the module of PyTorch that it comes from."""

    node: str
    op: str
    module: str = ""
    module_class: str = ""


@dataclass(frozen=True)
class Step:
    """The rewrite that made some nodes, out of which others."""

    stage: str
    rewrite: str
    made: tuple[str, ...]
    sources: tuple[str, ...]
    weights: dict[str, str] = field(default_factory=dict)
    """How the weights that the made nodes read were made."""


@dataclass(frozen=True)
class History:
    """A node from the stage that was asked about back to the source."""

    stage: str
    node: str
    op: str
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    origins: tuple[Origin, ...]

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def explain(model: Path, name: str) -> History:
    """The history of a node, given by its name or by that of a tensor that it computes.

    Args:
        model: a build's folder, its `model.onnx`, a stage, or any other .onnx file.
        name: of the node or tensor; a weight has a history, too.

    Raises:
        UserError: if there is no such node; names the nearest ones.
    """
    path = model_in(model)
    graph = read_model(path).graph
    nodes = {node.name: node for node in graph.node}
    stages = _stages_until(path)
    stage = stages[-1] if stages else path.stem
    recorded = read_rewrites(path.parent) if stages else {}
    if name in {tensor.name for tensor in graph.initializer}:
        return History(stage, name, "weight", (name,), tuple(_weight_steps(name, recorded)), ())
    node = _found(graph, name, path)
    if not stages:
        return _by_metadata(stage, node)
    current, steps = [node], list[Step]()
    for now, before in zip(stages[:0:-1], stages[-2::-1], strict=True):
        older = {n.name: n for n in read_model(path.with_name(f"{before}.onnx")).graph.node}
        made = [n for n in current if _is_made(n, older)]
        done = _by_title(recorded.get(now, []), nodes, older)
        steps += _steps(now, made, older, done)
        current = _unique([older[source] for n in current for source in _sources(n, older, done)])
        nodes = older
    origins = tuple(_origin(nodes[n.name]) for n in current)
    return History(stage, node.name, node.op_type, tuple(node.output), tuple(steps), origins)


def _stages_until(path: Path) -> list[str]:
    """The stages of the build that a model is in, up to it; none if it is in no build."""
    if not (path.parent / "build.json").exists():
        return []
    stages = [stage["stage"] for stage in read_record(path.parent)["stages"]]
    if path.name == "model.onnx":
        return stages
    return stages[: stages.index(path.stem) + 1] if path.stem in stages else []


def _found(graph: onnx.GraphProto, name: str, path: Path) -> onnx.NodeProto:
    """The node of a name, or that computes the tensor of it."""
    for node in graph.node:
        if name in (node.name, *node.output):
            found: onnx.NodeProto = node
            return found
    known = {n for node in graph.node for n in (node.name, *node.output) if n}
    known |= {tensor.name for tensor in graph.initializer}
    near = difflib.get_close_matches(name, sorted(known), SUGGESTED)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {len(known)} names"
    raise UserError(f"{path}: no node, tensor or weight {name!r}; {hint}")


def _metadata(node: onnx.NodeProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in node.metadata_props}


def _is_made(node: onnx.NodeProto, older: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether the pass between two stages made a node, or changed it in place."""
    was = older.get(node.name)
    keys = (REWRITE_KEY, PASS_KEY, SOURCES_KEY)
    return was is None or any(_metadata(node).get(k) != _metadata(was).get(k) for k in keys)


def _by_title(
    recorded: Sequence[RecordedRewrite], nodes: Mapping[str, onnx.NodeProto],
    older: Mapping[str, onnx.NodeProto],
) -> dict[str, RecordedRewrite]:  # fmt: skip
    """The rewrites that led to a stage; what they changed in place was removed and added."""
    changed: dict[str, list[str]] = {}
    for name, node in nodes.items():
        if name in older and _is_made(node, older):
            changed.setdefault(_metadata(node).get(REWRITE_KEY, ""), []).append(name)
    titles = {one.title.partition(" at ")[0]: one for one in recorded}
    return {title: replace(one, removed=(*one.removed, *changed.get(title, ())))
            for title, one in titles.items()}  # fmt: skip


def _sources(
    node: onnx.NodeProto, older: Mapping[str, onnx.NodeProto], done: Mapping[str, RecordedRewrite]
) -> list[str]:
    """The nodes of the stage before that a node comes from: itself, if it was not made.

    Of many a node names the first few; the record of its rewrite (by title) has them all.
    """
    if not _is_made(node, older):
        return [node.name]
    said = _metadata(node)
    names = said.get(SOURCES_KEY, "").split()
    rewrite = done.get(said.get(REWRITE_KEY, ""))
    if MORE in names and rewrite is not None:
        names = [*dict.fromkeys([*names, *rewrite.removed])]
    return [name for name in names if name in older]


def _steps(
    stage: str, made: Sequence[onnx.NodeProto], older: Mapping[str, onnx.NodeProto],
    done: Mapping[str, RecordedRewrite],
) -> Iterator[Step]:  # fmt: skip
    """One step for each rewrite that made some of the nodes."""
    by_rewrite: dict[str, list[onnx.NodeProto]] = {}
    for node in made:
        by_rewrite.setdefault(_metadata(node).get(REWRITE_KEY, stage), []).append(node)
    for name, nodes in by_rewrite.items():
        rewrite = done.get(name)
        held = {} if rewrite is None else rewrite.weights
        read = [i for node in nodes for i in node.input]
        yield Step(
            stage, name if rewrite is None else rewrite.title, tuple(n.name for n in nodes),
            tuple(dict.fromkeys(source for n in nodes for source in _sources(n, older, done))),
            {i: held[i] for i in read if i in held},
        )  # fmt: skip


def _weight_steps(name: str, recorded: Mapping[str, Sequence[RecordedRewrite]]) -> Iterator[Step]:
    for stage, rewrites in recorded.items():
        for rewrite in rewrites:
            if name in rewrite.weights:
                yield Step(stage, rewrite.title, (name,), (), {name: rewrite.weights[name]})


def _by_metadata(stage: str, node: onnx.NodeProto) -> History:
    """What a node says itself, where the build that made it is not at hand."""
    said = _metadata(node)
    steps = []
    for rewrite in reversed(said.get(PASSES_KEY, said.get(REWRITE_KEY, "")).split()):
        own = rewrite == said.get(REWRITE_KEY)
        sources = tuple(said.get(SOURCES_KEY, "").split()) if own else ()
        steps.append(Step("", rewrite, (node.name,) if own else (), sources))
    known = said.get(ORIGIN_KEY, "").split()
    origins = tuple(Origin(name, "") for name in known) if steps else (_origin(node),)
    return History(stage, node.name, node.op_type, tuple(node.output), tuple(steps), origins)


def _origin(node: onnx.NodeProto) -> Origin:
    said = _metadata(node)
    scopes, classes = (listed(said.get(key, "")) for key in (SCOPES_KEY, CLASSES_KEY))
    if len(scopes) > 1:  # the last is the operator
        return Origin(node.name, node.op_type, scopes[-2], classes[-2] if len(classes) > 1 else "")
    # torch.onnx's older exporter has it in the node's name: /encoder/layer.0/attention/MatMul
    *path, _ = node.name.split("/")
    return Origin(node.name, node.op_type, ".".join(path[1:]) if path and not path[0] else "")


def _unique(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    return list({node.name: node for node in nodes}.values())


# -- printing --------------------------------------------------------------------------------------


def print_history(history: History) -> None:
    """A block a rewrite, the last first, then the nodes of the source."""
    # A pipe has no width of its own: 100 columns hold every line.
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    outputs = ", ".join(repr(name) for name in history.outputs)
    out.print(f"[bold]{escape(history.node)}[/]  {history.op} → {escape(outputs)}, in "
              f"{history.stage}", soft_wrap=True)  # fmt: skip
    for step in history.steps:
        out.print(f"\n[bold cyan]{escape(step.rewrite)}[/]  {step.stage}", soft_wrap=True)
        _print_names(out, "made", step.made)
        _print_names(out, "of", step.sources or ("nothing: the pass adds it",) * bool(step.made))
        for name, how in step.weights.items():
            out.print(escape(f"  {name} is {how}"), soft_wrap=True)
    if history.origins:
        out.print("\n[bold]source model[/]")
    for origin in history.origins:
        module = "" if not origin.module else f"  module {origin.module}"
        kind = f" ({origin.module_class})" if origin.module_class else ""
        out.print(escape(f"  {origin.node}  {origin.op}{module}{kind}"), soft_wrap=True)
    if not history.steps:
        out.print("no pass has touched it")


def _print_names(out: Console, what: str, names: Sequence[str]) -> None:
    known = [name for name in names if name != MORE]  # which stands for those left out
    count = f"{len(known)}{' or more' if len(known) < len(names) else ''} in all"
    more = f", … {count}" if len(names) > LISTED else ""
    if names:
        out.print(escape(f"  {what} {', '.join(known[:LISTED])}{more}"), soft_wrap=True)
