"""PyTorch's two ONNX exporters, and the opsets at which each writes a faithful graph."""

from typing import Literal

from models.errors import ModelError

Exporter = Literal["dynamo", "torchscript"]

# The first of each list is the default. Below 17 there is no LayerNormalization; beyond the last,
# dynamo quietly writes another opset than it was asked for (torch 2.13).
OPSETS: dict[Exporter, tuple[int, ...]] = {
    "dynamo": (18, 17, 19, 20, 21, 22, 23, 24, 25),
    "torchscript": (17, 18, 19, 20),
}


def choose_opset(exporter: Exporter, opset: int | None) -> int:
    """Return the opset to export at; ModelError for one that the exporter does not write."""
    if exporter not in OPSETS:
        raise ModelError(f"unknown exporter '{exporter}': it is dynamo or torchscript")
    known = OPSETS[exporter]
    if opset is not None and opset not in known:
        raise ModelError(
            f"the {exporter} exporter writes opsets {min(known)} to {max(known)}, not {opset}"
        )
    return known[0] if opset is None else opset
