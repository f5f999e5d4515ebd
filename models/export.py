"""From a torch module to an ONNX file whose bytes depend on the model alone."""

import contextlib
import inspect
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from torch import nn

from models.exporters import Exporter
from models.quiet import quiet

# Where a node came from in module terms. Everything else that the exporters note (stack traces
# with this machine's paths, graph signatures) is dropped.
KEPT_METADATA = frozenset({"pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"})


def export(
    module: nn.Module, path: Path, height: int, width: int, exporter: Exporter, opset: int
) -> None:
    """Write `module` (1×3×H×W `image` -> 1×H×W `depth`) to `path`, weights to `path` + `.data`."""
    image = torch.zeros(1, 3, height, width)
    export_call(Call(module, ["image"], ["depth"], (image,)), path, exporter, opset)


@dataclass(frozen=True)
class Call:
    """A call of a module, to be exported: by position, with names for the graph.

    Without names of the outputs the exporter makes some up.
    """

    module: nn.Module
    input_names: list[str]
    output_names: list[str] | None
    arguments: tuple[torch.Tensor, ...]
    dynamic: Sequence[Mapping[int, str]] = ()
    """Names of the axes of each argument that may have other lengths; none if it is empty."""


def export_call(call: Call, path: Path, exporter: Exporter, opset: int) -> None:
    """Write the graph of a call to `path`, its weights to `path` + `.data`.

    Weights always lie beside the graph, so that models beyond protobuf's 2 GB need no second way.
    """
    with quiet(), torch.no_grad():
        if exporter == "dynamo":
            _save(_export_dynamo(call, opset), path)
        else:
            # The exporter scatters models beyond 2 GB over hundreds of files: gathered again below.
            with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                _export_torchscript(call, Path(scratch) / path.name, opset)
                _save(onnx_ir.load(Path(scratch) / path.name), path)


def _export_dynamo(call: Call, opset: int) -> onnx_ir.Model:
    program = torch.onnx.export(
        call.module,
        call.arguments,
        dynamo=True,
        opset_version=opset,
        input_names=call.input_names,
        output_names=call.output_names,
        dynamic_shapes=_dynamic_shapes(call),
        verbose=False,
    )
    assert program is not None, "the dynamo exporter returns a program when it is given no path"
    return program.model


def _dynamic_shapes(call: Call) -> Any:
    """What `forward` takes, with a mapping for each tensor; `*tensors` are one tuple of them."""
    if not call.dynamic:
        return None
    shapes = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in call.dynamic)
    parameters = inspect.signature(call.module.forward).parameters.values()
    gathered = [k for k, p in enumerate(parameters) if p.kind == p.VAR_POSITIONAL]
    return (*shapes[: gathered[0]], shapes[gathered[0] :]) if gathered else shapes


def _export_torchscript(call: Call, path: Path, opset: int) -> None:
    axes = {name: dict(axes) for name, axes in zip(call.input_names, call.dynamic, strict=False)}
    # It prints the whole graph if it fails.
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(
            call.module,
            call.arguments,
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=call.input_names,
            output_names=call.output_names,
            dynamic_axes=axes or None,
        )


def _save(model: onnx_ir.Model, path: Path) -> None:
    graph = model.graph
    graph.metadata_props.clear()
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph:
        node.doc_string = None
        for key in node.metadata_props.keys() - KEPT_METADATA:
            del node.metadata_props[key]
        for value in node.outputs:
            value.metadata_props.clear()
    onnx_ir.save(model, path, external_data=f"{path.name}.data")
