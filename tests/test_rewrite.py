"""What the driver removes, keeps, names and records when it applies a rewrite."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import onnx
import pytest

from compiler.graph import PASS_KEY, REWRITE_KEY, SOURCES_KEY, Graph, Tensor
from compiler.rewrite import (
    MORE,
    MOST_NAMES,
    ORIGIN_KEY,
    PASSES_KEY,
    Builder,
    LocalPass,
    Replacement,
    apply_pass,
    few_names,
)
from compiler.verify.proof import prove


@dataclass(frozen=True)
class Place:
    place: str


@dataclass(frozen=True)
class Replace(LocalPass[Place]):
    """Replaces the tensors that `places` names by what `new` makes of the graph's tensors."""

    places: tuple[str, ...]
    new: Callable[[Builder, dict[str, Tensor]], Iterable[Tensor]]
    refused: str = ""
    contract = "algebraic"

    def match(self, graph: Graph) -> Iterable[Place]:
        return [Place(self.places[0])]

    def guard(self, graph: Graph, match: Place) -> str | None:
        return self.refused or None

    def rewrite(self, graph: Graph, match: Place) -> Replacement:
        builder, tensors = Builder(graph, match.place), graph.ir.tensors()
        made = self.new(builder, tensors)
        return Replacement(
            builder, [(tensors[o], n) for o, n in zip(self.places, made, strict=True)]
        )


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def twice(builder: Builder, tensors: dict[str, Tensor], name: str = "x") -> list[Tensor]:
    """2·x as x + x."""
    return [builder.node("Add", [tensors[name], tensors[name]], shape(tensors[name]))]


DOUBLED = "<float two = {2}> { y = Mul(x, two) }"


def test_a_rewrite_and_its_record(graph_of):
    graph = graph_of(f"g (float[3] x) => (float[3] y) {DOUBLED}")
    pass_ = Replace(("y",), twice)
    done = apply_pass(graph, pass_)
    (rewrite,) = done.rewrites
    assert ops(graph) == ["Add"]
    assert [t.name for t in graph.outputs] == ["y"]
    assert graph.nodes[0].outputs[0] is graph.outputs[0]
    assert rewrite.title == "test_rewrite#0 at y"
    assert ([n.op_type for n in rewrite.old.nodes], [n.op_type for n in rewrite.new.nodes]) == (
        ["Mul"], ["Add"]
    )  # fmt: skip
    assert list(rewrite.old.inputs) == list(rewrite.new.inputs) == ["x"]
    assert list(rewrite.old.outputs) == list(rewrite.new.outputs) == ["y"]
    assert list(rewrite.old.constants) == ["two"]
    assert prove(rewrite, pass_).status == "pass"


def test_a_wrong_rewrite_is_caught(graph_of):
    graph = graph_of("g (float[3] x) => (float[3] y) <float k = {2.02}> { y = Mul(x, k) }")
    pass_ = Replace(("y",), twice)
    (rewrite,) = apply_pass(graph, pass_).rewrites
    assert prove(rewrite, pass_).status == "fail"


def test_a_refusal_is_recorded_and_changes_nothing(graph_of):
    graph = graph_of(f"g (float[3] x) => (float[3] y) {DOUBLED}")
    before = graph.to_model()
    done = apply_pass(graph, Replace(("y",), twice, refused="'two' is not three"))
    assert [(r.place, r.reason) for r in done.refusals] == [("y", "'two' is not three")]
    assert done.rewrites == []
    assert graph.to_model() == before


# -- dead nodes ------------------------------------------------------------------------------------


def test_what_only_the_old_nodes_needed_goes(graph_of):
    graph = graph_of(
        """g (float[3] x) => (float[3] y) <float two = {2}>
        { a = Neg(x) b = Neg(a) c = Mul(b, two) y = Relu(c) }"""
    )
    (rewrite,) = apply_pass(graph, Replace(("c",), twice)).rewrites
    assert ops(graph) == ["Add", "Relu"]
    assert [n.op_type for n in rewrite.old.nodes] == ["Neg", "Neg", "Mul"]


def test_what_others_need_stays(graph_of):
    graph = graph_of(
        """g (float[3] x) => (float[3] y, float[3] a) <float two = {2}>
        { a = Neg(x) b = Neg(a) c = Mul(b, two) d = Add(c, b) y = Relu(d) }"""
    )
    (rewrite,) = apply_pass(graph, Replace(("c",), twice)).rewrites
    assert ops(graph) == ["Neg", "Neg", "Add", "Add", "Relu"]
    assert [n.op_type for n in rewrite.old.nodes][-1] == "Mul"
    assert prove(rewrite, Replace(("c",), twice)).status == "pass"


def test_what_the_new_nodes_read_stays(graph_of):
    def of_b(builder: Builder, tensors: dict[str, Tensor]) -> list[Tensor]:
        return twice(builder, tensors, "b")

    graph = graph_of(
        """g (float[3] x) => (float[3] y) <float two = {2}>
        { a = Neg(x) b = Neg(a) c = Mul(b, two) y = Relu(c) }"""
    )
    (rewrite,) = apply_pass(graph, Replace(("c",), of_b)).rewrites
    assert ops(graph) == ["Neg", "Neg", "Add", "Relu"]
    assert [n.op_type for n in rewrite.old.nodes] == ["Mul"]


def test_a_node_with_another_output_in_use_stays(graph_of):
    def of_part(builder: Builder, tensors: dict[str, Tensor]) -> list[Tensor]:
        return twice(builder, tensors, "p")

    graph = graph_of(
        """g (float[4] x) => (float[2] y, float[2] q) <float two = {2}>
        { p, q = Split<num_outputs=2>(x) y = Mul(p, two) }"""
    )
    apply_pass(graph, Replace(("y",), of_part))
    assert ops(graph) == ["Split", "Add"]


def test_a_branch_keeps_what_it_captures(graph_of):
    graph = graph_of(
        """g (float[3] x, bool c) => (float[3] y, float[3] z) <float two = {2}>
        { a = Neg(x) b = Neg(a) z = Mul(b, two)
          y = If(c) <then_branch = t () => (float[3] u) { u = Relu(a) },
                     else_branch = e () => (float[3] v) { v = Abs(a) }> }"""
    )
    apply_pass(graph, Replace(("z",), twice))
    assert sorted(ops(graph)) == ["Add", "If", "Neg"]


def test_a_tensor_that_the_new_nodes_wrap_lives_on(graph_of):
    """As the declared passes do it: what the network gave goes on under another name."""

    def wrapped(builder: Builder, tensors: dict[str, Tensor]) -> list[Tensor]:
        return [builder.node("Relu", [tensors["y"]], (3,))]

    graph = graph_of(f"g (float[3] x) => (float[3] y) {DOUBLED}")
    apply_pass(graph, Replace(("y",), wrapped))
    assert [(n.op, n.inputs[0].name, n.outputs[0].name) for n in graph.nodes] == [
        ("Mul", "x", "y/inner"), ("Relu", "y/inner", "y")
    ]  # fmt: skip
    assert graph.nodes[1].outputs[0] is graph.outputs[0]


EXISTING = {
    "an input of what goes": ("a", ["Relu", "Identity", "Abs"]),
    "a model's input": ("x", ["Identity", "Abs"]),
    "a constant": ("k", ["Identity", "Abs"]),
}


@pytest.mark.parametrize("case", EXISTING)
def test_a_tensor_that_is_there_already_takes_the_place_of_another(graph_of, case):
    """As passes do it that drop a node."""

    def existing(_builder: Builder, tensors: dict[str, Tensor]) -> list[Tensor]:
        return [tensors[EXISTING[case][0]]]

    graph = graph_of(
        """g (float[3] x) => (float[3] y) <float[3] k = {1, 2, 3}>
        { a = Relu(x) b = Add(a, k) y = Abs(b) }"""
    )
    (rewrite,) = apply_pass(graph, Replace(("b",), existing)).rewrites
    assert ops(graph) == EXISTING[case][1]
    onnx.checker.check_model(graph.to_model(), full_check=True)
    assert rewrite.title == "test_rewrite#0 at b"


def test_new_nodes_that_nothing_needs_are_forgotten(graph_of):
    def wasteful(builder: Builder, tensors: dict[str, Tensor]) -> list[Tensor]:
        builder.node("Exp", [tensors["x"]], (3,))
        return twice(builder, tensors)

    graph = graph_of(f"g (float[3] x) => (float[3] y) {DOUBLED}")
    apply_pass(graph, Replace(("y",), wasteful))
    assert ops(graph) == ["Add"]
    assert [user.op for user in graph.inputs[0].outputs] == ["Add", "Add"]


# -- names and order -------------------------------------------------------------------------------


def test_names_of_outputs_survive(graph_of):
    """Two outputs replaced at once, each under its own name and in its own place."""

    def both(builder: Builder, tensors: dict[str, Tensor]) -> list[Tensor]:
        x = tensors["x"]
        return [builder.node("Add", [x, x], (3,)), builder.node("Neg", [x], (3,))]

    graph = graph_of(
        """g (float[3] x) => (float[3] y, float[3] z) <float two = {2}, float minus = {-1}>
        { y = Mul(x, two) z = Mul(x, minus) }"""
    )
    pass_ = Replace(("y", "z"), both)
    (rewrite,) = apply_pass(graph, pass_).rewrites
    assert [(n.op, n.outputs[0].name) for n in graph.nodes] == [("Add", "y"), ("Neg", "z")]
    assert [t.name for t in graph.outputs] == ["y", "z"]
    assert prove(rewrite, pass_).status == "pass"


def test_every_consumer_reads_the_new_tensor_under_the_old_name(graph_of):
    graph = graph_of(
        """g (float[3] x) => (float[3] y, float[3] z, float[3] c) <float two = {2}>
        { c = Mul(x, two) y = Relu(c) z = Add(c, c) }"""
    )
    apply_pass(graph, Replace(("c",), twice))
    assert [(n.op, [t.name for t in n.inputs]) for n in graph.nodes] == [
        ("Add", ["x", "x"]), ("Relu", ["c"]), ("Add", ["c", "c"])
    ]  # fmt: skip


def test_new_nodes_stand_where_the_old_ones_stood(graph_of):
    graph = graph_of(
        """g (float[3] x) => (y, z) <float two = {2}>
        { a = Neg(x) c = Mul(x, two) b = Exp(a) y = Add(b, a) z = Abs(c) }"""
    )
    apply_pass(graph, Replace(("c",), twice))
    assert ops(graph) == ["Neg", "Add", "Exp", "Add", "Abs"]


# -- provenance ------------------------------------------------------------------------------------


def metadata(graph: Graph) -> list[dict[str, str]]:
    return [{p.key: p.value for p in n.metadata_props} for n in graph.to_model().graph.node]


def test_new_nodes_say_where_they_come_from(graph_of):
    def chain(builder: Builder, tensors: dict[str, Tensor]) -> list[Tensor]:
        mul = tensors["y"].inputs[0]
        half = builder.node("Identity", [tensors["x"]], (3,), source=mul)
        return [builder.node("Add", [half, tensors["x"]], (3,))]

    graph = graph_of(
        "g (float[3] x) => (float[3] y) <float two = {2}> { a = Neg(x) b = Neg(a) y = Mul(b, two) }"
    )
    apply_pass(graph, Replace(("y",), chain))
    made = {PASS_KEY: "test_rewrite", REWRITE_KEY: "test_rewrite#0",
            PASSES_KEY: "test_rewrite#0"}  # fmt: skip
    assert metadata(graph) == [
        made | {SOURCES_KEY: "Mul_y", ORIGIN_KEY: "Mul_y"},
        made | {SOURCES_KEY: "Neg_a Neg_b Mul_y", ORIGIN_KEY: "Neg_a Neg_b Mul_y"},
    ]


def test_untouched_nodes_keep_their_metadata(graph_of):
    graph = graph_of("g (float[3] x) => (y) <float two = {2}> { c = Mul(x, two) y = Relu(c) }")
    graph.nodes[1].metadata = {"namespace": "encoder"}
    apply_pass(graph, Replace(("c",), twice))
    assert metadata(graph)[1] == {"namespace": "encoder"}


def test_a_node_made_of_a_whole_network_names_some_of_it(graph_of):
    """A few thousand names in each of a few thousand nodes would be larger than the weights."""
    count = 3 * MOST_NAMES
    steps = " ".join(f"t{k + 1} = Neg(t{k})" for k in range(count))
    graph = graph_of(f"g (float[3] t0) => (float[3] y) {{ {steps} y = Relu(t{count}) }}")
    apply_pass(graph, Replace((f"t{count}",), partial(twice, name="t0")))
    apply_pass(graph, Replace(("y",), partial(twice, name="t0")))
    (said,) = metadata(graph)
    assert len(said[SOURCES_KEY].split()) == 2, "the Add of the first rewrite, and the Relu"
    first = [f"Neg_t{k + 1}" for k in range(MOST_NAMES)]
    assert said[ORIGIN_KEY].split() == [*first, MORE]


def test_few_names_are_whole():
    names = [str(k) for k in range(MOST_NAMES + 1)]
    assert few_names(names[:-1]).split() == names[:-1]
    assert few_names(names).split() == [*names[:-1], MORE]
    assert few_names([*names[:2], MORE, "last"]).split() == [*names[:2], "last", MORE]


# -- what is in no reach ---------------------------------------------------------------------------

IF = """c = If(k) <then_branch = t () => (float[3] o) { o = Mul(x, two) },
                  else_branch = e () => (float[3] p) { p = Neg(x) }>"""


@dataclass(frozen=True)
class ReplaceInBody(Replace):
    """Replaces what the first node of the first node's first body computes."""

    def rewrite(self, graph: Graph, match: Place) -> Replacement:
        builder, body = Builder(graph, match.place), next(graph.nodes[0].subgraphs())
        (made,) = self.new(builder, graph.ir.tensors())
        return Replacement(builder, [(body.nodes[0].outputs[0], made)])


def test_what_a_body_computes_is_refused_and_leaves_no_trace(graph_of):
    graph = graph_of(
        f"g (float[3] x, bool k) => (float[3] y) <float two = {{2}}> {{ {IF} y = Relu(c) }}"
    )
    readers = len(graph.inputs[0].outputs)
    (refused,) = apply_pass(graph, ReplaceInBody(("o",), twice)).refusals
    assert refused.reason == "'o' is computed in the body of an If, Loop or Scan: it stays"
    assert (ops(graph), len(graph.inputs[0].outputs)) == (["If", "Relu"], readers)
    onnx.checker.check_model(graph.to_model(), full_check=True)


# -- the cut ---------------------------------------------------------------------------------------


def test_cut_tensors_that_depend_on_each_other(graph_of):
    """x² = |x|·|x| holds because `a` is |x|: with independent values it would not."""

    def square(builder: Builder, tensors: dict[str, Tensor]) -> list[Tensor]:
        return [builder.node("Mul", [tensors["a"], tensors["a"]], (3,))]

    graph = graph_of("g (float[3] x) => (y, z) { a = Abs(x) y = Mul(x, x) z = Relu(a) }")
    pass_ = Replace(("y",), square)
    (rewrite,) = apply_pass(graph, pass_).rewrites
    assert prove(rewrite, pass_).status == "pass"
    assert list(rewrite.old.inputs) == ["x"]
    assert list(rewrite.new.inputs) == ["x"]
    assert [n.op_type for n in rewrite.new.nodes] == ["Abs", "Mul"]


def test_cut_tensors_that_depend_on_each_other_and_on_more(graph_of):
    """max(|x| + |w|, x) is |x| + |w|: behind the cut there is `w` as well."""

    def same(builder: Builder, tensors: dict[str, Tensor]) -> list[Tensor]:
        return [builder.node("Identity", [tensors["a"]], (3,))]

    graph = graph_of(
        """g (float[3] x, float[3] w) => (y, z)
        { b = Abs(x) d = Abs(w) a = Add(b, d) y = Max(a, x) z = Relu(a) }"""
    )
    pass_ = Replace(("y",), same)
    (rewrite,) = apply_pass(graph, pass_).rewrites
    assert prove(rewrite, pass_).status == "pass"
    assert sorted(rewrite.old.inputs) == ["w", "x"]


def test_a_fault_behind_shared_context_is_caught(graph_of):
    def cube(builder: Builder, tensors: dict[str, Tensor]) -> list[Tensor]:
        return [builder.node("Mul", [tensors["a"], tensors["x"]], (3,))]

    graph = graph_of("g (float[3] x) => (y, z) { a = Abs(x) y = Mul(x, x) z = Relu(a) }")
    pass_ = Replace(("y",), cube)
    (rewrite,) = apply_pass(graph, pass_).rewrites
    assert prove(rewrite, pass_).status == "fail"


def test_tensors_of_constants_alone_are_not_drawn(graph_of):
    """`r` is a range: any other indices would be no indices at all."""

    def whole(builder: Builder, tensors: dict[str, Tensor]) -> list[Tensor]:
        return [builder.node("Identity", [tensors["x"]], (3, 2))]

    graph = graph_of(
        """g (float[3,2] x) => (float[3,2] y, int64[3] r)
        <int64 zero = {0}, int64 three = {3}, int64 one = {1}>
        { r = Range(zero, three, one) y = Gather(x, r) }"""
    )
    pass_ = Replace(("y",), whole)
    (rewrite,) = apply_pass(graph, pass_).rewrites
    assert prove(rewrite, pass_).status == "pass"
    assert list(rewrite.old.inputs) == ["x"]


def test_independent_cut_tensors_are_drawn_on_their_own(graph_of):
    """`a` and `b` come from one input; drawn at the cut they show what `x` may hide."""

    def wrong(builder: Builder, tensors: dict[str, Tensor]) -> list[Tensor]:
        return [builder.node("Add", [tensors["a"], tensors["a"]], (3,))]

    graph = graph_of("g (float[3] x) => (y, a, b) { a = Relu(x) b = Relu(x) y = Add(a, b) }")
    pass_ = Replace(("y",), wrong)
    (rewrite,) = apply_pass(graph, pass_).rewrites
    assert sorted(rewrite.old.inputs) == ["a", "b"]
    assert prove(rewrite, pass_).status == "fail"


@pytest.mark.parametrize("count", [1, 3])
def test_copies_of_a_node_keep_its_attributes_and_left_out_outputs(graph_of, count):
    graph = graph_of(
        """g (float[2,4] x) => (y) <float[4] g>
        { y, , d = LayerNormalization<axis=-1, epsilon=0.01>(x, g) }"""
    )
    builder = Builder(graph, "copy")
    twins = [builder.copy(graph.nodes[0], graph.nodes[0].inputs) for _ in range(count)]
    for twin in twins:
        assert twin.attrs == graph.nodes[0].attrs
        assert [bool(t.name) for t in twin.outputs] == [True, False, True]
    names = [t.name for twin in twins for t in twin.outputs if t.name]
    assert len(set(names)) == len(names)
