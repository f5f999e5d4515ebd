"""The loss of a model as the NPU itself computes it, emulated on this machine."""

from __future__ import annotations

from pathlib import Path

from compiler.pictures import depth_of
from compiler.progress import Progress
from compiler.quantize.loss import Loss, image_loss
from compiler.targets.chips import Chip
from compiler.targets.emulate import emulate


def npu_loss(
    reference: Path, candidate: Path, photo: Path, chip: Chip, progress: Progress
) -> tuple[Loss, Loss]:
    """What `candidate` loses against `reference` in float32: on the NPU's numerics, and as written.

    Minutes: the emulator computes on one core. Raises UserError where its wheel is missing.
    """
    emulation = emulate(candidate, photo, chip, progress)
    expected = {"map": depth_of(reference, photo)}
    on_npu, here = (
        Loss((image_loss(photo.name, {"map": values}, expected),))
        for values in (emulation.npu, depth_of(candidate, photo))
    )
    return on_npu, here
