"""A sweep: every variant built, measured, and put into one record, as far as that is missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compiler.building import MODEL_NAME, WEIGHTS_NAME, Verify, write_whole, writing
from compiler.errors import UserError
from compiler.progress import Progress, nothing
from compiler.records import finite, json_text, read_record
from compiler.sweep.grid import Grid, Variant
from compiler.sweep.state import fingerprint, is_current, read_state, write_state
from compiler.targets.chips import Chip, chip_with_estimates
from compiler.workers.locking import one_at_a_time
from compiler.workers.tasks import Needs, Outcome, Task, memory_budget, run_tasks

Notice = Callable[[str], None]

RECORD_NAME = "sweep.json"
_SIMULATOR = "onnxruntime-qnn"
_ON_DEVICE = ("device",)
# A worker that waits for AI Hub takes little; it packages the model, and one upload is a POST.
_ON_DEVICE_NBYTES = 700_000_000
_DEVICE_JOBS = 8
# A row's keys for what an estimate says.
_OF_AN_ESTIMATE = {
    "latency_ms": "simulated_ms", "latency_low_ms": "simulated_low_ms",
    "latency_high_ms": "simulated_high_ms", "fill_bytes": "fill_bytes",
    "spill_bytes": "spill_bytes", "missing_ops": "missing_ops", "cpu_nodes": "cpu_nodes",
}  # fmt: skip


def sweep(
    grid: Grid, folder: Path, *, chip: str = "iq-9075", device: str | None = None,
    memory_gb: float | None = None, runs: int = 5, verify: Verify = "each",
    progress: Progress = nothing, notice: Notice = lambda _text: None,
) -> dict[str, Any]:  # fmt: skip
    """Builds and measures a grid in a folder; what is there and current is not done again.

    Args:
        grid: the description, from `read_grid`.
        folder: takes a build's folder for each variant, `sweep.json`, `.csv` and `.png`.
        chip: the chip to simulate latency for; without the wheel a note says what to install.
        device: the AI Hub device to measure on, too; needs the extra `hub` and an account.
        memory_gb: what parallel builds may take together; 80 % of what is free if None.
        runs: rounds of the CPU's timing; the median counts.
        verify: as `compiler.build` takes it.
        progress: told (what, done, total).
        notice: told one-line messages about licences, weights and what is missing.

    Returns:
        What `sweep.json` holds; a variant that failed has a row whose `error` says why.

    Raises:
        UserError: a bad description or option; another sweep in the folder.
    """
    target, budget = chip_with_estimates(chip), memory_budget(memory_gb)
    if runs < 1:
        raise UserError(f"--runs {runs}: give a whole number above 0")
    if device is not None:
        _require_device(device)
    variants, notes = _resolved(grid)
    with writing(folder), one_at_a_time(folder, "sweep") as lock:
        state = _Sweep(
            grid, variants, folder, target, device, verify, budget, lock, progress, notes
        )
        state.learn()
        state.build()
        state.estimate()
        state.time(runs)
        state.write()  # the device may take hours
        state.profile()
        for note in state.notes:
            notice(note)
        return state.write()


@dataclass
class _Sweep:
    grid: Grid
    variants: Sequence[Variant]
    folder: Path
    chip: Chip
    device: str | None
    verify: str
    budget: int
    lock: int
    progress: Progress
    notes: list[str]
    needs: Needs = field(default_factory=Needs)
    built: list[Variant] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    cpu: dict[str, Any] = field(default_factory=dict)

    def learn(self) -> None:
        """What builds and estimates took before, in this folder."""
        for variant in self.variants:
            state = read_state(self.folder / variant.label)
            self.needs.learn(_kind("build", variant), state.get("peak_nbytes", 0))
            for found in state.get("estimates", {}).values():
                self.needs.learn(_kind("estimate", variant), found.get("peak_nbytes", 0))

    def build(self) -> None:
        """Builds the variants that are not there, or not as they are described now."""
        tasks = []
        for variant in self.variants:
            folder, wanted = self.folder / variant.label, fingerprint(variant)
            if not is_current(folder, wanted, self.verify):
                job = {"does": "build", "folder": str(folder), "fingerprint": wanted,
                       "arguments": _arguments(variant, self.verify)}  # fmt: skip
                tasks.append(Task(variant.label, _kind("build", variant), job))
        self._run(tasks, "building", lambda task, outcome: None)
        self.built = [variant for variant in self.variants if variant.label not in self.errors]

    def estimate(self) -> None:
        """Simulates the built variants that have no estimate for the chip."""
        from compiler.targets.htp import require_wheel

        try:
            require_wheel()
        except UserError as error:
            self.notes.append(str(error))
            return
        tasks = []
        for variant in self.built:
            model = self.folder / variant.label / MODEL_NAME
            known = self._kept(variant.label, "estimates", self.chip.name)
            if known.get("version") != version(_SIMULATOR):
                job = {"does": "estimate", "model": str(model), "chip": self.chip.name}
                tasks.append(Task(variant.label, _kind("estimate", variant), job))
        self._run(tasks, "estimating", self._keep_estimate)

    def time(self, runs: int) -> None:
        """Times all variants anew, unless exactly these models have been timed together."""
        from compiler.sweep.timing import cpu_ms

        models = {v.label: self.folder / v.label / MODEL_NAME for v in self.built}
        hashes = {label: _hashes(path.parent) for label, path in models.items()}
        key = {"runs": runs, "onnxruntime": version("onnxruntime"), "models": hashes}
        known = _read(self.folder / RECORD_NAME).get("cpu", {})
        if {**known, "ms": None} == {**key, "ms": None}:
            self.cpu = known
        else:
            self.cpu = {**key, "ms": cpu_ms(models, runs, self.budget, self.progress)}

    def profile(self) -> None:
        """Measures on the device, all variants at a time: the waiting is AI Hub's."""
        self.needs.learn(_ON_DEVICE, _ON_DEVICE_NBYTES)
        tasks = []
        for variant in self.built if self.device else []:
            if not self._kept(variant.label, "devices", self.device):
                job = {"does": "profile", "model": str(self.folder / variant.label),
                       "device": self.device}  # fmt: skip
                tasks.append(Task(variant.label, _ON_DEVICE, job))
        self._run(tasks, f"on {self.device}:", self._keep_profile, slots=_DEVICE_JOBS)

    def write(self) -> dict[str, Any]:
        """Writes the record, the table as CSV and the plot, each whole; returns the record."""
        from compiler.sweep.plot import drawn
        from compiler.sweep.table import as_csv

        record: dict[str, Any] = finite({
            "title": self.grid.title,
            "chip": self.chip.name,
            "device": self.device,
            "published": self.grid.published,
            "notes": self.notes,
            "cpu": self.cpu,
            "rows": [self._row(variant) for variant in self.variants],
        })  # fmt: skip
        write_whole(self.folder / RECORD_NAME, (json_text(record) + "\n").encode())
        write_whole(self.folder / "sweep.csv", as_csv(record["rows"]).encode())
        write_whole(self.folder / "sweep.png", drawn(record))
        return record

    def _run(
        self, tasks: Sequence[Task], what: str, keep: Callable[[Task, Outcome], None],
        slots: int | None = None,
    ) -> None:  # fmt: skip
        def finished(task: Task, outcome: Outcome) -> None:
            if outcome.error:
                self.errors[task.label] = f"{what.rstrip(':')}: {outcome.error}"
            else:
                keep(task, outcome)

        run_tasks(tasks, finished, needs=self.needs, budget=self.budget, what=what,
                  progress=self.progress, slots=slots, keep_open=[self.lock])  # fmt: skip

    def _keep_estimate(self, task: Task, outcome: Outcome) -> None:
        found = {key: outcome.record[key] for key in _OF_AN_ESTIMATE}
        found |= {"version": version(_SIMULATOR), "peak_nbytes": outcome.peak_nbytes}
        self._keep(task.label, "estimates", self.chip.name, found)

    def _keep_profile(self, task: Task, outcome: Outcome) -> None:
        self._keep(task.label, "devices", str(self.device), outcome.record)

    def _keep(self, label: str, kind: str, name: str, figures: dict[str, Any]) -> None:
        state = read_state(self.folder / label)
        state.setdefault(kind, {})[name] = figures
        write_state(self.folder / label, state)

    def _kept(self, label: str, kind: str, name: str | None) -> dict[str, Any]:
        """What is known of a variant for a chip (`estimates`) or a device; empty if nothing."""
        figures: dict[str, Any] = read_state(self.folder / label).get(kind, {}).get(name, {})
        return figures

    def _row(self, variant: Variant) -> dict[str, Any]:
        label = variant.label
        row = {
            "variant": label, "model": variant.model, "weights": variant.weights,
            "size": variant.size, "passes": variant.passes,
            "nodes": None, "cpu_ms": self.cpu["ms"].get(label),
            **dict.fromkeys(_OF_AN_ESTIMATE.values()),
            "hub_ms": None, "published_ms": variant.published_ms,
            "error": self.errors.get(label),
        }  # fmt: skip
        if variant in self.built:
            row["nodes"] = read_record(self.folder / label)["stages"][-1]["nodes_after"]
            row["hub_ms"] = self._kept(label, "devices", self.device).get("latency_ms")
            found = self._kept(label, "estimates", self.chip.name)
            row |= {key: found[name] for name, key in _OF_AN_ESTIMATE.items() if name in found}
        return row


def _require_device(name: str) -> None:
    """Raises UserError now rather than after the builds, if AI Hub or the device can't be had."""
    from compiler.hub.client import connect

    connect().require_device(name)


def _resolved(grid: Grid) -> tuple[list[Variant], list[str]]:
    """The variants with `auto` weights decided, once for all of a model; and models' notices."""
    import models

    variants, notices, decided = [], list[str](), dict[tuple[str, str], str]()
    for variant in grid.variants:
        asked = (variant.model, variant.weights)
        try:
            source = models.resolve(
                variant.model, size=variant.size, weights=decided.get(asked, variant.weights),
                exporter=variant.exporter, opset=variant.opset,
            )  # fmt: skip
        except (models.ModelError, UserError) as error:
            raise UserError(f"{grid.path}: variant {variant.label!r}: {error}") from error
        if Path(variant.model).suffix.lower() not in (".onnx", ".pth"):
            decided[asked] = source.weights
            variant = replace(variant, weights=source.weights)
        variants.append(variant)
        notices += source.notices
    return variants, list(dict.fromkeys(notices))


def _kind(does: str, variant: Variant) -> tuple[str, ...]:
    return does, variant.model, variant.size or ""


def _arguments(variant: Variant, verify: str) -> dict[str, Any]:
    return {
        "model": variant.model, "passes": variant.passes, "size": variant.size,
        "weights": variant.weights, "exporter": variant.exporter, "opset": variant.opset,
        "canonicalize": variant.canonicalize, "verify": verify,
    }  # fmt: skip


def _hashes(folder: Path) -> list[str]:
    files = read_record(folder)["files"]
    return [files[MODEL_NAME], files[WEIGHTS_NAME]]


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
