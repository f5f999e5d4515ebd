"""Who judges a candidate: the NPU's simulation, a device of AI Hub, or this machine's CPU.

The NPU's scheduler is chaotic: two nearly equal graphs may differ by 4 % at random. So a model is
also prepared for a little less on-chip memory than the chip has: the same work, another schedule. A
pipeline's score is the mean over these and over the chips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.building import MODEL_NAME
from compiler.errors import UserError
from compiler.targets.chips import chip_named, chip_with_estimates
from compiler.tuning.figures import Measurement

if TYPE_CHECKING:
    from compiler.targets.htp import Estimate

CPU = "cpu"
CPU_ROUNDS = 9
DEFAULT_CHIP = "iq-9075"


@dataclass(frozen=True)
class Judge:
    """Where candidates are measured: on simulated chips, or on a device, or (neither) the CPU.

    `schedules`: how many schedules of each chip count, each for 1 MiB of memory less.
    """

    chips: tuple[str, ...] = ()
    device: str | None = None
    schedules: int = 3

    @property
    def places(self) -> list[str]:
        """What is measured, for people; the first is the place that was asked for."""
        if self.device is not None:
            return [self.device]
        return [_place(*pair) for pair in self._schedules()] or [CPU]

    @property
    def is_parallel(self) -> bool:
        """Whether candidates may be judged side by side: a simulation is, a clock is not."""
        return bool(self.chips)

    def measure(self, folder: Path, stock: Path, known: dict[str, float]) -> list[Measurement]:
        """The latencies of the build in `folder` beside those of the build `stock`.

        Args:
            folder: the candidate's.
            stock: that of the model without the passes to judge.
            known: the stock model's latency by place; empty before it has been measured itself.

        Raises UserError for a candidate that isn't all on the NPU, or has ops without a cost.
        """
        if self.device is not None:
            return [self._on_device(folder, stock, known)]
        if not self.chips:
            return [_on_cpu(folder, stock)]
        if folder == stock:
            return [_stock_simulated(stock / MODEL_NAME, *pair) for pair in self._schedules()]
        found = []
        for chip, less in self._schedules():
            place, ms = _place(chip, less), _simulated_ms(folder / MODEL_NAME, chip, less)
            found.append(Measurement(place, ms, known[place]))
        return found

    def check(self) -> None:
        """Raises UserError, before any work, for chips, wheels and devices that aren't there."""
        from compiler.targets.htp import require_wheel

        if self.device is not None:
            from compiler.hub.client import connect

            connect().require_device(self.device)
        for chip in self.chips:
            chip_with_estimates(chip)
            require_wheel()

    def _schedules(self) -> Iterator[tuple[str, int]]:
        for chip in self.chips:
            yield from ((chip, less) for less in range(self.schedules))

    def _on_device(self, folder: Path, stock: Path, known: dict[str, float]) -> Measurement:
        assert self.device is not None
        before = known.get(self.device) or _profiled_ms(stock / MODEL_NAME, self.device)
        ms = before if folder == stock else _profiled_ms(folder / MODEL_NAME, self.device)
        return Measurement(self.device, ms, before)


def judge_of(
    chips: Sequence[str] | None, device: str | None, *, cpu: bool, schedules: int
) -> Judge:
    """The judge that a command line asks for; the chip `iq-9075` if it names none.

    Raises UserError where it names several kinds.
    """
    if sum([bool(chips), device is not None, cpu]) > 1:
        raise UserError("give one of --chip, --device and --cpu: their times do not compare")
    if device is not None:
        return Judge(device=device)
    if cpu:
        return Judge()
    if not 1 <= schedules <= 4:
        raise UserError(f"--schedules {schedules}: give 1 to 4")
    return Judge(tuple(dict.fromkeys(chips or [DEFAULT_CHIP])), schedules=schedules)


def _place(chip: str, less: int) -> str:
    return chip if not less else f"{chip}, {chip_named(chip).vtcm_mb - less} MB"


def _stock_simulated(model: Path, chip: str, less: int) -> Measurement:
    """The stock model may have ops without a cost, or on the CPU: then it takes at least that."""
    found = _simulated(model, chip, less)
    return Measurement(_place(chip, less), found.latency_ms, found.latency_ms, found.missing_ops)


def _simulated(model: Path, chip: str, less: int) -> Estimate:
    from compiler.targets.htp import estimate

    target = chip_with_estimates(chip)
    return estimate(model, replace(target, vtcm_mb=target.vtcm_mb - less))


def _simulated_ms(model: Path, chip: str, less: int) -> float:
    from compiler.targets.htp import EDGE_OPS

    found = _simulated(model, chip, less)
    if found.missing_ops:
        raise UserError(f"{found.missing_ops} ops have no cost in the simulation for {chip}")
    strays = [node for node in found.cpu_nodes if node.op not in EDGE_OPS]
    if strays:
        raise UserError(f"the NPU leaves {strays[0]} to the CPU")
    return found.latency_ms


def _on_cpu(folder: Path, stock: Path) -> Measurement:
    """Both models in turns; the fastest round counts, for what else runs here only slows one."""
    from compiler.sweep.timing import cpu_ms

    models = {"stock": stock / MODEL_NAME, "candidate": folder / MODEL_NAME}
    found = cpu_ms(models, CPU_ROUNDS, budget=4_000_000_000, statistic=min)
    if "candidate" not in found:
        raise UserError("the model has a dynamic input: give it a size to time it")
    return Measurement(CPU, found["candidate"], found["stock"])


def _profiled_ms(model: Path, device: str) -> float:
    from compiler.workers.worker import profile

    latency: float = profile({"model": str(model), "device": device})["latency_ms"]
    return latency
