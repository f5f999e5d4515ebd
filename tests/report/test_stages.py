"""What the report knows of a node: its module, its provenance, shapes and small constants."""

from compiler.report.stages import read_stages

NAMES = ["00_source", "01_canonicalize", "02_insert_resize", "03_fold_norm", "04_split_heads",
         "05_flip_average"]  # fmt: skip


def test_a_node_that_a_pass_made_is_in_the_module_of_what_it_was_made_from(built):
    *_, split, flipped = read_stages(built, NAMES)
    made = [node for node in split.nodes if node.made_by == "split_heads" and node.op == "Softmax"]
    assert len(made) == 24
    assert {node.scope for node in made} == {
        f"network.backbone.encoder.layer.{i}.attention" for i in range(4)
    }
    # Later stages keep it there, and put copies beside it.
    again = [flipped.by_name[node.name].scope for node in made]
    assert again == [node.scope for node in made]
    copies = [n for n in flipped.nodes if n.op == "Softmax" and n.made_by == "flip_average"]
    assert {node.scope for node in copies} == {
        f"flip_average/network.backbone.encoder.layer.{i}.attention" for i in range(4)
    }


def test_small_constants_are_known_by_value_and_weights_by_type(stage_of):
    stage = stage_of("""g (float[2,3] x) => (float[n,m] y)
    <float[3] gain, float[3,64] w, float half = {0.5}, int64[2] shape = {16, 8}>
    { g = Mul(x, gain) a = MatMul(g, w) b = Mul(a, half) y = Reshape(b, shape) }""")
    assert stage.constants == {"gain": "", "w": "", "half": "0.5", "shape": "[16, 8]"}
    assert (stage.types["w"], stage.types["a"]) == ("float[3×64]", "float[2×64]")


def test_the_value_of_a_constant_node_is_known(stage_of):
    stage = stage_of("""g (float[2,3] x) => (float[3,2] y)
    { shape = Constant <value = int64[2] {3, 2}> () y = Reshape(x, shape) }""")
    assert stage.constants == {"shape": "[3, 2]"}


def test_dynamic_sizes_keep_their_names(stage_of):
    stage = stage_of("g (float[batch,3] x) => (float[batch,3] y) { y = Relu(x) }")
    assert stage.types["x"] == "float[batch×3]"
