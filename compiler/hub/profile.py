"""A profile from a device: latency, memory, compute units, and which pass made the slow layers.

Layers carry names that the target's compiler made from the model's: `/blocks/0/MatMul` becomes
`_blocks_0_MatMul`, `_blocks_0_MatMul_permute` or `_blocks_0_MatMul_output_0`. A layer belongs to
the node (or the tensor) with the longest name that begins it. Digits are never cut off: `MatMul_1`
is another node than `MatMul`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compiler.errors import UserError
from compiler.graph import PASS_KEY, read_model

NOT_ATTRIBUTED, SOURCE = "(not attributed)", "(source model)"
SLOWEST = 10
# Numbers that are no part of a node's name: onnxruntime's and QNN's own.
_NUMBERED = re.compile(r"_(token|OpId)_\d+$")


@dataclass(frozen=True)
class Layer:
    """A layer as the device ran it; `cost` is in the profile's unit."""

    name: str
    op: str
    compute_unit: str
    cost: int
    share: float
    made_by: str


@dataclass(frozen=True)
class Group:
    """Layers that have something in common: how many, their cost and its share of the whole."""

    name: str
    layers: int
    cost: int
    share: float


@dataclass(frozen=True)
class Profile:
    """What a device measured. `None` is what it did not say.

    The costs of layers are in `unit`, `cycles` or `µs`; they come from one instrumented run and add
    up to something else than the latency.
    """

    latency_ms: float
    peak_memory_bytes: int | None
    first_load_ms: float | None
    unit: str
    compute_units: tuple[Group, ...]
    passes: tuple[Group, ...]
    slowest: tuple[Layer, ...]

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def read_profile(profile: Mapping[str, Any], model: Path | None) -> Profile:
    """A profile as the client downloads it (times in µs, memory in bytes).

    Args:
        profile: the client's dict, or what was saved of it as JSON.
        model: the ONNX file that was uploaded; without it no layer is attributed to a pass.

    Raises:
        UserError: if it holds no latency.
    """
    summary, detail = profile.get("execution_summary", {}), profile.get("execution_detail", [])
    if not _positive(summary.get("estimated_inference_time")):
        raise UserError("the profile holds no latency (execution_summary.estimated_inference_time)")
    key, unit = _cost_key(detail)
    made_by = _Attribution.of(model) if model else lambda _name: NOT_ATTRIBUTED
    total = sum(layer.get(key, 0) for layer in detail) or 1
    layers = [
        Layer(layer["name"], layer["type"], layer["compute_unit"], layer.get(key, 0),
              layer.get(key, 0) / total, made_by(layer["name"]))
        for layer in detail
    ]  # fmt: skip
    first_load = _positive(summary.get("first_load_time"))
    return Profile(
        latency_ms=summary["estimated_inference_time"] / 1000,
        peak_memory_bytes=_positive(summary.get("estimated_inference_peak_memory")),
        first_load_ms=None if first_load is None else first_load / 1000,
        unit=unit,
        compute_units=_groups(layers, lambda layer: layer.compute_unit),
        passes=_groups(layers, lambda layer: layer.made_by) if model else (),
        slowest=tuple(sorted(layers, key=lambda layer: -layer.cost)[:SLOWEST]),
    )


def _cost_key(detail: list[dict[str, Any]]) -> tuple[str, str]:
    """Runtimes tell a layer's time or its cycles; some tell both, and then the time is kept."""
    if any(layer.get("execution_time") for layer in detail):
        return "execution_time", "µs"
    return "execution_cycles", "cycles"


def _positive(value: Any) -> int | None:
    """The client writes -1 or 0 for what was not measured."""
    return value if isinstance(value, int) and value > 0 else None


def _groups(layers: list[Layer], key: Callable[[Layer], str]) -> tuple[Group, ...]:
    """The dearest first."""
    members: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        members[key(layer)].append(layer)
    groups = [
        Group(name, len(own), sum(la.cost for la in own), sum(la.share for la in own))
        for name, own in members.items()
    ]
    return tuple(sorted(groups, key=lambda group: (-group.cost, group.name)))


class _Attribution:
    """Which pass made what a layer's name stands for."""

    def __init__(self, made_by: Mapping[str, str]) -> None:
        self._made_by = made_by

    @classmethod
    def of(cls, model: Path) -> _Attribution:
        nodes, tensors = {}, {}
        for node in read_model(model).graph.node:
            passes = [entry.value for entry in node.metadata_props if entry.key == PASS_KEY]
            made_by = passes[0] if passes else SOURCE
            nodes[_plain(node.name)] = made_by
            tensors.update({_plain(name): made_by for name in node.output})
        return cls({name: made_by for name, made_by in {**tensors, **nodes}.items() if name})

    def __call__(self, layer: str) -> str:
        name = _NUMBERED.sub("", _plain(layer))
        while name and name not in self._made_by:
            name, _, cut = name.rpartition("_")
            if cut.isdigit():
                return NOT_ATTRIBUTED
        return self._made_by.get(name, NOT_ATTRIBUTED)


def _plain(name: str) -> str:
    """A name as QNN's converters write it."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")
