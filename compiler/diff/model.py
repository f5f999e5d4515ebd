"""What a diff holds, free of printing: kinds of changes, their places, expressions and weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

SCHEMA = 1


@dataclass(frozen=True)
class Operand:
    """What an op reads: a tensor from outside, a weight, a value, a line below, or a label."""

    kind: Literal["tensor", "weight", "value", "below", "label"]
    text: str
    """`layer_norm`, `qkv.weight[384×1152]`, `0.125`, `·`, `%1`; of a weight that differs between
    repetitions its label, `w3`."""


@dataclass(frozen=True)
class Line:
    """One op of an expression; the lines that compute its operands follow, one level deeper."""

    depth: int
    op: str
    shape: str
    attributes: tuple[str, ...]
    operands: tuple[Operand, ...]
    label: str = ""
    """`%1` if other lines read it too."""
    count: int = 1
    """How many of these there are side by side, with other weights."""
    unit: str = ""
    """What they are: `head`, or `part`."""
    nodes: int = 1
    """The nodes behind the line: more than one for a copy or for repetitions shown elsewhere."""


@dataclass(frozen=True)
class Parameter:
    """What differs between the repetitions of a sub-expression, a value a repetition."""

    label: str
    role: str
    """`query`, `key`, `value`, several of them, or nothing known."""
    base: str
    """The tensor that all values are slices of, with its shape, or nothing."""
    scope: str
    """The module that the exporter says the tensor belongs to, or nothing."""
    values: tuple[str, ...]
    """`[:, 64:128]` where there is a base, else names."""


@dataclass(frozen=True)
class Repeat:
    """A sub-expression that is there several times, with other weights."""

    unit: str
    """`head`, or `part`."""
    count: int
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class Expression:
    """A region as lines, outermost op first."""

    lines: tuple[Line, ...]
    repeats: tuple[Repeat, ...] = ()


@dataclass(frozen=True)
class Origin:
    """How a new weight was made of old ones."""

    name: str
    shape: tuple[int, ...]
    how: str
    """`qkv.weight[:, 64:128]`, `fc.weight · gamma`, or nothing known."""
    values: str = ""
    """Its values, of a short one."""


@dataclass(frozen=True)
class Error:
    """An error as a build measured it: |difference| / |values − their mean| (L2)."""

    status: str
    error: float
    bound: float
    detail: str = ""

    @classmethod
    def of(cls, proof: Mapping[str, Any] | None) -> Error | None:
        """The error of a recorded proof."""
        return None if proof is None else cls(**proof)


@dataclass(frozen=True)
class Place:
    """Where a change is: the tensor that it computes, the module it is in, its own error."""

    tensor: str
    scope: str
    float64: Error | None = None


@dataclass(frozen=True)
class Region:
    """One side of a change: its ops in order, what it reads and computes, and its expression."""

    ops: tuple[str, ...]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    expression: Expression


@dataclass(frozen=True)
class Kind:
    """Identical changes, shown by the first of them."""

    pass_name: str
    """The pass that did it, or nothing for files that no record joins."""
    places: tuple[Place, ...]
    old: Region
    new: Region
    details: tuple[str, ...]
    """What exactly changed of nodes that stayed: `attribute axis: 1 → 2`."""
    weights: tuple[Origin, ...]
    float32: Error | None = None
    """Of the whole model after the pass."""
    examples: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """The nodes of the first place by name, before and after."""

    @property
    def old_ops(self) -> tuple[str, ...]:
        """The op of every removed node, in order."""
        return self.old.ops

    @property
    def new_ops(self) -> tuple[str, ...]:
        """The op of every added node, in order."""
        return self.new.ops

    @property
    def title(self) -> str:
        """`12 × : 9 nodes → 43 nodes`."""
        old, new = (
            f"{len(ops)} node{'s' * (len(ops) != 1)}" for ops in (self.old_ops, self.new_ops)
        )
        return f"{len(self.places)} × : {old} → {new}"

    @property
    def float64(self) -> Error | None:
        """The worst error of its places, each at its own cut; unproven ones are worst."""
        errors = [place.float64 for place in self.places if place.float64 is not None]
        return max(errors, key=lambda e: (e.status == "fail", e.status != "pass", e.error),
                   default=None)  # fmt: skip

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "pass": self.pass_name or None, "count": len(self.places),
            "places": [asdict(place) for place in self.places],
            "removed": list(self.old_ops), "added": list(self.new_ops),
            "old": _region_record(self.old, self.examples[0]),
            "new": _region_record(self.new, self.examples[1]),
            "details": list(self.details),
            "weights": [asdict(origin) for origin in self.weights],
            "float64": None if self.float64 is None else asdict(self.float64),
            "float32": None if self.float32 is None else asdict(self.float32),
        }  # fmt: skip


def _region_record(region: Region, nodes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "nodes": list(nodes), "inputs": dict(region.inputs), "outputs": dict(region.outputs),
        **asdict(region.expression),
    }  # fmt: skip


@dataclass(frozen=True)
class Diff:
    """What differs between two models: what they declare, and the kinds of changes."""

    before: str
    after: str
    nodes: tuple[int, int]
    signature: tuple[str, ...]
    """Inputs, outputs and operator sets that are declared differently."""
    kinds: tuple[Kind, ...]
    renamed: tuple[str, ...] = ()
    """Inputs and outputs that only have other names: no difference."""
    is_comparable: bool = True
    """Whether their inputs and outputs are the same by name, type and order: both can be run."""
    from_record: bool = False
    """Whether the kinds are a build's own rewrites; else they come from structural alignment."""

    @property
    def is_empty(self) -> bool:
        """Whether the models are the same, names aside."""
        return not self.signature and not self.kinds

    def __str__(self) -> str:
        """The text that the command prints, 100 columns wide."""
        from compiler.diff.text import rows_of

        return "\n".join(row.text for row in rows_of(self, 100))

    def _repr_html_(self) -> str:
        """The same in a notebook."""
        from compiler.diff.text import rows_of
        from compiler.notebook import lines_html

        return lines_html(rows_of(self, 100))

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "schema": SCHEMA, "before": self.before, "after": self.after,
            "nodes": list(self.nodes), "differ": not self.is_empty,
            "source": "record" if self.from_record else "alignment",
            "signature": list(self.signature), "renamed": list(self.renamed),
            "changes": [kind.record() for kind in self.kinds],
        }  # fmt: skip
