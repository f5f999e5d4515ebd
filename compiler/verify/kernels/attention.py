"""The Attention operator of opsets 23 to 25."""

import math
from collections.abc import Sequence

import torch

from compiler.verify.kernels.call import Array, Call, Kernel, fresh, optional, tensor

SCORES, PROBABILITIES = 0, 3  # values of qk_matmul_output_mode that kept their meaning


def _attention(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    """Y, present_key, present_value, qk_matmul_output.

    Q, K, V are (batch, heads, tokens, head size) or (batch, tokens, heads * head size). Source:
    the schema's text; a query that may see no key gives zeros.
    """
    query, key, value, mask, past_key, past_value, seen = (
        x if x is None else tensor(x) for x in optional(inputs, 7)
    )
    if query is None or key is None or value is None:
        raise call.refuse("a required input is missing")
    packed, attributes = query.ndim == 3, call.attributes
    query = _heads(query, attributes.get("q_num_heads"))
    key, value = (_heads(x, attributes.get("kv_num_heads")) for x in (key, value))
    past = 0 if past_key is None else past_key.shape[2]
    key = key if past_key is None else torch.cat([past_key, key], 2)
    value = value if past_value is None else torch.cat([past_value, value], 2)
    bias = _bias(call, query, key, mask, past, seen)
    scores, probabilities = _probabilities(call, query, key, bias)
    result = probabilities @ value.repeat_interleave(query.shape[1] // value.shape[1], 1)
    result = result.transpose(1, 2).flatten(2) if packed else result
    mode = attributes.get("qk_matmul_output_mode", SCORES)
    if call.outputs > 3 and mode not in (SCORES, PROBABILITIES):
        raise call.refuse(f"qk_matmul_output_mode={mode} changed its meaning between versions")
    shown = probabilities if mode == PROBABILITIES else scores
    return [x.numpy() for x in (result, key, value, shown)]


def _heads(x: torch.Tensor, heads: int | None) -> torch.Tensor:
    """(batch, tokens, heads * size) as (batch, heads, tokens, size); four axes stay as they are."""
    return x if x.ndim == 4 else x.reshape(*x.shape[:2], heads or 1, -1).transpose(1, 2)


def _probabilities(
    call: Call, query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw scores and probabilities, both (batch, heads, queries, keys)."""
    scale = call.attributes.get("scale") or 1 / math.sqrt(query.shape[-1])
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    out = fresh((*query.shape[:3], key.shape[2]))
    scores = torch.matmul(query * scale, key.transpose(2, 3), out=out)
    cap = call.attributes.get("softcap", 0.0)
    if cap and bias is not None:
        raise call.refuse("softcap with a mask: versions disagree on which comes first")
    logits = torch.tanh(scores / cap) * cap if cap else scores
    if bias is None:
        return scores, torch.softmax(logits, -1, out=fresh(logits.shape))
    blind = (bias == -torch.inf).all(-1, keepdim=True)
    return scores, torch.softmax(logits + bias, -1).masked_fill(blind, 0.0)


def _bias(
    call: Call,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    past: int,
    seen: torch.Tensor | None,
) -> torch.Tensor | None:
    """What is added to the scores, broadcast to (batch, heads, queries, keys): 0 or -inf, or the
    float mask; None if every query sees every key."""
    queries, keys = query.shape[2], key.shape[2]
    offset = torch.tensor(past) if seen is None or past else seen.reshape(-1, 1, 1, 1) - queries
    ahead = torch.arange(keys) - torch.arange(queries)[:, None] - offset  # key minus query
    left = call.attributes.get("left_window_size", -1)
    right = call.attributes.get("right_window_size", -1)
    rules = [ahead <= 0] if call.attributes.get("is_causal") else []
    rules += [-ahead <= left] if left >= 0 else []
    rules += [ahead <= right] if right >= 0 else []
    rules += [] if seen is None else [torch.arange(keys) < seen.reshape(-1, 1, 1, 1)]
    biases = [_additive(rule) for rule in rules]
    if mask is not None:
        bias = _additive(mask) if mask.dtype == torch.bool else mask
        short = keys - bias.shape[-1]
        biases.append(torch.nn.functional.pad(bias, (0, short), value=-torch.inf))
    return sum(biases[1:], biases[0]) if biases else None


def _additive(allowed: torch.Tensor) -> torch.Tensor:
    return torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, -torch.inf)


KERNELS: dict[str, Kernel] = {"Attention": _attention}
