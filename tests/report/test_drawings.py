"""What a rewrite's drawing shows: its nodes, what flows in and out, and masses as one box."""

from itertools import pairwise

import onnx

import compiler
from compiler.diff.recorded import Record
from compiler.diff.side import Side
from compiler.records import read_record
from compiler.report.drawings import MOST_BOXES, draw
from compiler.report.kinds import kinds_of
from compiler.report.stages import read_stages

CHAIN = """g (float[4] x) => (float[4] y) <float[4] w, float half = {0.5}>
{ a = Exp(x) b = Mul(a, w) c = Mul(b, half) y = Relu(c) }"""


def shown(drawing) -> list[tuple[str, str, int]]:
    return [(box.kind, box.title, box.count) for box in drawing.boxes]


def edges(drawing) -> set[tuple[str, str, str]]:
    titles = [box.title for box in drawing.boxes]
    return {(titles[a], titles[b], shape) for a, b, shape in drawing.edges}


def test_a_region_shows_its_cut_and_its_weights(stage_of):
    drawing = draw(stage_of(CHAIN), ["node_b", "node_c"], made={"w": "w₁ · w₂"})
    assert shown(drawing) == [("op", "Mul", 1), ("op", "Mul", 1), ("input", "a", 1),
                              ("output", "c", 1)]  # fmt: skip
    assert [box.lines for box in drawing.boxes[:2]] == [["w₁ · w₂  4"], ["half  0.5"]]
    assert drawing.edges == [(0, 1, "4"), (2, 0, "4"), (1, 3, "4")]


def test_the_rest_of_the_model_is_one_box_between_its_ends(stage_of):
    drawing = draw(stage_of(CHAIN), ["node_a"], rest="the network")
    assert shown(drawing) == [("op", "Exp", 1), ("bulk", "the network", 3), ("input", "x", 1),
                              ("output", "y", 1)]  # fmt: skip
    assert edges(drawing) == {("Exp", "the network", "4"), ("x", "Exp", "4"),
                              ("the network", "y", "4")}  # fmt: skip


def test_a_long_region_ends_in_one_box(stage_of):
    count = MOST_BOXES + 15
    chain = " ".join(f"t{i + 1} = Exp(t{i})" for i in range(count))
    stage = stage_of(f"g (float[4] t0) => (float[4] t{count}) {{ {chain} }}")
    drawing = draw(stage, list(stage.by_name))
    assert len(drawing.boxes) == MOST_BOXES + 3
    assert ("bulk", "and more", 15) in shown(drawing)


def test_many_tensors_that_flow_in_are_one_ellipse(stage_of):
    inputs = ", ".join(f"float[4] x{i}" for i in range(20))
    names = ", ".join(f"x{i}" for i in range(20))
    stage = stage_of(f"g ({inputs}) => (float[80] y) {{ y = Concat <axis = 0> ({names}) }}")
    drawing = draw(stage, ["node_y"])
    assert shown(drawing)[1:] == [("input", "20 tensors", 1), ("output", "y", 1)]


def kinds(built):
    record = read_record(built)
    names = [stage["stage"] for stage in record["stages"]]
    rewrites = Record.read(built, record, names)
    changed = rewrites.changes(Side.load(rewrites.steps[0]))
    return {
        after.name: kinds_of(changes, before, after)
        for (before, after), (_, changes) in zip(
            pairwise(read_stages(built, names)), changed, strict=True
        )
    }


def test_each_kind_of_rewrite_of_a_build_is_drawn(built):
    found = kinds(built)
    assert [len(kind.places) for kind in found["04_split_heads"]] == [4]
    (split,) = found["04_split_heads"]
    assert split.removed.startswith("5 × MatMul")
    # The heads are one branch: six of everything, and the op that joins them.
    assert {(box.title, box.count) for box in split.after.boxes if box.kind == "op"} == {
        ("MatMul", 6), ("Add", 6), ("Transpose", 6), ("Mul", 6), ("Softmax", 6), ("Concat", 1)
    }  # fmt: skip


def test_a_copy_of_the_network_is_one_box(built):
    (flip,) = kinds(built)["05_flip_average"]
    assert flip.removed == "nothing"
    assert flip.added.endswith("and a copy of 425 nodes")
    boxes = [(box.title, box.count) for box in flip.after.boxes if box.kind == "bulk"]
    assert boxes == [("a copy of it", 425), ("the network", 425)]
    assert shown(flip.before) == [("bulk", "the network", 425), ("input", "image", 1),
                                  ("output", "depth", 1)]  # fmt: skip


def canonicalized(model, folder):
    onnx.save(model, folder / "model.onnx")
    compiler.build(str(folder / "model.onnx"), "canonicalize", output=folder / "built",
                   canonicalize=False, allow_noop=True)  # fmt: skip
    return kinds(folder / "built")["01_canonicalize"]


def test_a_node_that_keeps_its_name_is_in_both_drawings(model_of, tmp_path):
    """Only what it reads is new: the record names neither an old nor a new node."""
    (kind,) = canonicalized(model_of("""g (float[n,6] x) => (float[n,2,3] y) <int64[1] rest = {6},
    int64[1] zero = {0}, int64[1] one = {1}, int64[2] cut = {2, 3}>
    { s = Shape(x) n = Slice(s, zero, one, zero) t = Concat <axis = 0> (n, cut) y = Reshape(x, t) }
    """), tmp_path)  # fmt: skip
    assert kind.removed.endswith("Reshape")
    assert kind.added == "Reshape"
    (box,) = [box for box in kind.after.boxes if box.kind == "op"]
    assert box.lines[0].endswith("[0, 2, 3]")
    assert [box.title for box in kind.before.boxes if box.kind == "op"][-1] == "Reshape"


def test_a_region_without_a_node_is_its_outputs(model_of, tmp_path):
    (kind,) = canonicalized(model_of("""g (float[2,3] x) => (float[2,3] y, int64[2] shape)
    { y = Relu(x) shape = Shape(x) }"""), tmp_path)  # fmt: skip
    assert (kind.removed, kind.added) == ("Shape", "nothing")
    assert shown(kind.after) == [("output", "shape, without a node", 1)]
