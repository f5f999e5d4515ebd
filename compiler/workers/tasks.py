"""Workers in parallel, each a process of its own, as many as the memory budget holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.errors import UserError
from compiler.progress import Progress

# Margin over the peak that a task of the same kind had, and what is assumed before there is one:
# with proofs, Small at 518 takes 2 GB, and preparing it for an NPU with flip_average as much.
MARGIN = 1.2
FIRST_NEED_NBYTES = 3_000_000_000
SHARE_OF_MEMORY = 0.8
_POLL_S = 0.05
_STOP_S = 10.0


@dataclass(frozen=True)
class Task:
    """A job of a worker; tasks of one `kind` take about the same memory."""

    label: str
    kind: tuple[str, ...]
    job: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a worker came back with: a record, or why there is none; and its peak of memory.

    Where the disk is full, that is no fault of the job's.
    """

    record: dict[str, Any]
    error: str = ""
    peak_nbytes: int = 0
    is_disk_full: bool = False


@dataclass
class Needs:
    """The memory that tasks need, in bytes, learnt from those that ran."""

    peaks: dict[tuple[str, ...], int] = field(default_factory=dict)

    def learn(self, kind: tuple[str, ...], peak_nbytes: int) -> None:
        """Takes note of a peak; the largest counts."""
        self.peaks[kind] = max(self.peaks.get(kind, 0), peak_nbytes)

    def of(self, kind: tuple[str, ...]) -> int:
        """The bytes to reserve for a task."""
        peak = self.peaks.get(kind)
        return FIRST_NEED_NBYTES if not peak else int(MARGIN * peak)


def startable(
    waiting: Sequence[int], running: Sequence[int], budget: int, slots: int
) -> int | None:
    """The position of the first waiting task that may start beside the running ones, or None.

    Tasks are given by their needs in bytes. One that no budget holds runs, but alone.
    """
    if len(running) >= slots:
        return None
    free = budget - sum(running)
    fitting = (position for position, need in enumerate(waiting) if need <= free)
    return next(fitting, 0 if waiting and not running else None)


def available_nbytes() -> int:
    """The default budget: a share of the memory that is free for programs right now."""
    text = Path("/proc/meminfo").read_text()
    return int(SHARE_OF_MEMORY * int(text.partition("MemAvailable:")[2].split()[0]) * 1024)


def run_tasks(
    tasks: Sequence[Task], finished: Callable[[Task, Outcome], None], *, needs: Needs,
    budget: int, what: str, progress: Progress, slots: int | None = None,
    keep_open: Sequence[int] = (),
) -> None:  # fmt: skip
    """Runs all tasks and hands each outcome on at once; stops the others if anything is raised.

    At most `slots` run at a time, as many as there are cores if None. The workers keep the file
    descriptors `keep_open` open for as long as they live.
    """
    waiting, running = list(tasks), list[_Worker]()
    slots = slots or os.cpu_count() or 1
    try:
        while waiting or running:
            wanted = [needs.of(task.kind) for task in waiting]
            place = startable(wanted, [worker.need for worker in running], budget, slots)
            if place is not None:
                running.append(_Worker(waiting.pop(place), wanted[place], keep_open))
                continue
            labels = ", ".join(worker.task.label for worker in running)
            progress(f"{what} {labels}", len(tasks) - len(waiting) - len(running), len(tasks))
            time.sleep(_POLL_S)
            for worker in [worker for worker in running if worker.has_ended()]:
                running.remove(worker)
                outcome = worker.outcome()
                needs.learn(worker.task.kind, outcome.peak_nbytes)
                finished(worker.task, outcome)
    finally:
        for worker in running:
            worker.stop()


class _Worker:
    """A running task. Its stdin is a lifeline: the worker ends when this process does."""

    def __init__(self, task: Task, need: int, keep_open: Sequence[int]) -> None:
        self.task, self.need = task, need
        # Both live as long as the process, which outlives any block here.
        self._said, self._log = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "compiler.workers.worker", json.dumps(task.job)],
            stdin=subprocess.PIPE, stdout=self._said, stderr=self._log,
            start_new_session=True, pass_fds=keep_open,
        )  # fmt: skip

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def outcome(self) -> Outcome:
        """What the ended worker said, or what is known of its end."""
        said, log = self._text(self._said), self._text(self._log)
        self._close()
        if said:
            return Outcome(**json.loads(said[-1]))
        if self._process.returncode == -signal.SIGKILL:
            return Outcome({}, "it was killed: out of memory? lower --memory")
        return Outcome({}, log[-1] if log else f"it ended with code {self._process.returncode}")

    def stop(self) -> None:
        """Interrupts the worker, so that it leaves nothing half-written; then ends it."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # its own session: its child, too
            self._process.wait()
        self._close()

    def _text(self, file: Any) -> list[str]:
        file.seek(0)
        return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]

    def _close(self) -> None:
        for file in (self._said, self._log, self._process.stdin):
            if file is not None:
                file.close()


def memory_budget(gigabytes: float | None) -> int:
    """`--memory` in bytes, or the default. Raises UserError for what is no memory."""
    if gigabytes is None:
        return available_nbytes()
    if not 0 < gigabytes < 1e6:
        raise UserError(f"--memory {gigabytes:g}: give the gigabytes that builds may take, say 8")
    return int(gigabytes * 1e9)
