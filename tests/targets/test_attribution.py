"""Where the simulated time goes: every cycle once, to the right op and the right pass."""

import json

import onnx
import pytest
import small_depth
from targets.test_htp import MLP, mlp, needs_wheel  # noqa: F401

import compiler
from compiler.targets.attribution import INSERTED, NOT_ATTRIBUTED, SOURCE, _named, attribute
from compiler.targets.chips import CHIPS
from compiler.targets.htp import estimate

KEYS = {"MatMul": 0x11, "Relu": 0x13, "Copy": 0x15}
SHIFTED = {"Relu": 0x11, "MatMul": 0x15}
CUT = """a = MatMul(x, w) b = Relu(a) c = Asinh(b) d = MatMul(c, w) e = Relu(d) f = Asinh(e)
    h = MatMul(f, w) y = Relu(h)"""


def event(op, engine, start, cycles, *, tid=1, dram=0):
    moved = {"dram_read": dram, "dram_write": 0, "vtcm_read": 0, "vtcm_write": 0, "is_dma": 1}
    return {"name": op, "ph": "X", "tid": tid, "ts": start, "dur": cycles,
            "args": {"id": hex(7 << 32 | KEYS.get(op, 0x99)), "flags": [engine],
                     "bw_info": moved}}  # fmt: skip


@pytest.fixture
def profile(tmp_path):
    """A profile's folder as the provider leaves it, around the events of made-up graphs."""

    def write(*graphs):
        log = b""
        traces = [trace for trace in graphs for _ in range(2)][:-1]
        for events in traces:
            trace = {"traceEvents": [*events, {"name": "TCM usage", "ph": "C", "ts": 0}]}
            log += b"\x01\xff{ \n  " + json.dumps(trace).encode()[1:] + b"\x00tail"
        (tmp_path / "profile_qnn.log").write_bytes(log)
        mapped = [
            {"dst_name": "MatMul", "dst_qnn_op_type": "FullyConnected", "sources": [{"name": "m"}]},
            {"dst_name": "Relu", "dst_qnn_op_type": "Relu", "sources": [{"name": "r_token_3"}]},
            {"dst_name": "Copy", "dst_qnn_op_type": "Cast", "sources": [{"name": "Cast_token_9"}]},
        ]
        # The last graph has ids of its own: the same number is another op there.
        keys = [KEYS] * (len(graphs) - 1) + [KEYS if len(graphs) == 1 else SHIFTED]
        for number, known in enumerate(keys):
            names = ",\n".join(f"0x{key:016x}: '{op}'" for op, key in known.items())
            schematic = f"x = {{\n}}\nqnn_name_translations = {{\n{names},\n}} # end\n\x00"
            (tmp_path / f"graph_{9 + number}_schematic.bin").write_bytes(schematic.encode())
            (tmp_path / f"graph_{9 + number}.json").write_text('{"graph": {"nodes": {}}}')
        parts = [{"graph_name": f"graph_{9 + n}", "op_mappings": mapped} for n in range(len(keys))]
        record = {"subgraph_traces": parts, "unsupported_nodes": []}
        (tmp_path / "qnn_op_trace.json").write_text(json.dumps(record))
        model = onnx.parser.parse_model(
            MLP.replace("a = MatMul", "[m] a = MatMul").replace("b = Relu", "[r] b = Relu")
        )
        property_ = model.graph.node[1].metadata_props.add()
        property_.key, property_.value = "compiler.pass", "my_pass"
        onnx.save(model, tmp_path / "model.onnx")
        return tmp_path, tmp_path / "model.onnx"

    return write


def ms(shares):
    return {share.name: (share.ms, share.waiting_ms) for share in shares}


def test_ops_that_compute_at_once_share_a_cycle(profile):
    found = attribute(
        *profile([event("MatMul", "uses_hmx", 0, 60), event("Relu", "for_hvx", 20, 80)]), [1.0]
    )
    assert ms(found.by_op) == {
        "MatMul": (pytest.approx(0.4), 0.0),
        "Relu": (pytest.approx(0.6), 0.0),
        NOT_ATTRIBUTED: (pytest.approx(0.0), 0.0),
    }
    assert ms(found.by_pass) == {
        SOURCE: (pytest.approx(0.4), 0.0),
        "my_pass": (pytest.approx(0.6), 0.0),
        NOT_ATTRIBUTED: (pytest.approx(0.0), 0.0),
    }


def test_a_transfer_costs_only_where_nothing_computes(profile):
    found = attribute(
        *profile([event("MatMul", "uses_hmx", 0, 50), event("Relu", "for_dma", 30, 70)]), [2.0]
    )
    assert ms(found.by_op)["Relu"] == (pytest.approx(1.0), pytest.approx(1.0))
    assert ms(found.by_op)["MatMul"] == (pytest.approx(1.0), 0.0)


def test_idle_cycles_and_unknown_ops_are_nobodys(profile):
    found = attribute(
        *profile([event("MatMul", "uses_hmx", 0, 50), event("Odd", "for_hvx", 70, 30)]), [1.0]
    )
    assert found.unattributed_ms == pytest.approx(0.5)
    assert sum(share.ms for share in found.by_op) == pytest.approx(1.0)


def test_what_stands_for_no_node_was_inserted(profile):
    found = attribute(*profile([event("Copy", "for_hvx", 0, 10)]), [1.0])
    assert ms(found.by_op)[f"Cast, {INSERTED}"][0] == pytest.approx(1.0)
    assert ms(found.by_pass)[INSERTED][0] == pytest.approx(1.0)


def test_bytes_are_counted_where_a_transfer_is_issued(profile):
    found = attribute(*profile([
        event("MatMul", "scalar", 0, 1, tid=0, dram=4096),
        event("MatMul", "for_dma", 1, 9, tid=5, dram=4096),
    ]), [1.0])  # fmt: skip
    assert [share.dram_bytes for share in found.by_op] == [4096, 0]


def test_each_part_between_nodes_on_the_cpu_has_its_own_trace_and_ids(profile):
    parts = [[event("MatMul", "for_hvx", 0, 10)], [event("MatMul", "for_hvx", 0, 70)]]
    found = attribute(*profile(*parts), [1.0, 3.0])
    assert ms(found.by_op)["MatMul"][0] == pytest.approx(1.0)
    assert ms(found.by_op)["Relu"][0] == pytest.approx(3.0)


@needs_wheel
def test_the_parts_between_nodes_on_the_cpu_add_up(tmp_path):
    weights = ",".join(str(i % 7 - 3) for i in range(32 * 32))
    estimates = []
    for number, body in enumerate(("a = MatMul(x, w) y = Relu(a)", CUT)):
        text = f"""<ir_version: 10, opset_import: ["": 17]>
        g (float[1,64,32] x) => (float[1,64,32] y) <float[32,32] w = {{{weights}}}> {{ {body} }}"""
        onnx.save(onnx.parser.parse_model(text), tmp_path / f"{number}.onnx")
        estimates.append(estimate(tmp_path / f"{number}.onnx", CHIPS["iq-9075"]))
    one, three = estimates
    assert [node.op for node in three.cpu_nodes] == ["Asinh", "Asinh"]
    assert three.latency_ms == pytest.approx(3 * one.latency_ms, rel=0.1)
    assert three.fill_bytes > 2 * one.fill_bytes
    shares = {share.name: share.ops for share in three.attribution.by_op}
    assert (shares["MatMul"], shares["Relu"]) == (3, 3)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("/attn/MatMul/MatMulAddFusion_2", "/attn/MatMul"),
        ("node_Conv_662_token_1570", "node_Conv_662"),
        ("y_reshape_2", "y"),
        ("Transpose_token_7", None),
    ],
)
def test_what_is_added_to_names_is_taken_off(name, found):
    nodes = {n: n for n in ("/attn/MatMul", "node_Conv_662", "node_Conv", "y")}
    assert _named(name, nodes) == found


@needs_wheel
def test_a_real_simulation_is_given_away_whole(mlp):  # noqa: F811
    found = estimate(mlp, CHIPS["iq-9075"])
    for table in (found.attribution.by_op, found.attribution.by_pass):
        assert sum(share.ms for share in table) == pytest.approx(found.latency_ms)
    assert {share.name for share in found.attribution.by_op} >= {"MatMul", "Relu"}


@needs_wheel
def test_a_build_shows_where_each_pass_spends_its_time(tmp_path):
    record = compiler.build(
        str(small_depth.write(tmp_path)), "split_heads", output=tmp_path / "build",
        estimate="iq-9075", verify="none",
    )  # fmt: skip
    last = record["stages"][-1]["estimate"]
    by_pass = {share["name"]: share["ms"] for share in last["attribution"]["by_pass"]}
    assert by_pass["split_heads"] > 0.1 * last["latency_ms"]
    traffic = sum(share["dram_bytes"] for share in last["attribution"]["by_op"])
    assert traffic == pytest.approx(last["fill_bytes"] + last["spill_bytes"], rel=0.05)
    assert last["attribution"]["unattributed_ms"] < 0.1 * last["latency_ms"]
