"""Equal branches are drawn once; what differs in anything that matters is not."""

from compiler.report.folding import folded

HEAD = """
    q{0} = MatMul(x, wq{0})
    k{0} = MatMul(x, wk{0})
    t{0} = Transpose <perm = [1, 0]> (k{0})
    s{0} = MatMul(q{0}, t{0})
    p{0} = Softmax <axis = {axis}> (s{0})
    o{0} = MatMul(p{0}, x)
"""


def heads(count: int, joined: str, axis: tuple[int, ...] = (-1, -1, -1)) -> str:
    weights = ", ".join(f"float[4,4] wq{i}, float[4,4] wk{i}" for i in range(count))
    branches = "".join(HEAD.format(i, axis=axis[i]) for i in range(count))
    return f"g (float[4,4] x) => (float[4,n] y) <{weights}> {{ {branches} {joined} }}"


def classes(stage) -> list[tuple[str, int]]:
    return [(group.nodes[0].op, len(group.nodes)) for group in folded(stage.nodes, stage)]


def test_nothing_is_folded_in_a_chain(stage_of):
    stage = stage_of("g (float[4] x) => (float[4] y) { a = Exp(x) b = Exp(a) y = Exp(b) }")
    assert classes(stage) == [("Exp", 1), ("Exp", 1), ("Exp", 1)]


def test_heads_that_are_joined_are_one(stage_of):
    stage = stage_of(heads(3, "y = Concat <axis = 1> (o0, o1, o2)"))
    assert classes(stage) == [("MatMul", 3), ("MatMul", 3), ("Transpose", 3), ("MatMul", 3),
                              ("Softmax", 3), ("MatMul", 3), ("Concat", 1)]  # fmt: skip


def test_query_and_key_stay_two_because_they_are_used_differently(stage_of):
    stage = stage_of(heads(1, "y = Identity(o0)"))
    assert [count for _, count in classes(stage)] == [1] * 7


def test_the_two_sides_of_a_difference_stay_two(stage_of):
    stage = stage_of("g (float[4] x) => (float[4] y) { u = Exp(x) v = Exp(x) y = Sub(u, v) }")
    assert classes(stage) == [("Exp", 1), ("Exp", 1), ("Sub", 1)]


def test_heads_that_are_added_are_one_and_so_is_their_sum(stage_of):
    stage = stage_of(heads(3, "a = Add(o0, o1) y = Add(a, o2)"))
    assert classes(stage)[-2:] == [("MatMul", 3), ("Add", 2)]
    assert ("Softmax", 3) in classes(stage)


def test_a_head_with_another_attribute_is_drawn_apart(stage_of):
    stage = stage_of(heads(3, "y = Concat <axis = 1> (o0, o1, o2)", axis=(-1, -1, 0)))
    assert [c for c in classes(stage) if c[0] == "Softmax"] == [("Softmax", 2), ("Softmax", 1)]


def test_branches_of_other_sizes_are_drawn_apart(stage_of):
    stage = stage_of("""g (float[4,4] x) => (float[4,n] y) <float[4,2] a, float[4,3] b>
    { u = MatMul(x, a) v = MatMul(x, b) y = Concat <axis = 1> (u, v) }""")
    assert classes(stage) == [("MatMul", 1), ("MatMul", 1), ("Concat", 1)]


def test_a_branch_that_is_also_read_elsewhere_is_drawn_apart(stage_of):
    stage = stage_of("""g (float[4] x) => (float[8] y, float[4] u)
    { u = Exp(x) v = Exp(x) y = Concat <axis = 0> (u, v) }""")
    assert classes(stage) == [("Exp", 1), ("Exp", 1), ("Concat", 1)]


def test_a_sum_that_something_else_reads_is_its_own_box(stage_of):
    stage = stage_of("""g (float[4] x) => (float[4] y, float[4] z)
    { a = Exp(x) b = Neg(x) s = Add(a, b) y = Add(s, x) z = Relu(s) }""")
    assert classes(stage) == [("Exp", 1), ("Neg", 1), ("Add", 1), ("Add", 1), ("Relu", 1)]


def test_a_sum_that_is_an_output_is_its_own_box(stage_of):
    stage = stage_of("""g (float[4] x) => (float[4] y, float[4] s)
    { a = Exp(x) b = Neg(x) s = Add(a, b) y = Add(s, x) }""")
    assert classes(stage)[-2:] == [("Add", 1), ("Add", 1)]
