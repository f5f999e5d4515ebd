"""Passes propose, the driver applies and records: matches, refusals, rewrites and their cuts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from compiler.graph import (
    PASS_KEY,
    REWRITE_KEY,
    SOURCES_KEY,
    Graph,
    Node,
    Shape,
    Tensor,
    producer_of,
    reads_of,
    sorted_nodes,
)
from compiler.quantize.evidence import Evidence
from compiler.quantize.search import Sensitivity
from compiler.region import (
    Region,
    TensorType,
    ancestors,
    cut_inputs,
    region_of,
    shared_context,
)
from compiler.weights import Array, NewWeight

Contract = Literal["exact", "algebraic", "declared", "approximate"]
Float64 = NDArray[np.float64]
Function = Callable[[Mapping[str, Float64]], dict[str, Float64]]


class Match(Protocol):
    """What a pass found: a frozen dataclass whose `place` names it to people (a tensor's name)."""

    @property
    def place(self) -> str:
        """The name of the place in reports: the tensor that the matched nodes compute."""


M = TypeVar("M", bound=Match)

# metadata_props of every node that a pass made, whatever passes came before it.
PASSES_KEY = "compiler.passes"
ORIGIN_KEY = "compiler.origin"
# How many names each of them holds, and what stands for the others.
MOST_NAMES = 64
MORE = "…"

WHOLE_MODEL = "model"
"""The place of a refusal that is about no place of the model, but all of it."""


class Pass(ABC):
    """One kind of rewrite, in one file of `passes/`; the dataclass fields are its options."""

    @property
    def name(self) -> str:
        """The name that `--passes` takes: that of the pass's module."""
        return type(self).__module__.rpartition(".")[2]

    @property
    @abstractmethod
    def contract(self) -> Contract:
        """What the pass promises about the function of the model."""

    def text(self) -> str:
        """The pass as pipeline text, with the options that differ from their defaults."""
        changed = [
            f"{option.name}={getattr(self, option.name)}"
            for option in fields(self)  # type: ignore[arg-type]
            if getattr(self, option.name) != option.default
        ]
        return ":".join([self.name, *changed])


class LocalPass(Pass, Generic[M]):
    """A pass that finds places and proposes a replacement for each."""

    @abstractmethod
    def match(self, graph: Graph) -> Iterable[M]:
        """The places that have the shape this pass is about. Asks nothing else."""

    def missing(self, graph: Graph) -> str:
        """Why a model in which nothing matches is left alone: the reason of its one refusal."""
        return "nothing in it has the shape that this pass is about"

    @abstractmethod
    def guard(self, graph: Graph, match: M) -> str | None:
        """Why a matched place must be left alone, naming the value at fault; None to rewrite it."""

    @abstractmethod
    def rewrite(self, graph: Graph, match: M) -> Replacement:
        """The replacement for a matched and guarded place; has no conditions left."""


class DeclaredPass(LocalPass[M]):
    """A pass that changes the model's function on purpose, and says to what."""

    @property
    def contract(self) -> Contract:
        """Declared: proven against `expected`."""
        return "declared"

    @abstractmethod
    def expected(
        self, f: Function, inputs: Mapping[str, Float64], before: Signature
    ) -> dict[str, Float64]:
        """The new model's outputs for `inputs`: NumPy float64, no ONNX.

        Args:
            f: the old model.
            inputs: those of the new model.
            before: the names and types of what goes into `f` and comes out.
        """


class GraphPass(Pass):
    """A pass that returns a new graph; tensors that both have keep their names and values."""

    contract: ClassVar[Contract] = "algebraic"

    @abstractmethod
    def simplified(self, graph: Graph) -> Graph:
        """A new graph; the driver finds the rewrites by comparing, and proves each."""

    def refusals(self, graph: Graph) -> list[Refusal]:
        """What `simplified` leaves alone, with reasons."""
        return []

    def opset(self, before: int) -> int:
        """The version of the default operator set that the pass may leave, given the old one.

        Every node whose operator changed between the two is a rewrite, proven at its own cut.
        """
        return before

    def signature(self, before: Signature) -> Signature:
        """The signature of the new graph, whose values are those of the old one."""
        return before


class ApproximatePass(Pass):
    """A pass that changes the model's numbers a little; how much is measured, never proven."""

    contract: ClassVar[Contract] = "approximate"
    max_loss: float
    """The bound of the loss, a part of the depth: what the driver measures may not exceed it."""

    def __post_init__(self) -> None:
        """Raises ValueError for a bound that nothing meets."""
        if not self.max_loss > 0:
            raise ValueError(f"max_loss={self.max_loss:g} must be above 0: 0.02 allows 2 %")

    @abstractmethod
    def approximated(self, graph: Graph, evidence: Evidence) -> Approximation:
        """A new graph of the same inputs and outputs; `graph` is left as it is."""

    @abstractmethod
    def refusals(self, graph: Graph) -> list[Refusal]:
        """Why a whole model is left alone; empty if it isn't."""


@dataclass(frozen=True)
class Approximation:
    """What an approximate pass made, and what it found out on the way."""

    graph: Graph
    layers: Sequence[Sensitivity] = ()


@dataclass(frozen=True)
class Refusal:
    """A place that looked like a match and was left alone."""

    place: str
    reason: str


@dataclass(frozen=True)
class Call:
    """A use of the old network, as a black box, inside the new model: old name to tensor's name."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class Copy:
    """Nodes that a declared pass made as a copy of the network, and where it is plugged in."""

    nodes: Sequence[tuple[Node, Node]]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


@dataclass(frozen=True)
class Replacement:
    """What a pass proposes at one place: new nodes, and the tensors that they compute instead."""

    builder: Builder
    outputs: Sequence[tuple[Tensor, Tensor]]
    new_inputs: Sequence[tuple[Tensor, Tensor]] = ()
    copies: Sequence[Copy] = ()
    slices_left: int = 0


@dataclass(frozen=True)
class Signature:
    """The names and types of a model's inputs and outputs."""

    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]

    @classmethod
    def of(cls, graph: Graph) -> Signature:
        """The signature of a graph as it is now."""
        return cls(
            {tensor.name: TensorType.of(tensor) for tensor in graph.inputs},
            {tensor.name: TensorType.of(tensor) for tensor in graph.outputs},
        )

    def same_as(self, other: Signature) -> bool:
        """Equal, order included: onnxruntime's users index inputs and outputs by position."""
        return self == other and [*self.inputs, *self.outputs] == [*other.inputs, *other.outputs]


@dataclass(frozen=True)
class Rewrite:
    """One application of a pass: the old and the new region over the same cut.

    Declared passes leave the network alone and plug it in as a black box: `calls` says where, and
    `copies` pairs the network with each copy, to be checked node for node. `before` and `after` are
    the model's signatures around a declared rewrite.
    """

    pass_name: str
    index: int
    place: str
    old: Region
    new: Region
    calls: tuple[Call, ...] = ()
    copies: tuple[tuple[Region, Region, Mapping[str, str]], ...] = ()
    before: Signature | None = None
    after: Signature | None = None
    slices_left: int = 0

    @property
    def title(self) -> str:
        """`split_heads#3 at encoder.layer.3.attention`."""
        return f"{self.pass_name}#{self.index} at {self.place}"


@dataclass
class Applied:
    """What a pass did to a graph."""

    rewrites: list[Rewrite] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


class Builder:
    """Makes the nodes of one replacement; they join the graph when the driver applies it."""

    def __init__(self, graph: Graph, prefix: str) -> None:
        self._graph = graph
        self._prefix = prefix
        self.nodes: list[Node] = []

    def node(
        self, op: str, inputs: Sequence[Tensor], shape: Shape | None, *, like: Tensor | None = None,
        source: Node | None = None, domain: str = "", **attributes: Any,
    ) -> Tensor:  # fmt: skip
        """Adds a node with one output of `shape` and the type of `like`, or of the first input."""
        name = self._graph.fresh_name(f"{self._prefix}/{op}")
        dtype = (inputs[0] if like is None else like).dtype
        output = gs.Variable(name, dtype=dtype, shape=None if shape is None else list(shape))
        node = gs.Node(op, name, attributes, list(inputs), [output], domain=domain or None)
        node.metadata = {} if source is None else {SOURCES_KEY: source.name}
        self.nodes.append(node)
        return output

    def constant(self, values: Array, dtype: Any, how: str) -> Tensor:
        """A new constant stored as `dtype`; `how` says how it was made, for people."""
        name = self._graph.fresh_name(f"{self._prefix}/{how}" if len(how) < 80 else self._prefix)
        return gs.Constant(name, NewWeight(values, dtype, how))

    def ints(self, values: Sequence[int], what: str) -> Tensor:
        """A new int64 vector (a shape, axes …)."""
        return self.constant(np.array(values, dtype=np.int64), np.dtype(np.int64), what)

    def copy(self, node: Node, inputs: Sequence[Tensor]) -> Node:
        """Adds a copy of a node that reads other tensors; the attributes are kept as read."""
        outputs = [
            gs.Variable(self._graph.fresh_name(f"{self._prefix}/{t.name}"), t.dtype, t.shape)
            if t.name else gs.Variable.empty()
            for t in node.outputs
        ]  # fmt: skip
        name = self._graph.fresh_name(f"{self._prefix}/{node.name}")
        twin = gs.Node(node.op, name, dict(node.attrs), list(inputs), outputs, domain=node.domain)
        twin.source_attributes = getattr(node, "source_attributes", {})
        twin.metadata = {SOURCES_KEY: node.name}
        self.nodes.append(twin)
        return twin

    def new_input(self, like: Tensor, shape: Shape) -> Tensor:
        """A tensor to become a graph input in place of `like`, under its name."""
        return gs.Variable(self._graph.fresh_name(f"{self._prefix}/{like.name}"), like.dtype,
                           list(shape))  # fmt: skip

    def prune(self, outputs: Iterable[Tensor]) -> None:
        """Forgets the nodes that `outputs` do not need."""
        outside = {id(tensor) for node in self.nodes for tensor in node.inputs}
        outside -= {id(tensor) for node in self.nodes for tensor in node.outputs}
        needed = {id(node) for node in ancestors(outputs, outside)}
        for node in reversed(self.nodes):
            if id(node) not in needed:
                node.inputs.clear()
                node.outputs.clear()
        self.nodes = [node for node in self.nodes if id(node) in needed]


def apply_pass(graph: Graph, pass_: LocalPass[Any]) -> Applied:
    """Runs one pass over a graph in place and returns the record of what it did.

    Args:
        graph: edited in place; in topological order before and after.
        pass_: the pass; its matches are found first, then taken in order.
    """
    done = Applied()
    editor = _Editor(graph)
    matches = list(pass_.match(graph))
    if not matches:
        done.refusals.append(Refusal(WHOLE_MODEL, pass_.missing(graph)))
    for match in matches:
        reason = pass_.guard(graph, match)
        if reason is not None:
            done.refusals.append(Refusal(match.place, reason))
            continue
        index = len(done.rewrites)
        replacement = _with_own_outputs(pass_.rewrite(graph, match))
        hidden = editor.hidden(replacement)
        if hidden is not None:
            replacement.builder.prune([])
            reason = f"{hidden.name!r} is computed in the body of an If, Loop or Scan: it stays"
            done.refusals.append(Refusal(match.place, reason))
            continue
        done.rewrites.append(editor.apply(replacement, pass_.name, index, match.place))
    editor.finish()
    return done


def _with_own_outputs(proposal: Replacement) -> Replacement:
    """Puts an Identity where a pass says that a tensor which is there already is the new one."""
    builder = proposal.builder
    made = {id(tensor) for node in builder.nodes for tensor in node.outputs}
    outputs = [
        (old, new if id(new) in made else builder.node("Identity", [new], new.shape))
        for old, new in proposal.outputs
    ]
    return replace(proposal, outputs=outputs)


class _Editor:
    """Applies replacements one by one; the node list is put in order once, at the end."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._position = {id(node): i for i, node in enumerate(graph.nodes)}
        self._named = {node.name: node for node in graph.nodes}
        self._removed: set[int] = set()
        self._added: dict[int, list[Node]] = {}

    def hidden(self, proposal: Replacement) -> Tensor | None:
        """An old tensor whose node is in a body, where a pass came by following readers."""
        producers = ((old, producer_of(old)) for old, _ in proposal.outputs)
        inside = (t for t, n in producers if n is not None and id(n) not in self._position)
        return next(inside, None)

    def apply(self, proposal: Replacement, name: str, index: int, place: str) -> Rewrite:
        """Swaps the old nodes for the new ones and returns the record."""
        graph, builder = self.graph, proposal.builder
        builder.prune([new for _, new in proposal.outputs])
        before = Signature.of(graph)
        dead = _dead_nodes(graph, [old for old, _ in proposal.outputs], builder.nodes)
        dead = sorted_nodes(sorted(dead, key=lambda node: self._position[id(node)]))
        inputs = cut_inputs(graph, [*dead, *builder.nodes])
        context = shared_context(graph, inputs) if dead else []
        cut = [old for old, _ in proposal.outputs]
        old = region_of(graph, [*context, *dead], cut if dead else [])
        networks = [_network_of(graph, copy) for copy in proposal.copies]
        originals = [_copy_region(graph, nodes) for nodes in networks]
        for node in dead:
            node.inputs.clear()
            node.outputs.clear()
        inner = _connect(graph, proposal)
        self._record_nodes(proposal, dead, name, index)
        copied = {id(twin) for copy in proposal.copies for _, twin in copy.nodes}
        new_nodes = sorted_nodes([n for n in builder.nodes if id(n) not in copied])
        new = region_of(graph, [*context, *new_nodes], cut)
        copies = tuple(
            (original, _copy_region(graph, _twins_of(nodes, copy)), _names(copy.inputs))
            for original, nodes, copy in zip(originals, networks, proposal.copies, strict=True)
        )
        calls = () if dead else _calls(proposal, before, inner)
        after = Signature.of(graph)
        left = proposal.slices_left
        return Rewrite(name, index, place, old, new, calls, copies, before, after, left)

    def finish(self) -> None:
        """Puts the node list in order: new nodes stand where the first node they replace stood."""
        nodes: list[Node] = []
        for position, node in enumerate(self.graph.nodes):
            nodes += self._added.get(position, [])
            if id(node) not in self._removed:
                nodes.append(node)
        nodes += self._added.get(len(self.graph.nodes), [])
        # A rewrite may replace nodes that one before it made.
        left = [node for node in nodes if id(node) not in self._removed]
        self.graph.ir.nodes = sorted_nodes(left)

    def _record_nodes(self, proposal: Replacement, dead: list[Node], name: str, index: int) -> None:
        self._removed |= {id(node) for node in dead}
        positions = [self._position[id(node)] for node in dead]
        position = min(positions, default=len(self.graph.nodes))
        self._added.setdefault(position, []).extend(proposal.builder.nodes)
        title, sources = f"{name}#{index}", few_names([node.name for node in dead])
        of_all = history(title, dead)
        for node in proposal.builder.nodes:
            self._position[id(node)] = position
            source = node.metadata.get(SOURCES_KEY)
            made_of = [self._named[source]] if source in self._named else []
            own = of_all if source is None else history(title, made_of)
            node.metadata = {SOURCES_KEY: sources, **node.metadata}
            node.metadata |= {PASS_KEY: name, REWRITE_KEY: title, **own}
        self._named |= {node.name: node for node in proposal.builder.nodes}


def few_names(names: Collection[str]) -> str:
    """Names for the metadata of a node, which holds no more than a few dozen of them.

    A rewrite of a whole network would write thousands into every node that is made of all of it;
    the record of the rewrite (`rewrites.json`) has them.
    """
    known = [name for name in names if name != MORE][:MOST_NAMES]
    return " ".join(known if len(known) == len(names) else [*known, MORE])


def history(rewrite: str, made_of: Iterable[Node]) -> dict[str, str]:
    """The metadata of a node: the rewrites on its way here, and the source model's nodes."""
    rewrites: dict[str, None] = {}
    origins: dict[str, None] = {}
    for node in made_of:
        known = getattr(node, "metadata", {})
        rewrites |= dict.fromkeys(known.get(PASSES_KEY, "").split())
        origins |= dict.fromkeys(known.get(ORIGIN_KEY, node.name).split())
    passed = " ".join(filter(None, (few_names(rewrites), rewrite)))
    return {PASSES_KEY: passed, ORIGIN_KEY: few_names(origins)}


def needed_nodes(graph: Graph) -> list[Node]:
    """The nodes that the outputs depend on, in order: without `canonicalize` there may be others.

    A pass that counts readers, or follows them, must not take those for any: they stay as they are.
    """
    needed = {id(node) for node in ancestors(graph.outputs, set())}
    return [node for node in graph.nodes if id(node) in needed]


def read_elsewhere(graph: Graph, nodes: Sequence[Node]) -> list[Tensor]:
    """What nodes compute that is an output, or that others read of those that are needed."""
    own = {id(node) for node in nodes}
    others = [node for node in needed_nodes(graph) if id(node) not in own]
    read = {id(tensor) for tensor in graph.outputs}
    read |= {id(tensor) for node in others for tensor in reads_of(node)}
    return [t for node in nodes for t in node.outputs if t.name and id(t) in read]


def _dead_nodes(graph: Graph, redirected: list[Tensor], new_nodes: list[Node]) -> list[Node]:
    """The nodes that nothing needs once the consumers of `redirected` read something else."""
    new = {id(node) for node in new_nodes}
    outputs = {id(tensor) for tensor in graph.outputs}
    freed = {id(tensor) for tensor in redirected}
    dead: dict[int, Node] = {}

    def is_unused(tensor: Tensor) -> bool:
        if id(tensor) in freed:
            return not any(id(user) in new for user in tensor.outputs)
        return id(tensor) not in outputs and all(id(user) in dead for user in tensor.outputs)

    pending = [node for t in redirected if (node := producer_of(t)) is not None]
    while pending:
        node = pending.pop()
        if id(node) not in dead and all(is_unused(t) for t in node.outputs):
            dead[id(node)] = node
            pending += [p for t in node.inputs if (p := producer_of(t)) is not None]
    return list(dead.values())


def _connect(graph: Graph, proposal: Replacement) -> dict[str, Tensor]:
    """Lets the new nodes compute the old tensors, so that every consumer and name stays.

    An old tensor that the new nodes themselves read lives on under a fresh name; returns those by
    their old names.
    """
    new_nodes = {id(node) for node in proposal.builder.nodes}
    inner: dict[str, Tensor] = {}
    for old, outer in proposal.new_inputs:
        position = next(i for i, tensor in enumerate(graph.inputs) if tensor is old)
        graph.inputs[position] = outer
        inner[old.name] = old
        outer.name, old.name = old.name, outer.name
    for old, new in proposal.outputs:
        source = producer_of(old)
        if source is not None:
            kept = gs.Variable(graph.fresh_name(f"{old.name}/inner"), old.dtype, old.shape)
            inner[old.name] = kept
            _swap(source.outputs, old, kept)
            for user in [user for user in old.outputs if id(user) in new_nodes]:
                _swap(user.inputs, old, kept)
        for user in list(new.outputs):
            _swap(user.inputs, new, old)
        _swap(new.inputs[0].outputs, new, old)
        old.shape, old.dtype = new.shape, new.dtype
    return inner


def _swap(tensors: list[Tensor], old: Tensor, new: Tensor) -> None:
    for position, tensor in enumerate(list(tensors)):
        if tensor is old:
            tensors[position] = new


def _copy_region(graph: Graph, nodes: list[Node]) -> Region:
    return region_of(graph, nodes, [t for node in nodes for t in node.outputs])


def _network_of(graph: Graph, copy: Copy) -> list[Node]:
    """All that a copy must hold: what depends on the tensors it replaces and leads to its outputs.

    Asked of the graph, not of the pass: a node that the pass forgot to copy has to show.
    """
    needed = {id(n) for n in ancestors([t for t in graph.outputs if t.name in copy.outputs], set())}
    claimed = {id(node) for node, _ in copy.nodes}
    depends = {id(tensor) for tensor in graph.inputs if tensor.name in copy.inputs}
    network = []
    for node in graph.nodes:
        reached = id(node) in needed and any(id(tensor) in depends for tensor in reads_of(node))
        if reached or id(node) in claimed:
            depends |= {id(tensor) for tensor in node.outputs}
            network.append(node)
    return network


def _twins_of(network: list[Node], copy: Copy) -> list[Node]:
    """The copies of the network's nodes, as far as they were made."""
    twins = {id(node): twin for node, twin in copy.nodes}
    return [twins[id(node)] for node in network if id(node) in twins]


def _calls(
    proposal: Replacement, before: Signature, inner: Mapping[str, Tensor]
) -> tuple[Call, ...]:
    """Where the network and its copies are plugged into the nodes that a declared pass made."""
    if not inner:
        return ()
    now = {name: inner[name].name if name in inner else name
           for name in [*before.inputs, *before.outputs]}  # fmt: skip
    network = Call({k: now[k] for k in before.inputs}, {k: now[k] for k in before.outputs})
    return network, *(Call(_names(c.inputs), _names(c.outputs)) for c in proposal.copies)


def _names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: tensor.name for name, tensor in tensors.items()}


__all__ = [
    "WHOLE_MODEL", "Applied", "ApproximatePass", "Approximation", "Builder", "Call", "Contract",
    "Copy", "DeclaredPass", "Evidence", "Float64", "Function", "GraphPass", "LocalPass", "Match",
    "Pass", "Refusal", "Replacement", "Rewrite", "Sensitivity", "Signature", "TensorType",
    "apply_pass", "needed_nodes", "read_elsewhere",
]  # fmt: skip
