"""Workers in parallel: what may start beside what, and what becomes of one that fails."""

import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.errors import UserError
from compiler.progress import nothing
from compiler.workers import tasks
from compiler.workers.tasks import (
    FIRST_NEED_NBYTES,
    MARGIN,
    Needs,
    Outcome,
    Task,
    memory_budget,
    run_tasks,
    startable,
)

STARTS = {
    "nothing waits": ([], [], 10, None),
    "the first that fits": ([4, 3], [], 10, 0),
    "beside a running one": ([4, 3], [6], 10, 0),
    "exactly full": ([4], [6], 10, 0),
    "a smaller one goes first": ([5, 3], [6], 10, 1),
    "none fits": ([5, 5], [6], 10, None),
    "too large for any budget, but alone": ([50], [], 10, 0),
    "too large for any budget, and not alone": ([50], [1], 10, None),
    "a smaller one before the too large": ([50, 2], [], 10, 1),
    "no slot": ([1], [1, 1], 10, None),
}


@pytest.mark.parametrize("case", STARTS)
def test_what_may_start(case):
    waiting, running, budget, expected = STARTS[case]
    assert startable(waiting, running, budget, slots=2) == expected


@given(
    needs=st.lists(st.integers(1, 12), max_size=8), slots=st.integers(1, 4), data=st.data()
)  # fmt: skip
def test_every_task_runs_and_the_budget_holds(needs, slots, data):
    """Whatever ends first, and however large a task is."""
    waiting, running, done = list(needs), [], []
    while waiting or running:
        place = startable(waiting, running, 10, slots)
        if place is None:
            assert running, "nothing runs and nothing may start"
            done.append(running.pop(data.draw(st.integers(0, len(running) - 1))))
        else:
            running.append(waiting.pop(place))
        assert len(running) <= slots
        assert sum(running) <= 10 or len(running) == 1
    assert sorted(done) == sorted(needs)


def test_a_need_is_learnt_from_the_largest_of_its_kind():
    needs = Needs()
    assert needs.of(("build", "a")) == FIRST_NEED_NBYTES
    for peak in (1_000_000_000, 4_000_000_000, 2_000_000_000, 0):
        needs.learn(("build", "a"), peak)
    assert needs.of(("build", "a")) == MARGIN * 4_000_000_000
    assert needs.of(("build", "b")) == FIRST_NEED_NBYTES


@pytest.mark.parametrize("gigabytes", [0, -1, float("nan"), float("inf")])
def test_what_is_no_memory_is_refused(gigabytes):
    with pytest.raises(UserError, match="--memory"):
        memory_budget(gigabytes)


def test_the_default_is_less_than_there_is():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory_budget(None) < total
    assert memory_budget(1.5) == 1_500_000_000


def outcomes(jobs, progress=nothing) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    run_tasks(
        [Task(label, (), job) for label, job in jobs.items()],
        lambda task, outcome: found.update({task.label: outcome}),
        needs=Needs(), budget=1, what="testing", progress=progress,
    )  # fmt: skip
    return found


def test_a_failed_worker_says_why_and_the_next_one_runs(tmp_path):
    job = {"does": "build", "folder": str(tmp_path / "b"), "fingerprint": "",
           "arguments": {"model": "none.onnx"}}  # fmt: skip
    found = outcomes({"bad input": job, "our bug": {"does": "nothing"}})
    assert found["bad input"].error.startswith("no file at none.onnx")
    assert found["bad input"].peak_nbytes > 1_000_000
    assert found["our bug"].error == "KeyError: 'nothing'"
    assert not list(tmp_path.iterdir())


def test_a_killed_worker_is_taken_for_out_of_memory(monkeypatch):
    started = []
    popen = tasks.subprocess.Popen

    def recorded(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    def kill(_what, _done, _total):
        started[0].send_signal(signal.SIGKILL)

    monkeypatch.setattr(tasks.subprocess, "Popen", recorded)
    (outcome,) = outcomes({"a": {"does": "estimate", "model": "", "chip": ""}}, kill).values()
    assert "out of memory? lower --memory" in outcome.error


def test_an_interruption_stops_the_workers(monkeypatch):
    started = []
    popen = tasks.subprocess.Popen

    def recorded(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    def interrupt(_what, _done, _total):
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks.subprocess, "Popen", recorded)
    with pytest.raises(KeyboardInterrupt):
        outcomes({"a": {"does": "estimate", "model": "", "chip": ""}}, interrupt)
    assert started[0].poll() is not None
