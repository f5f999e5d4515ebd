"""Whether random values leave anything to see behind a Softmax.

A mask drawn as an integer from -12 to 11 times -1e9 swamps every score: the probabilities are one
or zero whatever the queries and keys are, and any fault in these would pass a comparison.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from compiler.region import Region
from compiler.weights import Array

# Two probabilities of a row differ, and the lesser is above this: a fault in a score would move
# them by more than any bound.
LEAST_PROBABILITY = 1e-6
# Rows that a mask leaves one key are ordinary (the first of a causal one), most of them are not.
LEAST_SHARE = 0.25


def probabilities_of(region: Region) -> Iterator[str]:
    """The outputs of every Softmax along the last axis or another, also of one taken apart."""
    made_by = {name: node for node in region.nodes for name in node.output}
    for node in region.nodes:
        if node.op_type == "Softmax":
            yield node.output[0]
        elif node.op_type == "Div":
            above, below = (made_by.get(name) for name in node.input)
            is_sum = below is not None and below.op_type == "ReduceSum"
            if is_sum and above is not None and above.op_type == "Exp":
                yield node.output[0]


def blind_softmax(names: Iterator[str], values: Mapping[str, Any]) -> str | None:
    """The first Softmax of which too few rows depend on their scores; None if all can be seen."""
    return next((name for name in names if _is_blind(values[name])), None)


def _is_blind(probabilities: Array) -> bool:
    if probabilities.ndim == 0 or probabilities.shape[-1] < 2 or not probabilities.size:
        return False
    highest = probabilities.max(-1)
    seen = np.where(probabilities > LEAST_PROBABILITY, probabilities, np.inf)
    differ = seen.min(-1) < highest * (1 - LEAST_PROBABILITY)
    return bool(differ.mean() < LEAST_SHARE)
