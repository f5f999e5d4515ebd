"""What a target will refuse in a model, or leave to the CPU, told before anything is sent there.

    check(Path("model.onnx"), "aihub")  →  findings: rule, node or file, what is wrong, what to do

An error is refused; a warning runs, but not on the NPU, or slower. Weights are not loaded. What the
NPU takes is measured (`compiler.targets.operators`); what AI Hub takes is what it has refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from compiler.errors import UserError
from compiler.graph import Graph, Node, Tensor, read_model, static_shape
from compiler.targets.operators import fault_of, known_tensors
from compiler.weights import external_source, onnx_type_of

Target = Literal["htp", "aihub"]
# A protobuf message is smaller than 2 GB.
LARGEST_FILE_NBYTES = (1 << 31) - 1
# The newest IR version and opset. htp: what onnxruntime 1.31 loads, on which the provider runs.
# aihub: its checker has refused IR version 12.
NEWEST = {"htp": (13, 26), "aihub": (10, 20)}
_LOWER = "lower it: --passes for_target:aihub"
_PACKAGE = "upload what compiler.targets.package writes; the hub commands do"


@dataclass(frozen=True)
class Finding:
    """One thing that a target refuses (`is_error`) or takes badly.

    `file` is set for what concerns the file; `op`, `node` and `tensor` (the first output) for what
    concerns a node; `tensor` alone for an input, an output or a weight.
    """

    rule: str
    problem: str
    cure: str
    is_error: bool
    file: str = ""
    op: str = ""
    node: str = ""
    tensor: str = ""

    @property
    def place(self) -> str:
        """The node, tensor or file, in words."""
        if self.op:
            return f"{self.op} {self.node!r} → {self.tensor!r}"
        return repr(self.tensor) if self.tensor else self.file

    def __str__(self) -> str:
        kind = "error" if self.is_error else "warning"
        return f"{kind} [{self.rule}] {self.place}: {self.problem}; {self.cure}"

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def check(model: Path, target: Target) -> list[Finding]:
    """What a target refuses in a model or leaves to the CPU; errors first.

    Raises UserError for what is no ONNX model at all.
    """
    return sorted(_findings(model, target), key=lambda finding: not finding.is_error)


def _findings(model: Path, target: Target) -> Iterator[Finding]:
    nbytes = model.stat().st_size if model.is_file() else 0
    if nbytes > LARGEST_FILE_NBYTES:
        yield Finding("file size", f"{nbytes / 1e9:.1f} GB, and protobuf ends at 2 GB",
                      "save it with external data", True, file=model.name)  # fmt: skip
        return
    try:
        proto = read_model(model)
    except UserError:
        missing = list(_missing_weights(model))
        if not missing:
            raise
        yield from missing
        return
    yield from _versions(proto, model, target)
    is_build = (model.parent / "build.json").exists()  # which the hub commands package
    if target == "aihub" and not is_build:
        yield from _upload_layout(proto, model)
    yield from _in_graph(Graph(proto, model.parent), target)


def _versions(proto: onnx.ModelProto, model: Path, target: Target) -> Iterator[Finding]:
    newest_ir, newest_opset = NEWEST[target]
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    for rule, version, newest in (
        ("IR version", proto.ir_version, newest_ir),
        ("opset", opset, newest_opset),
    ):
        if version > newest:
            cure = _LOWER if target == "aihub" else f"export with {rule} {newest} or older"
            problem = f"{rule} {version}; {target} takes {newest} or older"
            yield Finding(rule, problem, cure, True, file=model.name)


# -- files -----------------------------------------------------------------------------------------


def _missing_weights(model: Path) -> Iterator[Finding]:
    """Weights whose bytes are not where the model says, for a file that is ONNX at least."""
    try:
        proto = onnx.load(model, load_external_data=False)
    except (DecodeError, OSError):
        return
    for tensor in filter(_is_external, proto.graph.initializer):
        try:
            external_source(tensor, model.parent)
        except UserError as error:
            problem, _, cure = str(error).partition(": ")[2].partition("; ")
            cure = cure or "put the file back, or export again"
            yield Finding("weights", problem, cure, True, tensor=tensor.name)


def _is_external(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _upload_layout(proto: onnx.ModelProto, model: Path) -> Iterator[Finding]:
    """What qai-hub refuses in a model's folder; without external data it sees no folder."""
    external = filter(_is_external, proto.graph.initializer)
    files = {external_source(tensor, model.parent)[0] for tensor in external}
    if not files:
        return
    names = sorted(path.name for path in files)
    others = sorted(path.name for path in model.parent.glob("*.onnx") if path.name != model.name)
    faults = {
        f"weights in {len(names)} files ({', '.join(names)})": len(names) > 1,
        f"weights in {names[0]}, which is neither .data nor .bin": len(names) == 1
        and Path(names[0]).suffix not in (".data", ".bin"),
        "weights in a folder below": any(path.parent != model.parent for path in files),
        f"other models in its folder ({', '.join(others)})": bool(others),
    }
    for problem, is_so in faults.items():
        if is_so:
            yield Finding("external data", problem, _PACKAGE, False, file=model.name)


# -- the graph -------------------------------------------------------------------------------------


def _in_graph(graph: Graph, target: Target) -> Iterator[Finding]:
    dynamic = [tensor for tensor in graph.inputs if static_shape(tensor) is None]
    for tensor in dynamic:
        shape = "×".join(map(str, tensor.shape)) if tensor.shape is not None else "?"
        yield Finding("dynamic shape", f"input of shape {shape}; the NPU needs fixed sizes",
                      "export with fixed sizes", True, tensor=tensor.name)  # fmt: skip
    if target == "aihub":
        yield from _wide_signature(graph)
    known = known_tensors(graph)
    for node in graph.nodes:
        if not all(id(tensor) in known for tensor in node.outputs):
            yield from _in_node(graph, node, known, target, has_dynamic_input=bool(dynamic))


def _in_node(
    graph: Graph, node: Node, known: set[int], target: Target, *, has_dynamic_input: bool
) -> Iterator[Finding]:
    place = {"op": node.op, "node": node.name, "tensor": node.outputs[0].name}
    if node.domain not in (None, "", "ai.onnx"):
        problem = f"an operator of the domain {node.domain!r}, which is not looked into"
        yield Finding("domain", problem, "export without it", False, **place)
        return
    if not has_dynamic_input and _makes_dynamic(node):
        problem = "the size of its result depends on values: the CPU takes it and what follows"
        yield Finding("dynamic shape", problem, "export with fixed sizes", False, **place)
        return
    fault = fault_of(graph, node, known)
    if fault is not None:
        yield Finding(fault.rule, fault.problem, fault.cure, fault.stops, **place)
    elif target == "htp" and _is_quantized_edge(graph, node):
        yield Finding("quantized", "quantizing inputs and outputs is left to the CPU",
                      "let the input or output be quantized itself", False, **place)  # fmt: skip


def _makes_dynamic(node: Node) -> bool:
    """Whether a node turns fixed sizes into unknown ones."""
    is_fixed = all(static_shape(tensor) is not None for tensor in node.inputs if tensor.name)
    return is_fixed and any(static_shape(tensor) is None for tensor in node.outputs if tensor.name)


def _is_quantized_edge(graph: Graph, node: Node) -> bool:
    at_input = node.op == "QuantizeLinear" and any(node.inputs[0] is t for t in graph.inputs)
    return at_input or (node.op == "DequantizeLinear" and graph.is_output(node.outputs[0]))


def _wide_signature(graph: Graph) -> Iterator[Finding]:
    """AI Hub: 'Must use --truncate_64bit_io when input tensors have type int64.'"""
    for kind, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        for tensor in tensors:
            if _type(tensor) in (TensorProto.INT64, TensorProto.UINT64, TensorProto.DOUBLE):
                is_int = _type(tensor) == TensorProto.INT64
                lower = "--passes for_target:aihub" if is_int else "export with 32 bits"
                cure = f"{lower}, or compile with --truncate_64bit_io"
                name = TensorProto.DataType.Name(_type(tensor)).lower()
                yield Finding("64-bit " + kind, f"{kind} of type {name}", cure, kind == "input",
                              tensor=tensor.name)  # fmt: skip


def _type(tensor: Tensor) -> int:
    return 0 if tensor.dtype is None else onnx_type_of(tensor.dtype)
