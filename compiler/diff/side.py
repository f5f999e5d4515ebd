"""One of the two models that are compared: its nodes as protos, and who reads and makes what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path

import onnx

from compiler.errors import UserError
from compiler.exported import SCOPES_KEY, listed
from compiler.graph import Graph, export_node, read_model, reads_of
from compiler.region import TensorType
from compiler.rewrite import Signature
from compiler.weights import Weight


@dataclass(frozen=True)
class Aside:
    """What a file says and `Graph` leaves out."""

    annotations: tuple[onnx.TensorAnnotation, ...] = ()
    """Which tensors hold the scales and zero points of which."""

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Aside:
        """What is to be known of a parsed file. Raises UserError for overloaded functions."""
        overloaded = next((n for n in [*model.graph.node, *model.functions] if n.overload), None)
        if overloaded is not None:
            what = f"{overloaded.name!r} is an overload of a local function, or calls one"
            raise UserError(f"{what}: overloads can't be compared")
        return cls(tuple(model.graph.quantization_annotation))


class Side:
    """A graph by the names of its tensors; Constant nodes count as weights."""

    def __init__(self, graph: Graph, aside: Aside | None = None) -> None:
        """Takes a graph, and what its file says beside it."""
        self.annotations = (aside or Aside()).annotations
        self.folder = graph.folder
        self.signature = Signature.of(graph)
        self.opsets = {"" if d == "ai.onnx" else d: v for d, v in graph.opsets.items()}
        self.ir_version = graph.ir_version
        self.functions = {(f.domain, f.name): f for f in graph.functions()}
        self.outputs = [tensor.name for tensor in graph.outputs]
        self.weights: dict[str, Weight] = {}
        self.types: dict[str, TensorType] = dict(self.signature.inputs)
        # What a caller may replace is told apart (`interface.py`), and else a weight like others.
        self.defaults = tuple(tensor.name for tensor in graph.optional_inputs)
        self.weights |= {name: tensor._values for name, tensor in graph.defaults.items()}
        self.nodes: list[onnx.NodeProto] = []
        self.reads: list[list[str]] = []
        for tensor in graph.outputs:
            self._note(graph, tensor)
        for node in graph.nodes:
            if node.op != "Constant" or graph.weight(node.outputs[0]) is None:
                self._add(graph, node)
        self.producer = {name: i for i, n in enumerate(self.nodes) for name in n.output if name}
        self.readers: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for i, names in enumerate(self.reads):
            for slot, name in enumerate(names):
                self.readers[name].append((i, slot))

    @classmethod
    def load(cls, path: Path) -> Side:
        """Reads a file, leaving its weights on disk. Raises UserError on a bad one."""
        model = read_model(path)
        aside = Aside.of(model)
        return cls(Graph(model, path.parent), aside)

    def _add(self, graph: Graph, node: object) -> None:
        proto = export_node(node)
        tensors = reads_of(node)
        captured = [t.name for t in tensors[len(node.inputs) :]]  # type: ignore[attr-defined]
        for tensor in [*tensors, *node.outputs]:  # type: ignore[attr-defined]
            self._note(graph, tensor)
        self.nodes.append(proto)
        self.reads.append([*proto.input, *captured])

    def _note(self, graph: Graph, tensor: object) -> None:
        name = tensor.name  # type: ignore[attr-defined]
        if name and name not in self.types:
            self.types[name] = TensorType.of(tensor)
            weight = graph.weight(tensor)
            if weight is not None:
                self.weights.setdefault(name, weight)

    def shape(self, name: str) -> str:
        """`[1×1370×384]`; `[?]` if nothing is known."""
        kind = self.types.get(name)
        return "[?]" if kind is None else str(kind)[str(kind).index("[") :]

    def type_text(self, name: str) -> str:
        """`float[1×1370×384]`."""
        return str(self.types.get(name, TensorType(0, None)))

    def attributes(self, i: int) -> list[onnx.AttributeProto]:
        """A node's attributes by name; one that has the operator's default means nothing."""
        return meaningful_attributes(self.nodes[i], self.opsets)

    def version(self, i: int) -> int:
        """The opset in which a node's operator last changed; 0 for one that ONNX doesn't know."""
        domain = "" if self.nodes[i].domain == "ai.onnx" else self.nodes[i].domain
        return _since(self.nodes[i].op_type, domain, self.opsets.get(domain, 0))

    def made_by(self, nodes: Iterable[int]) -> list[str]:
        """The tensors that nodes compute."""
        return [name for i in nodes for name in self.nodes[i].output if name]

    def roots(self, nodes: Collection[int]) -> list[str]:
        """What nodes compute for others; of nodes that nobody needs, what is left over."""
        made = self.made_by(nodes)
        users = {name: {i for i, _ in self.readers.get(name, ())} for name in made}
        inside = set(nodes)
        needed = [n for n in made if users[n] - inside or n in self.outputs]
        return needed or [n for n in made if not users[n]]

    def scope(self, nodes: Sequence[int]) -> str:
        """The innermost module that holds all the nodes, as far as the exporter says."""
        paths = [path for i in nodes if (path := module_of(self.nodes[i]))]
        return ".".join(common_start(paths))


def module_of(node: onnx.NodeProto) -> list[str]:
    """The path of a node's module: `["encoder", "layer", "0", "attention"]`."""
    for entry in node.metadata_props:
        if entry.key == SCOPES_KEY:
            return [
                part for scope in listed(entry.value)[-2:-1] for part in scope.split(".") if part
            ]
    if node.name.startswith("/"):  # the older exporter writes the path into the name
        return [part for part in node.name.replace("/", ".").split(".")[:-1] if part]
    return []


def common_start(paths: Sequence[Sequence[str]]) -> list[str]:
    """The modules that all paths begin with."""
    levels = zip(*paths, strict=False)
    return [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]


def meaningful_attributes(
    node: onnx.NodeProto, opsets: Mapping[str, int]
) -> list[onnx.AttributeProto]:
    """The attributes of a node, by name, without those that have the operator's default."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    defaults = _defaults(node.op_type, domain, opsets.get(domain, opsets.get("ai.onnx", 1)))
    attributes = sorted(node.attribute, key=lambda attribute: attribute.name)
    return [a for a in attributes if a.name not in defaults or a.ref_attr_name
            or onnx.helper.get_attribute_value(a) != defaults[a.name]]  # fmt: skip


@cache
def _since(op: str, domain: str, opset: int) -> int:
    try:
        return int(onnx.defs.get_schema(op, opset, domain).since_version)
    except onnx.defs.SchemaError:
        return 0


@cache
def _defaults(op: str, domain: str, opset: int) -> dict[str, object]:
    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return {}
    given = {name: a.default_value for name, a in schema.attributes.items()}
    return {name: onnx.helper.get_attribute_value(value) for name, value in given.items()
            if value.type != onnx.AttributeProto.UNDEFINED}  # fmt: skip
