"""The graph that passes look at: onnx-graphsurgeon with mapped weights, shapes and provenance."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from compiler.errors import UserError
from compiler.weights import (
    EMBED_BELOW_NBYTES,
    Array,
    MappedWeight,
    NewWeight,
    Weight,
    WeightsFile,
    external_source,
    fits_its_shape,
    onnx_type_of,
)

Node = Any  # gs.Node
Tensor = Any  # gs.Variable or gs.Constant
Shape = tuple[int, ...]

G_LOGGER.severity = G_LOGGER.ERROR

# metadata_props of every node that a pass made.
PASS_KEY = "compiler.pass"
REWRITE_KEY = "compiler.rewrite"
SOURCES_KEY = "compiler.sources"

# From this version of the file format on an initializer that is an input as well is its default:
# callers may feed another value. Before, all had to be inputs; runtimes take them for constants.
IR_OF_DEFAULTS = 4


class Graph:
    """An ONNX model, editable; `nodes` is in topological order whenever no pass is at work.

    `ir` is the graphsurgeon graph. graphsurgeon drops what it does not know, so the model's and
    the nodes' metadata are kept here and written back.

    An initializer that callers may override is no constant: `optional_inputs` holds the variable
    that nodes read, `defaults` its value by name. A file of before ONNX had these (IR version 3) is
    written as version 4, in which initializers need not be inputs.
    """

    def __init__(
        self, model: onnx.ModelProto, folder: Path, weights: Mapping[str, Weight] | None = None
    ) -> None:
        """Takes a parsed model over.

        Args:
            model: edited on the way; don't use it afterwards.
            folder: where external data is.
            weights: values by name that come from elsewhere; the model holds them as stubs.
        """
        self.folder = folder
        given = weights or {}
        _settle_tensors(model.graph, folder)
        _inline_small_tensors(model, folder, given)
        embedded = _set_aside_large_tensors(model)
        defaults = _take_defaults(model)
        try:
            self.ir = gs.import_onnx(infer_shapes(model))
        except gs.util.exception.OnnxGraphSurgeonException as error:
            raise UserError(f"the model can't be read: {_first_line(error)}") from error
        self.optional_inputs: list[Tensor] = [t for t in self.inputs if t.name in defaults]
        self.ir.inputs = [tensor for tensor in self.inputs if tensor.name not in defaults]
        self.defaults: dict[str, Tensor] = {
            name: gs.Constant(
                name, given.get(name) or MappedWeight(embedded.get(name, tensor), folder)
            )
            for name, tensor in defaults.items()
        }
        for tensor in [*self.ir.inputs, *self.ir.outputs]:
            if tensor.dtype is None and not isinstance(tensor, gs.Constant):
                raise UserError(f"the model does not say of what type {tensor.name!r} is")
        self.metadata = {entry.key: entry.value for entry in model.metadata_props}
        _keep_what_graphsurgeon_drops(self.ir, model.graph)
        # What only the bodies of If, Loop and Scan read is not among graphsurgeon's tensors.
        for tensor in [*self.ir.tensors().values(), *self.constants()]:
            if isinstance(tensor, gs.Constant) and type(tensor._values) is LazyValues:
                proto = embedded.get(tensor.name, tensor._values.tensor)
                tensor._values = given.get(tensor.name) or MappedWeight(proto, folder)
            elif not isinstance(tensor, gs.Constant) and tensor.type == "optional_type":
                tensor.dtype, tensor.shape = None, None  # graphsurgeon can't write what it read
        self._names = {*self.ir.tensors(), *defaults} | {node.name for node in self.nodes}
        for body in (body for node in self.nodes for body in node.subgraphs(recursive=True)):
            self._names |= {t.name for node in body.nodes for t in [*node.inputs, *node.outputs]}
        _name_unnamed_nodes(self)

    @classmethod
    def load(cls, path: Path) -> Graph:
        """Reads an .onnx file, leaving its weights on disk. Raises UserError on a bad file."""
        return cls(read_model(path), path.parent)

    @property
    def nodes(self) -> list[Node]:
        """The nodes, in topological order."""
        return cast(list[Node], self.ir.nodes)

    @property
    def inputs(self) -> list[Tensor]:
        """The inputs that a caller has to feed; `optional_inputs` are those with a default."""
        return cast(list[Tensor], self.ir.inputs)

    @property
    def outputs(self) -> list[Tensor]:
        """The graph's outputs."""
        return cast(list[Tensor], self.ir.outputs)

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return int(self.ir.opset)

    @property
    def ir_version(self) -> int:
        """The version of ONNX's file format."""
        return int(self.ir.ir_version)

    def set_versions(self, opset: int, ir_version: int) -> None:
        """Declares other versions; that every node means the same in them is for others to show."""
        for entry in self.ir.import_domains:
            if entry.domain in ("", "ai.onnx"):
                entry.version = opset
        self.ir.opset, self.ir.ir_version = opset, ir_version

    @property
    def opsets(self) -> dict[str, int]:
        """Domain to version, for every operator set that the model imports."""
        return {entry.domain: entry.version for entry in self.ir.import_domains}

    # -- looking ---------------------------------------------------------------------------------

    def weight(self, tensor: Tensor) -> Weight | None:
        """The weight behind a tensor: an initializer or the value of a Constant node, or None."""
        if isinstance(tensor, gs.Constant):
            return cast(Weight, tensor._values)
        producer = producer_of(tensor)
        if producer is not None and producer.op == "Constant":
            return _constant_node_weight(producer)
        return None

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor's values are known now."""
        return self.weight(tensor) is not None

    def values(self, tensor: Tensor) -> Array | None:
        """A constant's values in their storage type (a view of the file if mapped), or None."""
        weight = self.weight(tensor)
        return None if weight is None else weight.load()

    def exact(self, tensor: Tensor) -> Array | None:
        """A constant's values for arithmetic: floats in float64, before rounding; or None."""
        weight = self.weight(tensor)
        return None if weight is None else weight.exact()

    def ints(self, tensor: Tensor) -> list[int] | None:
        """A small integer constant (shape, axes, starts …) as Python ints, or None."""
        values = self.values(tensor)
        return None if values is None else [int(value) for value in values.reshape(-1)]

    def is_output(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of the graph's outputs."""
        return any(tensor is output for output in self.outputs)

    # -- making ----------------------------------------------------------------------------------

    def bodies(self) -> Iterator[tuple[str, list[Node]]]:
        """What is outside `nodes`: bodies of If, Loop and Scan, and local functions, by name."""
        for node in self.nodes:
            for body in node.subgraphs(recursive=True):
                yield f"the body of {node.op} {node.name!r}", body.nodes
        for function in self.ir.functions:
            yield f"the local function {function.name!r}", function.nodes

    def fresh_name(self, wish: str) -> str:
        """`wish`, or `wish_1`, `wish_2` … : a name that no node or tensor has."""
        name, count = wish, 0
        while name in self._names:
            count += 1
            name = f"{wish}_{count}"
        self._names.add(name)
        return name

    # -- writing ---------------------------------------------------------------------------------

    def save(self, path: Path, weights: WeightsFile) -> None:
        """Writes the graph; large tensors that are not in `weights` yet are appended to it."""
        for constant in self.initializers():
            values = cast(Weight, constant._values)
            if values.nbytes < EMBED_BELOW_NBYTES:
                constant._values = MappedWeight(values.tensor, path.parent)
            elif not weights.holds(values):
                constant._values = _moved(constant.name, values, weights)
        path.write_bytes(self.to_model().SerializeToString(deterministic=True))

    def constants(self) -> Iterator[Tensor]:
        """Every initializer that a node uses or that is an output, once, in order of first use."""
        seen: set[int] = set()
        for tensor in chain(chain.from_iterable(map(reads_of, self.nodes)), self.outputs):
            if isinstance(tensor, gs.Constant) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor

    def initializers(self) -> Iterator[Tensor]:
        """What the file holds values of: the constants, and the defaults of optional inputs."""
        return chain(self.constants(), self.defaults.values())

    def copy(self) -> Graph:
        """An independent graph that shares the weights' bytes."""
        large = {
            tensor.name: cast(Weight, tensor._values)
            for tensor in self.initializers()
            if tensor._values.nbytes >= EMBED_BELOW_NBYTES
        }
        return Graph(self.to_model(stubs=large), self.folder, large)

    def functions(self) -> list[onnx.FunctionProto]:
        """The model's local functions."""
        return [OnnxExporter.export_function(function) for function in self.ir.functions]

    def to_model(self, stubs: Collection[str] = ()) -> onnx.ModelProto:
        """The graph as a ModelProto; weights that are on disk stay there as references.

        Args:
            stubs: names of initializers to write as type and shape only, for `Graph(…, weights)`.
        """
        graph = onnx.GraphProto(name=self.ir.name, doc_string=self.ir.doc_string)
        graph.node.extend(export_node(node) for node in self.nodes)
        inputs = [*self.inputs, *self.optional_inputs]
        graph.input.extend(OnnxExporter.export_value_info_proto(t, True) for t in inputs)
        graph.output.extend(OnnxExporter.export_value_info_proto(t, True) for t in self.outputs)
        graph.initializer.extend(
            _stub(t) if t.name in stubs else OnnxExporter.export_tensor_proto(t)
            for t in self.initializers()
        )
        graph.value_info.extend(_value_infos(self))
        model = onnx.helper.make_model(
            graph, opset_imports=self.ir.import_domains,
            ir_version=max(self.ir_version, IR_OF_DEFAULTS),
            producer_name=self.ir.producer_name, producer_version=self.ir.producer_version,
            functions=self.functions(),
        )  # fmt: skip
        onnx.helper.set_model_props(model, self.metadata)
        return model

    def sort(self) -> None:
        """Orders the nodes topologically, iteratively, keeping the present order where it can."""
        self.ir.nodes = sorted_nodes(self.nodes)


def read_model(path: Path) -> onnx.ModelProto:
    """Parses and checks an ONNX file without its external data; UserError if it is not one."""
    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not an .onnx file") from None
    except (DecodeError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not an ONNX file, or a truncated one ({error})") from error
    holds = model.graph.node or model.graph.initializer
    if not holds or not model.graph.output or not model.opset_import:
        raise UserError(f"{path}: not an ONNX model, or a truncated one (it holds no graph)")
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=99)
    if opset < 7:  # operators broadcast by attributes there
        raise UserError(
            f"{path}: opset {opset} is too old (7 or newer); convert it with onnx.version_converter"
        )
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            external_source(tensor, path.parent)
        elif not fits_its_shape(tensor):
            raise UserError(f"{path}: the values of {tensor.name!r} do not fit its shape")
    _refuse_cycles_and_doubles(model.graph, path)
    for name, number in _types_in(model.graph):
        if number not in TensorProto.DataType.values():
            raise UserError(f"{path}: {name!r} is of type {number}, which ONNX does not know")
    for value in [*model.graph.input, *model.graph.output]:
        kind = value.type.WhichOneof("value") or "tensor_type"  # an output's type may be left out
        if kind != "tensor_type":
            what = kind.removesuffix("_type").replace("_", " ")
            raise UserError(f"{path}: {value.name!r} is a {what}, where only tensors are taken")
    return model


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inferred value_info; the weights may stay external."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise UserError(
            f"the model's shapes contradict each other: {_first_line(error)}"
        ) from error
    _forget_new_names(model.graph, inferred.graph)
    return inferred


def _forget_new_names(declared: onnx.GraphProto, inferred: onnx.GraphProto) -> None:
    """What inference calls a size of an output that nobody named is no part of the signature."""
    shapes = {v.name: v.type.tensor_type.shape.dim for v in declared.output}
    known = {dim.dim_param for v in declared.input for dim in v.type.tensor_type.shape.dim}
    for value in inferred.output:
        was = shapes[value.name]
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            is_named = was[axis].dim_param if was else dim.dim_param in known
            if dim.dim_param and not is_named:
                dim.ClearField("dim_param")


def is_standard(node: Node) -> bool:
    """Whether a node's operator is one of ONNX's own."""
    return node.domain in (None, "", "ai.onnx")


def producer_of(tensor: Tensor) -> Node | None:
    """The node that computes a tensor; None for inputs and initializers."""
    return tensor.inputs[0] if tensor.inputs else None


def make_constant(node: Node, weight: Weight) -> None:
    """Takes a node of one output out of the wiring: the output is a constant, under its name."""
    (tensor,) = node.outputs
    node.inputs.clear()
    node.outputs.clear()
    tensor.to_constant(np.zeros(0))
    tensor._values = weight


def static_shape(tensor: Tensor) -> Shape | None:
    """A tensor's shape if every dimension is a known int, else None."""
    shape = tensor.shape
    if shape is None or not all(isinstance(d, int | np.integer) and d >= 0 for d in shape):
        return None
    return tuple(int(d) for d in shape)


def export_node(node: Node) -> onnx.NodeProto:
    """A node as a NodeProto with its metadata; attributes that nobody touched are kept as read."""
    proto = onnx.NodeProto(
        op_type=node.op, name=node.name, domain=node.domain or "",
        input=_without_trailing_empty(node.inputs), output=[t.name for t in node.outputs],
    )  # fmt: skip
    source = getattr(node, "source_attributes", {})
    for key, value in node.attrs.items():
        kept = source.get(key)
        if kept is not None and kept[0] is value:
            proto.attribute.append(kept[1])
            _rename_captured(proto.attribute[-1], value)
        else:
            proto.attribute.extend(OnnxExporter.export_attributes({key: value}))
    # graphsurgeon knows no sparse tensors and no types, and has None for them.
    unknown = [a for name, (value, a) in source.items() if value is None and name not in node.attrs]
    proto.attribute.extend(unknown)
    metadata = getattr(node, "metadata", {})
    for key in sorted(metadata):
        proto.metadata_props.add(key=key, value=metadata[key])
    return proto


def _rename_captured(attribute: onnx.AttributeProto, value: object) -> None:
    """Bodies of If, Loop and Scan are kept as read, but for the names of what they capture."""
    if isinstance(value, gs.Graph):
        for proto, node in zip(attribute.g.node, value.nodes, strict=True):
            proto.input[:] = [tensor.name for tensor in node.inputs]
            for inner in proto.attribute:
                _rename_captured(inner, node.attrs.get(inner.name))


def sorted_nodes(nodes: Sequence[Node]) -> list[Node]:
    """The nodes in topological order; among the ready ones, the earliest in `nodes` first."""
    index = {id(node): position for position, node in enumerate(nodes)}
    waiting, consumers = [0] * len(nodes), [[] for _ in nodes]  # type: tuple[list[int], list[list[int]]]
    for position, node in enumerate(nodes):
        for tensor in reads_of(node):
            for producer in tensor.inputs:
                source = index.get(id(producer))
                if source is not None:
                    waiting[position] += 1
                    consumers[source].append(position)
    ready = [position for position, count in enumerate(waiting) if count == 0]
    order = []
    while ready:
        position = heapq.heappop(ready)
        order.append(nodes[position])
        for consumer in consumers[position]:
            waiting[consumer] -= 1
            if waiting[consumer] == 0:
                heapq.heappush(ready, consumer)
    if len(order) != len(nodes):
        raise AssertionError("a rewrite made a cycle")
    return order


def reads_of(node: Node) -> list[Tensor]:
    """A node's inputs, and what the bodies of If, Loop and Scan capture from outside."""
    if not any(isinstance(value, gs.Graph) for value in node.attrs.values()):
        return list(node.inputs)
    bodies = list(node.subgraphs(recursive=True))
    if not bodies:
        return list(node.inputs)
    inside = [inner for body in bodies for inner in body.nodes]
    own = {id(tensor) for inner in inside for tensor in inner.outputs}
    own |= {id(tensor) for body in bodies for tensor in body.inputs}
    # ONNX has no shadowing: an initializer of a body has a name of its own.
    held = set(_body_initializers(a for _, a in node.source_attributes.values()))
    captured = [t for inner in inside for t in inner.inputs if id(t) not in own]
    return [*node.inputs, *(t for t in captured if t.name not in held)]


def _body_initializers(attributes: Iterable[onnx.AttributeProto]) -> Iterator[str]:
    for attribute in attributes:
        for body in [attribute.g, *attribute.graphs]:
            yield from (tensor.name for tensor in body.initializer)
            for inner in body.node:
                yield from _body_initializers(inner.attribute)


def _without_trailing_empty(inputs: Sequence[Tensor]) -> list[str]:
    names = [tensor.name for tensor in inputs]
    while names and not names[-1]:
        names.pop()
    return names


def _stub(constant: Tensor) -> TensorProto:
    return TensorProto(
        name=constant.name, data_type=onnx_type_of(constant._values.dtype), dims=constant.shape,
        data_location=TensorProto.EXTERNAL,
    )  # fmt: skip


def _settle_tensors(graph: onnx.GraphProto, folder: Path, *, is_body: bool = False) -> None:
    """Brings inside what graphsurgeon would drop, or look for in the working directory.

    Sparse weights are zeros to it; external tensors of attributes and bodies it does not know.
    """
    graph.initializer.extend(map(_dense, graph.sparse_initializer))
    del graph.sparse_initializer[:]
    inner = [a for node in graph.node for a in node.attribute]
    tensors = [tensor for a in inner for tensor in ([a.t] if a.HasField("t") else a.tensors)]
    for tensor in [*tensors, *(graph.initializer if is_body else ())]:
        if tensor.data_location == TensorProto.EXTERNAL:
            external_source(tensor, folder)
            _bring_inside(tensor, folder)
    for body in (body for a in inner for body in ([a.g] if a.HasField("g") else a.graphs)):
        _settle_tensors(body, folder, is_body=True)


def _dense(tensor: onnx.SparseTensorProto) -> TensorProto:
    """A sparse tensor with its zeros; indices are of all elements in a row, or one an axis."""
    values, indices = (onnx.numpy_helper.to_array(part) for part in (tensor.values, tensor.indices))
    whole = np.zeros(tuple(tensor.dims), values.dtype)
    where = np.unravel_index(indices, whole.shape) if indices.ndim == 1 else tuple(indices.T)
    whole[where] = values
    return onnx.numpy_helper.from_array(whole, tensor.values.name)


def _inline_small_tensors(
    model: onnx.ModelProto, folder: Path, given: Mapping[str, Weight]
) -> None:
    """Small external tensors (shapes, axes) come inside: shape inference has to see them."""
    for tensor in model.graph.initializer:
        external = tensor.data_location == TensorProto.EXTERNAL and tensor.name not in given
        if external and external_source(tensor, folder)[2] < EMBED_BELOW_NBYTES:
            _bring_inside(tensor, folder)


def _bring_inside(tensor: TensorProto, folder: Path) -> None:
    onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def _set_aside_large_tensors(model: onnx.ModelProto) -> dict[str, TensorProto]:
    """Takes large embedded weights out, so that shape inference does not copy them."""
    aside = {}
    for tensor in model.graph.initializer:
        if tensor.ByteSize() >= EMBED_BELOW_NBYTES and tensor.data_location != TensorProto.EXTERNAL:
            whole = TensorProto()
            whole.CopyFrom(tensor)
            aside[tensor.name] = whole
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
            tensor.data_location = TensorProto.EXTERNAL
    return aside


def _take_defaults(model: onnx.ModelProto) -> dict[str, TensorProto]:
    """Takes out the initializers that callers may override, so that nothing is inferred of them."""
    if model.ir_version < IR_OF_DEFAULTS:
        return {}
    optional = {value.name for value in model.graph.input}
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensor for tensor in tensors if tensor.name not in optional)
    return {tensor.name: tensor for tensor in tensors if tensor.name in optional}


def _keep_what_graphsurgeon_drops(ir: Any, graph: onnx.GraphProto) -> None:
    for node, proto in zip(ir.nodes, graph.node, strict=True):
        node.metadata = {entry.key: entry.value for entry in proto.metadata_props}
        node.source_attributes = {a.name: (node.attrs.get(a.name), a) for a in proto.attribute}


def _name_unnamed_nodes(graph: Graph) -> None:
    seen: set[str] = set()
    for node in graph.nodes:
        if not node.name or node.name in seen:
            node.name = graph.fresh_name(node.name or f"{node.op}_{node.outputs[0].name}")
        seen.add(node.name)


def _constant_node_weight(node: Node) -> Weight | None:
    cached = getattr(node, "weight", None)
    if cached is None:
        proto = export_node(node)
        if len(proto.attribute) != 1 or proto.attribute[0].name == "sparse_value":
            return None
        values = _constant_attribute(proto.attribute[0])
        cached = NewWeight(values, values.dtype, node.name)
        node.weight = cached
    return cast(Weight, cached)


def _constant_attribute(attribute: onnx.AttributeProto) -> Array:
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return onnx.numpy_helper.to_array(value)
    floating = attribute.name.startswith("value_float")
    return np.array(value, dtype=np.float32 if floating else np.int64 if "int" in attribute.name
                    else object)  # fmt: skip


def _moved(name: str, weight: Weight, weights: WeightsFile) -> MappedWeight:
    if isinstance(weight, MappedWeight) and weight.tensor.data_location == TensorProto.EXTERNAL:
        return weights.adopt(weight)
    return weights.append(name, weight.load(), onnx_type_of(weight.dtype))


def _value_infos(graph: Graph) -> Iterator[onnx.ValueInfoProto]:
    outputs = {id(tensor) for tensor in graph.outputs}
    for node in graph.nodes:
        for tensor in node.outputs:
            if tensor.name and id(tensor) not in outputs and tensor.dtype is not None:
                yield OnnxExporter.export_value_info_proto(tensor, True)


def _types_in(graph: onnx.GraphProto) -> Iterator[tuple[str, int]]:
    """Names and element types of what a graph and the bodies in it declare."""
    for value in [*graph.input, *graph.output, *graph.value_info]:
        yield value.name, value.type.tensor_type.elem_type
    for tensor in graph.initializer:
        yield tensor.name, tensor.data_type
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        if attribute.HasField("t"):
            yield attribute.name, attribute.t.data_type
        for body in [attribute.g, *attribute.graphs]:
            yield from _types_in(body)


def _refuse_cycles_and_doubles(graph: onnx.GraphProto, path: Path) -> None:
    names = [
        *(t.name for t in graph.initializer),
        *(t.values.name for t in graph.sparse_initializer),
    ]
    _refuse_doubles(names, (), path)
    _refuse_doubles([t.name for t in graph.input], (), path)
    known = {*names, *(t.name for t in graph.input), ""}
    for node in graph.node:
        missing = [name for name in node.input if name not in known]
        if missing:
            raise UserError(
                f"{path}: node {node.name or node.op_type!r} reads {missing[0]!r}, which nothing "
                "before it computes; the graph is cut, cyclic or out of order"
            )
        _refuse_doubles([name for name in node.output if name], known, path)
        known.update(node.output)
    missing = [t.name for t in graph.output if t.name not in known]
    if missing:
        raise UserError(f"{path}: nothing computes the model's output {missing[0]!r}")


def _refuse_doubles(names: Sequence[str], known: Collection[str], path: Path) -> None:
    doubled = [name for name, count in Counter(names).items() if count > 1 or name in known]
    if doubled:
        raise UserError(f"{path}: two places define the tensor {doubled[0]!r}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


__all__ = [
    "PASS_KEY", "REWRITE_KEY", "SOURCES_KEY", "Graph", "Node", "Shape", "Tensor", "export_node",
    "infer_shapes", "producer_of", "read_model", "reads_of", "static_shape",
]  # fmt: skip
