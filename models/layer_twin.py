"""Weight twins of any torch module, told by the kinds of its layers.

`models.twin` knows the names of Depth Anything V2 and is pinned; here a Linear is a Linear in every
network. The idea is the same: biases, gains, running statistics and tables are random, weights are
scaled by their fan-in, and queries and keys spread the logits to a standard deviation near 3.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from models.twin import Draw

# Unit tokens give q and k of variance gain² each, so logits (q·k/√D) of variance gain⁴.
_QUERY_OR_KEY = re.compile(r"\b(q|k|query|key|qkv|c_attn)(_proj)?\.weight$")
_QUERY_GAIN = 1.75
_CONVOLUTION_GAIN = 1.4  # behind a ReLU half of the variance is gone (He)


@torch.no_grad()
def give_twin_weights(module: nn.Module, seed: int) -> None:
    """Draw every weight, running mean and running variance of a module, in place."""
    generator = torch.Generator().manual_seed(seed)
    draws = _special_draws(getattr(module, "config", None))
    for layer, name, weight in _weights(module):
        special = (draw for pattern, draw in draws.items() if re.search(pattern, name))
        draw = next(special, None) or _draw(layer, name, weight)
        half_range = math.sqrt(3) * draw.gain / math.sqrt(_fan_in(layer, name, weight))
        weight.uniform_(draw.mean - half_range, draw.mean + half_range, generator=generator)


def _special_draws(config: Any) -> Mapping[str, Draw]:
    """What is special about a transformers model, by regular expressions that find a name."""
    match getattr(config, "model_type", None):
        case "depth_anything" | "dpt":
            # Lifts the map above zero, where the last ReLU lives: what varies over the image, a sum
            # of many residuals, must not decide its sign.
            last = r"head\.(conv3|head\.4)"
            return {rf"{last}\.weight": Draw(0.0, 0.05), rf"{last}\.bias": Draw(3.0, 0.1)}
        case "detr":
            # The residual stages of the backbone add up; beside them positions have to count.
            return {r"input_projection\.weight": Draw(0.0, 0.1)}
        case "sam_vision_model":
            # q·(a row of the table) has the deviation of a logit if the row has that of a scaled
            # key.
            head_size = config.hidden_size // config.num_attention_heads
            return {"rel_pos": Draw(0.0, head_size**-0.5)}
        case "t5":
            # T5 does not divide its logits by √D: its queries do.
            return {r"\.q\.weight": Draw(0.0, _QUERY_GAIN * config.d_kv**-0.5)}
    return {}


def _weights(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Every (layer, whole name, tensor), except for buffers that a network computes by itself."""
    stored = module.state_dict(keep_vars=True)
    for path, layer in module.named_modules():
        for tensors in (layer.named_parameters, layer.named_buffers):
            for name, weight in tensors(path, recurse=False):
                if name in stored and weight.is_floating_point():
                    yield layer, name, weight


def _draw(layer: nn.Module, name: str, weight: Tensor) -> Draw:
    if name.endswith(("bias", "running_mean")):
        return Draw(0.0, 0.2)
    if "lambda" in name:  # LayerScale
        return Draw(0.4, 0.1)
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
        return Draw(0.0, _CONVOLUTION_GAIN)
    if isinstance(layer, nn.Linear | Conv1D):
        return Draw(0.0, _QUERY_GAIN if _QUERY_OR_KEY.search(name) else 1.0)
    is_gain = name.endswith(("weight", "running_var")) and weight.ndim == 1
    return Draw(1.0, 0.25) if is_gain else Draw(0.0, 1.0)  # a table of tokens or positions


def _fan_in(layer: nn.Module, name: str, weight: Tensor) -> int:
    """Count the products that are summed for one output; 1 for biases, gains and tables."""
    if isinstance(layer, nn.Embedding) or weight.ndim < 2 or not name.endswith("weight"):
        return 1
    if isinstance(layer, nn.ConvTranspose2d | Conv1D):  # the former with its stride as kernel
        return weight.shape[0]
    return math.prod(weight.shape[1:])
