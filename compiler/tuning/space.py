"""What tuning may try: the passes that keep a model's function, their options, and their order.

A candidate is a pipeline as a tuple of texts, `("fold_scale", "split_heads:group=2")`. The passes
that the user asked for are in every candidate, in the user's order; what is tried stands around
them, each pass at its place in `ORDER` until the search moves it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Candidate = tuple[str, ...]


@dataclass(frozen=True)
class Slot:
    """A pass, and the option texts worth trying; the first is what measurements recommend."""

    choices: tuple[str, ...]

    @property
    def name(self) -> str:
        """The pass's name."""
        return name_of(self.choices[0])


FORMS = ("matmul", "conv", "turned")
# Each pays on some chip and size (dedupe: where others leave equal nodes); in the best order found.
# split_queries pays from thousands of tokens on: of SAM's 4096 tiles of 2048, 1024 and 704 save 23,
# 19 and 14 %; of the 1370 at 518 two of 704 make full tiles of 11 rows for the Softmax.
SLOTS = (
    Slot(("drop_nan_guard",)),
    Slot(("merge_axes",)),
    Slot(("einsum_as_matmul",)),
    Slot(("broadcast_as_matmul",)),
    Slot(("join_products",)),
    Slot(("scale_scores",)),
    Slot(("fold_norm:into=conv", "fold_norm")),
    Slot(("split_heads", "split_heads:group=2", "split_heads:group=3", "split_heads:merge=sum")),
    Slot(("split_queries:tile=704:last=full", "split_queries:tile=2048")),
    Slot(("fold_scale",)),
    Slot(("hoist_conv",)),
    Slot(("fold_flip",)),
    Slot(("resize_as_matrix", *(f"resize_as_matrix:form={f}" for f in FORMS))),
    Slot(("pad_tokens", "pad_tokens:multiple=20")),
    Slot(("tile_softmax:rows=11", "tile_softmax", "tile_softmax:rows=20")),
    Slot(("squeeze_first",)),
    Slot(("dedupe",)),
)
# It pays with whole numbers alone.
GEMM = Slot(("linear_as_gemm",))
# Where passes stand. What is added to scores joins their product before the heads are split, which
# would leave it whole. Folding and splitting come before a flip doubles the network, whose halves
# share their weights; a flip is folded into weights before padding cuts the tokens.
ORDER = (
    "drop_nan_guard", "merge_axes", "einsum_as_matmul", "broadcast_as_matmul", "join_products",
    "scale_scores", "fold_norm", "split_heads", "split_queries", "fold_scale", "hoist_conv",
    "flip_average", "fold_flip", "insert_resize", "range_output", "resize_as_matrix", "pad_tokens",
    "tile_softmax", "squeeze_first", "dedupe", "linear_as_gemm", "float16", "quantize",
    "for_target",
)  # fmt: skip


def name_of(text: str) -> str:
    """The name of the pass in a text with options."""
    return text.partition(":")[0]


@dataclass(frozen=True)
class Space:
    """The passes that every candidate has, and what may be added."""

    base: Candidate
    slots: tuple[Slot, ...]

    @classmethod
    def around(cls, base: Sequence[str], max_loss: float | None = None) -> Space:
        """Everything but the passes that the user has decided about.

        Numbers of fewer bits are tried last, and only where a candidate may lose `max_loss`.
        """
        decided = {name_of(text) for text in base}
        slots = [*SLOTS, *_precisions(max_loss)]
        if max_loss is not None or "quantize" in decided:
            slots.append(GEMM)
        return cls(tuple(base), tuple(slot for slot in slots if slot.name not in decided))

    def recommended(self) -> Candidate:
        """The first choice of every slot that changes no numbers on purpose."""
        wanted = [*SLOTS, *([GEMM] if "quantize" in map(name_of, self.base) else [])]
        candidate = self.base
        for slot in self.slots:
            if slot in wanted:
                candidate = self.with_choice(candidate, slot, slot.choices[0])
        return candidate

    def texts(self) -> list[str]:
        """Every pass that a candidate may have, with each choice of its options."""
        return [*self.base, *(choice for slot in self.slots for choice in slot.choices)]

    def with_choice(self, candidate: Candidate, slot: Slot, choice: str | None) -> Candidate:
        """The candidate with another choice in a slot, or without the slot's pass."""
        names = [name_of(text) for text in candidate]
        if slot.name in names:
            place = names.index(slot.name)
            chosen = () if choice is None else (choice,)
            return (*candidate[:place], *chosen, *candidate[place + 1 :])
        if choice is None:
            return candidate
        place = 1 + max((i for i, n in enumerate(names) if _is_earlier(n, slot.name)), default=-1)
        return (*candidate[:place], choice, *candidate[place:])

    def alternatives(self, candidate: Candidate, slot: Slot) -> list[Candidate]:
        """The candidate with each other choice in a slot, and without."""
        found = [self.with_choice(candidate, slot, choice) for choice in (*slot.choices, None)]
        return [other for other in found if other != candidate]

    def reordered(self, candidate: Candidate) -> Iterator[Candidate]:
        """The candidate with two neighbours swapped, in each place where it keeps the function."""
        free = {slot.name for slot in self.slots if slot in SLOTS}
        for place in range(len(candidate) - 1):
            one, two = candidate[place : place + 2]
            if {name_of(one), name_of(two)} <= free:
                yield (*candidate[:place], two, one, *candidate[place + 2 :])


def _precisions(max_loss: float | None) -> list[Slot]:
    """What may be tried where numbers may move."""
    if max_loss is None:
        return []
    kinds = ("activations=16", "attention=8", "activations=8", "activations=mixed")
    return [Slot(tuple(f"quantize:{kind}:max_loss={max_loss:g}" for kind in kinds))]


def _is_earlier(name: str, than: str) -> bool:
    """Whether a pass stands before another; a user's own does."""
    return name not in ORDER or than not in ORDER or ORDER.index(name) < ORDER.index(than)
