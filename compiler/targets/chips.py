"""The chips that Qualcomm's NPU compiler is asked for, by names that people know."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.errors import UserError
from compiler.pipeline import nearest


@dataclass(frozen=True)
class Chip:
    """A chip as the provider's options name it.

    `vtcm_mb` is the on-chip memory in MiB, measured: what the provider takes if it is not told (the
    peak in the simulation's trace, or the binary of equal size). `gives_estimates`: preparing a
    model for it simulates its latency.
    """

    name: str
    description: str
    soc_model: int
    htp_arch: int
    vtcm_mb: int
    gives_estimates: bool


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("s24", "Galaxy S24, Snapdragon 8 Gen 3", 57, 75, 8, False),
        Chip("s25", "Galaxy S25, Snapdragon 8 Elite", 69, 79, 8, False),
        Chip("s26", "Galaxy S26", 87, 81, 8, False),
        Chip("iq-9075", "Dragonwing IQ-9075", 77, 73, 8, True),
        Chip("sa8775", "SA8255, SA8650 and SA8775", 52, 73, 8, True),
        Chip("sa8797", "SA8797", 72, 81, 16, True),
    )
}


def chip_named(name: str) -> Chip:
    """The chip of a name. Raises UserError with the nearest known one."""
    if name not in CHIPS:
        raise UserError(f"no chip {name!r}{nearest(name, list(CHIPS))}")
    return CHIPS[name]


def chip_with_estimates(name: str) -> Chip:
    """The chip of a name, if it gives estimates; else UserError names those that do."""
    chip = chip_named(name)
    if not chip.gives_estimates:
        known = ", ".join(chip.name for chip in CHIPS.values() if chip.gives_estimates)
        raise UserError(
            f"chip {name!r} compiles, but Qualcomm's compiler simulates no latency for it; "
            f"those with estimates: {known}"
        )
    return chip
