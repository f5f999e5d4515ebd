"""Where a simulated inference spends its time: per kind of op, and per pass that made the op.

Preparing a model with `optrace` leaves the simulation itself: a trace of what the matrix engine,
the four vector threads and the DMA engine do, cycle by cycle. Each event's id holds, in its low 32
bits, the QNN op it came from; the schematic names that op; the provider's own trace of ops says
which ONNX nodes it stands for.

Every cycle is given away exactly once: to the ops that compute in it, in equal parts; when nothing
computes, to the ops whose data is on its way (waiting); and if nothing moves either, to nobody.

Nodes that are left to the CPU cut the model into parts, each an NPU graph with a trace of its own.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import onnx

from compiler.graph import PASS_KEY

T = TypeVar("T")

NOT_ATTRIBUTED = "(not attributed)"
INSERTED = "inserted by the NPU compiler"
SOURCE = "(source model)"
COMPUTING = ("for_hvx", "uses_hmx")
_SCHEMATIC = "_schematic.bin"
# What onnxruntime and the provider add to the names of nodes that they fuse, copy or transpose.
_ADDED_TO_NAME = re.compile(r"(_token_\d+|_\d+|_new_reshape|_reshape|/MatMul\w*Fusion)$")


@dataclass(frozen=True)
class Share:
    """A row of a table: its ops' milliseconds, of them waiting for data, and DRAM traffic."""

    name: str
    ops: int
    ms: float
    waiting_ms: float
    dram_bytes: int


@dataclass(frozen=True)
class Attribution:
    """The simulated latency, given away twice: the rows of each table add up to it.

    `ops` of a row counts the QNN ops that took any time. `unattributed_ms` belongs to no op at all;
    it is a row of both tables. In `by_pass` it is joined by what the NPU's compiler inserted.
    """

    by_op: tuple[Share, ...]
    by_pass: tuple[Share, ...]
    unattributed_ms: float


@dataclass(frozen=True)
class _Op:
    """An op of the NPU's graph: what kind it is, and which pass made it, as the tables say it."""

    kind: str
    made_by: str


@dataclass
class _Cost:
    """What an op takes: cycles while a trace is read, milliseconds once it is scaled."""

    time: float = 0.0
    waiting: float = 0.0
    dram_bytes: int = 0


# An op of the NPU's graphs: the graph's number, and its id there.
_Key = tuple[int, int]


def attribute(profile: Path, model: Path, latencies_ms: Sequence[float]) -> Attribution:
    """Reads the folder of a profiled preparation of `model`, with the latency of each graph."""
    proto = onnx.load(model, load_external_data=False)
    traces, names = _traces(profile), graph_names(profile)
    costs: dict[_Key, _Cost] = {}
    ops: dict[_Key, _Op] = {}
    for number, (name, latency_ms) in enumerate(zip(names, latencies_ms, strict=True)):
        costs |= {(number, op): cost for op, cost in _costs(traces[number], latency_ms).items()}
        ops |= {(number, op): known for op, known in _ops(profile, name, proto).items()}
    known = {key: ops[key] for key in costs if key in ops}
    by_op = _table({key: op.kind for key, op in known.items()}, costs, sum(latencies_ms))
    by_pass = _table({key: op.made_by for key, op in known.items()}, costs, sum(latencies_ms))
    return Attribution(by_op, by_pass, by_op[-1].ms)


def graph_names(profile: Path) -> list[str]:
    """The NPU's graphs, in the order in which they were prepared: names end in it."""
    names = [path.name.removesuffix(_SCHEMATIC) for path in profile.glob(f"*{_SCHEMATIC}")]
    return sorted(names, key=lambda name: int(name.rpartition("_")[2]))


def once_a_graph(blocks: Sequence[T], graphs: int) -> list[T]:
    """The blocks of a profile, one a graph: the provider repeats those of all but the last."""
    if len(blocks) != 2 * graphs - 1:
        raise AssertionError(f"{len(blocks)} blocks in the profile of {graphs} graphs")
    return list(blocks[::2])


def _table(
    rows: Mapping[_Key, str], costs: Mapping[_Key, _Cost], latency_ms: float
) -> tuple[Share, ...]:
    """The costs of ops summed by row, the dearest first; the last row is not attributed."""
    members = defaultdict(list)
    for key, row in rows.items():
        members[row].append(costs[key])
    shares = [
        Share(row, len(own), sum(c.time for c in own), sum(c.waiting for c in own),
              sum(c.dram_bytes for c in own))
        for row, own in members.items()
    ]  # fmt: skip
    shares.sort(key=lambda share: (-share.ms, share.name))
    nameless = [cost for key, cost in costs.items() if key not in rows]
    lost = latency_ms - sum(share.ms for share in shares)
    traffic = sum(cost.dram_bytes for cost in nameless)
    waiting = sum(cost.waiting for cost in nameless)
    return (*shares, Share(NOT_ATTRIBUTED, len(nameless), lost, waiting, traffic))


def _costs(events: list[_Event], latency_ms: float) -> dict[int, _Cost]:
    """What each QNN op takes of a graph's timeline in milliseconds, by its id."""
    costs: dict[int, _Cost] = defaultdict(_Cost)
    for event in events:
        costs[event.op].dram_bytes += event.dram_bytes
    running: dict[int, _Event] = {}
    now = 0
    for time, event in sorted(_edges(events), key=lambda edge: edge[0]):
        if time > now:
            computing = [e.op for e in running.values() if e.computes]
            paying = computing or [e.op for e in running.values()]
            for op in paying:
                costs[op].time += (time - now) / len(paying)
                costs[op].waiting += 0.0 if computing else (time - now) / len(paying)
            now = time
        if id(event) in running:
            del running[id(event)]
        else:
            running[id(event)] = event
    for cost in costs.values():
        cost.time, cost.waiting = (x * latency_ms / max(now, 1) for x in (cost.time, cost.waiting))
    return costs


def _edges(events: list[_Event]) -> Iterator[tuple[int, _Event]]:
    for event in events:
        if event.end > event.start:
            yield event.start, event
            yield event.end, event


@dataclass(frozen=True)
class _Event:
    """An event of the simulation: its QNN op's id, its cycles, whether an engine computes."""

    op: int
    start: int
    end: int
    computes: bool
    dram_bytes: int


def _traces(profile: Path) -> list[list[_Event]]:
    """The simulations' events, one list a graph, out of a binary log that holds them as JSON."""
    log = (profile / "profile_qnn.log").read_bytes()
    traces = []
    position = log.find(b'"traceEvents"')
    while position >= 0:
        text = log[log.rindex(b"{", 0, position) :].decode("latin-1")
        trace, end = json.JSONDecoder().raw_decode(text)
        traces.append([_event(event) for event in trace["traceEvents"] if event["ph"] == "X"])
        position = log.find(b'"traceEvents"', position + end)
    return once_a_graph(traces, len(graph_names(profile)))


def _event(event: dict[str, Any]) -> _Event:
    details = event["args"]
    # Thread 0 issues all transfers with DRAM, so it counts each once; others repeat them.
    moved = details["bw_info"] if event["tid"] == 0 else {}
    return _Event(
        op=int(details["id"], 16) & 0xFFFFFFFF,
        start=event["ts"],
        end=event["ts"] + event["dur"],
        computes=details["flags"][0] in COMPUTING,
        dram_bytes=moved.get("dram_read", 0) + moved.get("dram_write", 0),
    )


def _ops(profile: Path, graph: str, model: onnx.ModelProto) -> dict[int, _Op]:
    """The QNN ops of a graph by id, from the schematic and the provider's trace of ops."""
    nodes = {node.name: node for node in model.graph.node if node.name}
    makers = {tensor: node for node in model.graph.node for tensor in node.output}
    trace = json.loads((profile / "qnn_op_trace.json").read_text("utf-8"))
    own = (g for g in trace["subgraph_traces"] if g["graph_name"] == graph)
    mapped = {m["dst_name"]: m for g in own for m in g["op_mappings"]}
    tensors = _output_tensors(profile / f"{graph}.json")
    schematic = (profile / f"{graph}{_SCHEMATIC}").read_bytes()
    ops = {key: _Op(kind, kind) for key, kind in _ends(schematic)}
    for key, name in _names(schematic):
        mapping = mapped.get(name, {"sources": [], "dst_qnn_op_type": "?"})
        sources = [source["name"] for source in mapping["sources"]]
        found = [*(nodes.get(s) for s in sources), _named(name, nodes),
                 *(_named(tensor, makers) for tensor in tensors.get(name, ())),
                 *(_named(s, nodes) for s in sources)]  # fmt: skip
        node = next((node for node in found if node is not None), None)
        ops[key] = _op(mapping["dst_qnn_op_type"], node, is_fused=len(sources) > 1)
    return ops


def _named(name: str, nodes: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The node whose name `name` was made from: what was added is taken off piece by piece.

    `nodes` are by their own names, or by their outputs'.
    """
    while name not in nodes:
        shorter = _ADDED_TO_NAME.sub("", name)
        if shorter == name:
            return None
        name = shorter
    return nodes[name]


def _op(qnn_type: str, node: onnx.NodeProto | None, *, is_fused: bool) -> _Op:
    """Kinds are ONNX ops, but for what stands for several nodes or for none: those are QNN's."""
    if node is None:
        return _Op(f"{qnn_type}, {INSERTED}", INSERTED)
    passes = [p.value for p in node.metadata_props if p.key == PASS_KEY]
    kind = f"{qnn_type}, fused" if is_fused else str(node.op_type)
    return _Op(kind, passes[0] if passes else SOURCE)


def _ends(schematic: bytes) -> Iterator[tuple[int, str]]:
    """(id, kind) of the ops that stand for the graph's inputs and outputs."""
    start = schematic.find(b"graph_before_optimization = {")
    graph = schematic[start : schematic.find(b":::END:graph_before_optimization")]
    pattern = rb"(0x[0-9a-f]+): \{\s*'operation':'q::(Input|Output)'"
    for key, end in re.findall(pattern, graph):
        yield int(key, 16), f"({end.decode().lower()}s of the graph)"


def _names(schematic: bytes) -> Iterator[tuple[int, str]]:
    """(id, name) of the QNN ops. The schematic is mostly text."""
    start = schematic.find(b"qnn_name_translations = {")
    table = schematic[start : schematic.find(b"\n}", start)].decode("utf-8", errors="replace")
    for key, name in re.findall(r"^\s*(0x[0-9a-f]+): '(.*)',?$", table, re.MULTILINE):
        yield int(key, 16), name


def _output_tensors(dump: Path) -> dict[str, list[str]]:
    """The output tensors of each QNN op by its name, from the graph as the provider dumped it."""
    nodes = json.loads(dump.read_text("utf-8"))["graph"]["nodes"]
    return {name: list(node["output_names"]) for name, node in nodes.items()}
