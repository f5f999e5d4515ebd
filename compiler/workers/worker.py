"""One build, estimate, profile or candidate, in a process of its own.

Run by `compiler.workers.tasks` with a JSON object as its only argument; the answer is the one line
on stdout. It ends when its stdin does: then whoever started it is gone.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from compiler.errors import UserError, VerificationError
from compiler.progress import nothing


def build(job: dict[str, Any]) -> dict[str, Any]:
    """Builds a variant; `variant.json` is what makes the folder count."""
    import compiler
    from compiler.sweep.state import write_state

    folder = Path(job["folder"])
    compiler.build(output=folder, **job["arguments"])
    write_state(folder, {"fingerprint": job["fingerprint"], "peak_nbytes": _peak_nbytes()})
    return {}


def estimate(job: dict[str, Any]) -> dict[str, Any]:
    """Simulates a model on a chip."""
    from compiler.targets.chips import chip_named
    from compiler.targets.htp import estimate as estimate_model

    return estimate_model(Path(job["model"]), chip_named(job["chip"])).record()


def profile(job: dict[str, Any]) -> dict[str, Any]:
    """Measures a model, or a build, on a device of AI Hub, from wherever an earlier try got to."""
    from compiler.hub.chain import Chain
    from compiler.hub.client import connect
    from compiler.hub.commands import RUNTIME
    from compiler.hub.state import State

    state = State.of(Path(job["model"]))
    compilation = state.compilation(job["device"], f"--target_runtime {RUNTIME}")
    found = Chain(connect(), state, compilation, nothing, lambda _text: None, 3).profile()
    return {"latency_ms": found.latency_ms, "peak_memory_bytes": found.peak_memory_bytes}


def candidate(job: dict[str, Any]) -> dict[str, Any]:
    """Builds, verifies and measures a candidate of `tune`."""
    from compiler.tuning.candidate import measure

    return measure(job)


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
JOBS = {"build": build, "estimate": estimate, "profile": profile, "candidate": candidate}


def main(job: dict[str, Any]) -> None:
    """Does the job that `job["does"]` names and prints its outcome."""
    from models.errors import ModelError

    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    outcome: dict[str, Any] = {"record": {}, "error": ""}
    try:
        outcome["record"] = JOBS[job["does"]](job)
    except (UserError, ModelError, VerificationError) as error:
        outcome["error"] = " ".join(str(error).split())
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        outcome |= {"error": f"the disk is full: {error}", "is_disk_full": True}
    answer.write(json.dumps({**outcome, "peak_nbytes": _peak_nbytes()}) + "\n")
    answer.flush()


def _end_with_stdin() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGINT)


def _peak_nbytes() -> int:
    """Most memory of this process and of a child. (getrusage counts what the parent had, too.)"""
    status = Path("/proc/self/status").read_text()
    own = int(status.partition("VmHWM:")[2].split()[0])
    return 1024 * (own + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
