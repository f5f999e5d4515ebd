"""The weight twin: random weights under which every path of the network matters.

With default random weights attention is near uniform and biases are zero, so that most faults in
a graph change nothing (verification.md). Here biases and gains are random, weights are scaled by
their fan-in, and queries and keys are large enough to spread the softmax logits to a standard
deviation near 3. Scales are analytic: nothing is calibrated on data, so a twin depends on its
seed and the parameters' names and shapes alone.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Draw(NamedTuple):
    """A uniform distribution; `gain` is divided by √fan-in for weights that have one."""

    mean: float
    gain: float


# The first pattern found in a name decides. Uniform numbers come from integers by an exact
# conversion, normal ones through vectorized logarithms that differ between processors.
DRAWS: tuple[tuple[str, Draw], ...] = (
    # Position and patch parts of a token are equally strong: both the place and the image matter.
    (r"position_embeddings|cls_token", Draw(0.0, 1.0)),
    (r"patch_embeddings\.projection\.weight", Draw(0.0, 1.0)),
    # LayerNorm and LayerScale gains: all positive, none equal.
    (r"norm\d?\.weight", Draw(1.0, 0.25)),
    (r"layer_scale\d\.lambda1", Draw(0.4, 0.1)),
    # Unit tokens give q and k of variance gain² each, so logits (q·k/√D) of variance gain⁴.
    (r"[qk]_proj\.weight", Draw(0.0, 1.75)),
    # The average over attended tokens shrinks v; the output projection makes up for it.
    (r"o_proj\.weight", Draw(0.0, 1.5)),
    # E[gelu(z)²] = 0.43 and E[silu(z)² z'²] = 0.36 for unit normals.
    (r"fc2\.weight", Draw(0.0, 1.5)),
    (r"down_proj\.weight", Draw(0.0, 1.7)),
    # Behind a ReLU half of the variance is gone (He).
    (r"residual_layer\d\.convolution1\.weight", Draw(0.0, 1.4)),
    (r"residual_layer\d\.convolution2\.weight", Draw(0.0, 1.0)),
    # Every fusion stage adds another map and two residuals: keep their sum near one.
    (r"fusion_stage\.layers\.\d\.projection\.weight", Draw(0.0, 0.6)),
    # Small beside the bias below: what varies over the image must not decide the map's sign.
    (r"head\.conv3\.weight", Draw(0.0, 0.7)),
    # Lifts the map above zero, where the last ReLU lives, and leaves a sigmoid unsaturated.
    (r"head\.conv3\.bias", Draw(1.2, 0.1)),
    (r"bias", Draw(0.0, 0.2)),
    (r"weight", Draw(0.0, 1.0)),
)


def twin_state_dict(shapes: Mapping[str, torch.Size], seed: int) -> dict[str, Tensor]:
    """Draw float32 weights for parameters of the given names and shapes, in order of name."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _draw(name, shapes[name], generator) for name in sorted(shapes)}


def _draw(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    draw = next(draw for pattern, draw in DRAWS if re.search(pattern, name))
    std = draw.gain / math.sqrt(_fan_in(name, shape))
    half_range = math.sqrt(3) * std
    low, high = draw.mean - half_range, draw.mean + half_range
    return torch.empty(shape).uniform_(low, high, generator=generator)


def _fan_in(name: str, shape: torch.Size) -> int:
    """Count the products that are summed for one output; 1 for biases, gains and tables."""
    if len(shape) < 2 or not name.endswith("weight"):
        return 1
    if "resize" in name and shape[2] != 3:
        # ConvTranspose with stride equal to the kernel: each output has one tap per input channel.
        return shape[0]
    return math.prod(shape[1:])
