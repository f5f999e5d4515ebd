"""Opens a stage of a build in the viewers that people use: Netron and Google's Model Explorer."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from compiler.errors import UserError
from compiler.records import read_record, stages_around
from compiler.report.stages import StageGraph, StageNode, read_stages, scope_parts

Viewer = Literal["netron", "model-explorer"]

# What a viewer is imported as, and what pip installs it as.
_MODULES = {"netron": "netron", "model-explorer": "model_explorer"}
_PACKAGES = {"netron": "netron", "model-explorer": "ai-edge-model-explorer"}
_COLOURS = ["#2f6fb7", "#c2571a", "#20794b", "#8b4fb3", "#b8324f", "#00757f", "#7d6200", "#4f5a6b"]
_SOURCE_COLOUR = "#dfe4ec"


def view(folder: Path, stage: str | None = None, viewer: Viewer | None = None) -> None:
    """Opens a stage in a viewer, in the browser, until it is interrupted.

    Args:
        folder: of a build.
        stage: `04_split_heads` or `split_heads`; the last one if None. Model Explorer shows the
            stage before it as well.
        viewer: the first one that is installed if None.

    Raises:
        UserError: no such build or stage, or the viewer is not installed.
    """
    stages = stages_to_view(folder, stage)
    if installed_viewer(viewer) == "netron":
        _open_netron(folder / f"{stages[-1]}.onnx")
    else:
        _open_model_explorer(folder, stages)


def installed_viewer(wanted: Viewer | None) -> Viewer:
    """The viewer to use. Raises UserError, with what to install, if there is none."""
    candidates: Sequence[Viewer] = [wanted] if wanted else ["netron", "model-explorer"]
    for viewer in candidates:
        if find_spec(_MODULES[viewer]) is not None:
            return viewer
    ways = " or ".join(f"pip install {_PACKAGES[viewer]}" for viewer in candidates)
    missing = f"{wanted} is not" if wanted else f"neither {' nor '.join(candidates)} is"
    raise UserError(f"{missing} installed: {ways}")


def stages_to_view(folder: Path, stage: str | None) -> list[str]:
    """The names of a stage and of the one before it, if there is one. Raises UserError."""
    names = [entry["stage"] for entry in read_record(folder)["stages"]]
    if stage in (names[0], names[0].partition("_")[2]):
        return names[:1]
    if stage is None:
        return names[-2:]
    return [path.stem for path in stages_around(folder, stage)]


def _open_netron(path: Path) -> None:
    import netron

    netron.start(str(path))
    netron.wait()


def _open_model_explorer(folder: Path, stages: Sequence[str]) -> None:
    import model_explorer

    with tempfile.TemporaryDirectory() as temporary:
        pairs = write_model_explorer(folder, stages, Path(temporary))
        model_explorer.visualize(
            model_paths=[str(graph) for graph, _ in pairs],
            node_data=[
                {"name": data.name, "node_data_path": str(data), "model_name": graph.name}
                for graph, data in pairs
            ],
        )


def write_model_explorer(
    folder: Path, stages: Sequence[str], target: Path
) -> list[tuple[Path, Path]]:
    """Writes (graph, node data) of each stage in Model Explorer's JSON, the last stage first.

    It does not read ONNX by itself.
    """
    graphs = read_stages(folder, [entry["stage"] for entry in read_record(folder)["stages"]])
    passes = list(dict.fromkeys(n.made_by for g in graphs for n in g.nodes if n.made_by))
    pairs = []
    for graph in reversed([graph for graph in graphs if graph.name in stages]):
        paths = target / f"{graph.name}.json", target / f"{graph.name}.passes.json"
        paths[0].write_text(json.dumps(model_explorer_graph(graph)), "utf-8")
        paths[1].write_text(json.dumps(node_data(graph, passes)), "utf-8")
        pairs.append(paths)
    return pairs


def model_explorer_graph(graph: StageGraph) -> list[dict[str, Any]]:
    """A stage as Model Explorer's one graph: modules as layers, provenance as attributes."""
    ends = [
        {"id": f"input {name}", "label": name, "namespace": "", "attrs": [],
         "outputsMetadata": [_output("0", name, graph)]}
        for name in graph.inputs
    ]  # fmt: skip
    nodes = [_explored(node, graph) for node in graph.nodes]
    results = [
        {"id": f"output {name}", "label": name, "namespace": "",
         "incomingEdges": [_edge(name, 0, graph)]}
        for name in graph.outputs if name in graph.producers
    ]  # fmt: skip
    return [{"id": graph.name, "nodes": [*ends, *nodes, *results]}]


def _explored(node: StageNode, graph: StageGraph) -> dict[str, Any]:
    known = graph.producers.keys() | set(graph.inputs)
    attributes = {
        "made by": node.made_by or "source", "rewrite": node.rewrite,
        "made from": " ".join(node.sources), "attributes": ", ".join(node.attributes),
        "constants": ", ".join(f"{name} {graph.constants[name] or graph.types.get(name, '')}"
                               for name in node.inputs if name in graph.constants),
    }  # fmt: skip
    return {
        "id": node.name, "label": node.op, "namespace": "/".join(scope_parts(node.scope)),
        "attrs": [{"key": key, "value": value} for key, value in attributes.items() if value],
        "incomingEdges": [_edge(name, slot, graph) for slot, name in enumerate(node.inputs)
                          if name in known and name not in graph.constants],
        "outputsMetadata": [_output(str(slot), name, graph)
                            for slot, name in enumerate(node.outputs)],
    }  # fmt: skip


def _edge(name: str, slot: int, graph: StageGraph) -> dict[str, str]:
    producer = graph.producers.get(name)
    source = f"input {name}" if producer is None else producer.name
    output = 0 if producer is None else producer.outputs.index(name)
    return {
        "sourceNodeId": source, "sourceNodeOutputId": str(output), "targetNodeInputId": str(slot)
    }  # fmt: skip


def _output(slot: str, name: str, graph: StageGraph) -> dict[str, Any]:
    shape = graph.types.get(name, "?")
    return {"id": slot, "attrs": [{"key": "tensor_name", "value": name},
                                  {"key": "tensor_shape", "value": shape}]}  # fmt: skip


def node_data(graph: StageGraph, passes: Sequence[str]) -> dict[str, Any]:
    """Model Explorer's node data: the pass that made a node as its value, and as its colour."""
    results = {
        node.name: {"value": node.made_by or "source", **_colours(node.made_by, passes)}
        for node in graph.nodes
    }
    # There is nothing to add up, and the shares of a layer's passes are worth a line each.
    settings = {"hideInAggregatedStatsTable": True, "hideInChildrenStatsTable": True,
                "showExpandedSummaryOnGroupNode": True}  # fmt: skip
    return {graph.name: {"results": results, **settings}}


def _colours(made_by: str, passes: Sequence[str]) -> dict[str, str]:
    if not made_by:
        return {"bgColor": _SOURCE_COLOUR, "textColor": "#1c2330"}
    return {"bgColor": _COLOURS[passes.index(made_by) % len(_COLOURS)], "textColor": "#ffffff"}
