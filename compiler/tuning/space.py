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


# Each pays on some chip and size (dedupe: where others leave equal nodes); in the best order found.
SLOTS = (
    Slot(("fold_norm:into=conv", "fold_norm")),
    Slot(("split_heads", "split_heads:group=2", "split_heads:group=3")),
    Slot(("fold_scale",)),
    Slot(("hoist_conv",)),
    Slot(("fold_flip",)),
    Slot(("resize_as_matrix", "resize_as_matrix:form=matmul", "resize_as_matrix:form=conv")),
    Slot(("pad_tokens",)),
    Slot(("dedupe",)),
)
# Where passes stand. Folding and splitting come before a flip doubles the network, whose halves
# share their weights; a flip is folded into weights before padding cuts the tokens.
ORDER = (
    "fold_norm", "split_heads", "split_queries", "fold_scale", "hoist_conv", "flip_average",
    "fold_flip", "insert_resize", "range_output", "resize_as_matrix", "pad_tokens", "dedupe",
    "linear_as_gemm", "float16", "quantize", "for_target",
)  # fmt: skip


def name_of(text: str) -> str:
    """The name of the pass in a text with options."""
    return text.partition(":")[0]


@dataclass(frozen=True)
class Space:
    """The passes that every candidate has, and what may be added.

    `approximations` are added last, for the least accurate numbers that the user allows.
    """

    base: Candidate
    slots: tuple[Slot, ...]

    @classmethod
    def around(cls, base: Sequence[str], approximations: Sequence[Slot] = ()) -> Space:
        """Everything but the passes that the user has decided about."""
        decided = {name_of(text) for text in base}
        slots = (slot for slot in (*SLOTS, *approximations) if slot.name not in decided)
        return cls(tuple(base), tuple(slots))

    def recommended(self) -> Candidate:
        """The first choice of every slot that is exact."""
        candidate = self.base
        for slot in self.slots:
            if slot in SLOTS:
                candidate = self.with_choice(candidate, slot, slot.choices[0])
        return candidate

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


def _is_earlier(name: str, than: str) -> bool:
    """Whether a pass stands before another; a user's own does."""
    return name not in ORDER or than not in ORDER or ORDER.index(name) < ORDER.index(than)
