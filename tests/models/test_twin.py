"""The weight twin: reproducible, and no path of the network asleep."""

import math

import pytest
import torch

from models.depth_anything import DepthMap, empty_network
from models.images import load_image, sample_image
from models.twin import twin_state_dict
from models.variants import VARIANTS


def twin_network(name: str, seed: int = 0):
    network = empty_network(VARIANTS[name])
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    network.load_state_dict(twin_state_dict(shapes, seed), assign=True)
    return network


def photo(side: int) -> torch.Tensor:
    return torch.from_numpy(load_image(sample_image(), side, side))


@torch.no_grad()
def attention_figures(network, side: int):
    """Run the photo; per layer: entropy over log N, and the logits' std along keys."""
    figures = []

    def record(module, inputs, outputs):
        probabilities = outputs[1].double()
        logarithms = probabilities.clamp_min(1e-300).log()
        entropy = -(probabilities * logarithms).sum(-1).mean()
        tokens = probabilities.shape[-1]
        # Logits are the logarithms up to a constant per row.
        figures.append((entropy.item() / math.log(tokens), logarithms.std(-1).mean().item()))

    for layer in network.backbone.encoder.layer:
        layer.attention.register_forward_hook(record)
    return DepthMap(network, side, side)(photo(side)), figures


def assert_awake(depth: torch.Tensor, figures) -> None:
    for entropy, logits in figures:
        assert 0.2 < entropy < 0.9
        assert 2.0 < logits < 4.0
    assert (depth > 0).double().mean() > 0.75
    assert depth.std() > 0.1 * depth.mean()


@pytest.mark.parametrize("seed", [0, 1, 2, 4])
def test_attention_and_map_of_small(seed):
    assert_awake(*attention_figures(twin_network("dav2-small", seed), 252))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["base", "large", "giant"])
def test_attention_and_map_of_the_others(size):
    assert_awake(*attention_figures(twin_network(f"dav2-{size}"), 252))


@pytest.mark.parametrize("suffix", ["-metric-indoor", "-metric-outdoor"])
@torch.no_grad()
def test_a_metric_head_is_not_saturated(suffix):
    share = DepthMap(twin_network("dav2-small" + suffix), 140, 140)(photo(140))
    share /= VARIANTS["dav2-small" + suffix].head.max_depth_m
    assert ((share > 0.02) & (share < 0.98)).double().mean() > 0.95
    assert share.std() > 0.02


def test_every_parameter_moves_the_map():
    network = twin_network("dav2-small")
    module = DepthMap(network, 70, 70).requires_grad_(True)
    module(photo(70)).square().sum().backward()
    still = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or parameter.grad.abs().max() == 0
    ]
    # The deepest fusion stage has no second input: the official code keeps the unit unused too.
    assert all(name.startswith("neck.fusion_stage.layers.0.residual_layer1.") for name in still)
    assert len(still) == 4


def test_nothing_is_zero_or_constant():
    for name, weight in twin_network("dav2-small").named_parameters():
        assert weight.abs().max() > 0, name
        assert weight.numel() == 1 or weight.std() > 0, name
        assert weight.dtype == torch.float32


def test_the_same_seed_gives_the_same_weights():
    shapes = {"b.weight": torch.Size([3, 4]), "a.bias": torch.Size([5])}
    first = twin_state_dict(shapes, 7)
    again = twin_state_dict(dict(reversed(shapes.items())), 7)
    other = twin_state_dict(shapes, 8)
    for name in shapes:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_twin_0_is_pinned():
    # Whoever changes a draw changes every file built from a twin: then update these on purpose.
    state = twin_network("dav2-small").state_dict()
    first = state["backbone.encoder.layer.0.attention.q_proj.weight"].flatten()[:2]
    last = state["neck.reassemble_stage.layers.3.resize.weight"].flatten()[-2:]
    assert [*first.tolist(), *last.tolist()] == PINNED


PINNED = [0.10283822566270828, 0.08678095787763596, -0.020214000716805458, -0.025311114266514778]
