"""A graph falls apart where it is narrow, and the worst layers are found by bisection."""

import pytest

from compiler.graph import Graph
from compiler.quantize.layers import layers_of
from compiler.quantize.search import fewest_spared, worst_first

RESIDUAL = """
    a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) r = Add(x, c)
    d = MatMul(r, w) e = Relu(d) f = MatMul(e, v) s = Add(r, f)
    h = MatMul(s, w) i = Relu(h) j = MatMul(i, v) y = Add(s, j)
"""


def test_a_residual_network_is_cut_behind_its_sums(graph_of):
    graph = graph_of(
        f"g (float[5,4] x) => (float[5,4] y) <float[4,64] w, float[64,4] v> {{ {RESIDUAL} }}"
    )
    layers = layers_of(graph, 3)
    outputs = {node.name: node.outputs[0].name for node in graph.nodes}
    assert [[outputs[name] for name in layer.nodes][-1] for layer in layers] == ["r", "s", "y"]


@pytest.mark.parametrize("most", [1, 2, 5, 16, 500])
def test_every_node_is_in_one_layer(depth_model, most):
    graph = Graph.load(depth_model)
    layers = layers_of(graph, most)
    assert len(layers) == min(most, len(graph.nodes))
    assert [name for layer in layers for name in layer.nodes] == [n.name for n in graph.nodes]


def test_layers_are_called_what_the_exporter_called_them(depth_model):
    titles = [layer.title for layer in layers_of(Graph.load(depth_model))]
    assert "network.backbone.encoder.layer.1.attention" in titles


def test_without_a_name_it_is_the_first_node_and_the_last(graph_of):
    graph = graph_of("g (float[2] x) => (float[2] y) { a = Relu(x) y = Tanh(a) }")
    first, last = graph.nodes
    assert [layer.title for layer in layers_of(graph, 1)] == [f"{first.name} … {last.name}"]


@pytest.mark.parametrize("needed", range(1, 8))
def test_the_fewest_that_meet_the_bound(needed):
    asked = []

    def is_met(count):
        asked.append(count)
        return count >= needed

    assert fewest_spared(1, 7, is_met) == needed
    assert len(asked) <= 3


def test_the_worst_layer_comes_first_and_equals_keep_their_order():
    assert worst_first([0.1, 0.3, 0.1, 0.2]) == [1, 3, 0, 2]
