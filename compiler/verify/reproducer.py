"""What a failed rewrite leaves behind: both regions, the inputs, and a command that replays it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from compiler.rewrite import Pass, Rewrite
from compiler.verify.proof import Proof, trials
from compiler.verify.sizes import Sizes


def write_reproducer(
    folder: Path, rewrite: Rewrite, pass_: Pass, proof: Proof, seed: int = 0,
    sizes: Sequence[Sizes] = (),
) -> Path:  # fmt: skip
    """Writes `old.onnx`, `new.onnx`, `inputs.npz`, `replay.sh`, `failure.json` into a new folder.

    Declared rewrites have no old region; theirs holds the new one and the record of the failure.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    onnx.save(rewrite.new.model(), folder / "new.onnx")
    if rewrite.old.nodes:
        onnx.save(rewrite.old.model(), folder / "old.onnx")
        tried = trials(rewrite, proof.bound, seed, sizes)
        feeds = next((feeds for feeds, found in tried if found.status == "fail"), {})
        np.savez(folder / "inputs.npz", **feeds)
        replay = folder / "replay.sh"
        replay.write_text(
            "#!/bin/sh\n# Exit code 1: the two regions still differ.\n"
            'cd "$(dirname "$0")" && python -m compiler verify old.onnx new.onnx '
            f"--inputs inputs.npz --bound {proof.bound:g}\n"
        )
        replay.chmod(0o755)
    record = {"pass": pass_.text(), "rewrite": rewrite.title, "seed": seed, "error": proof.error,
              "bound": proof.bound, "detail": proof.detail}  # fmt: skip
    (folder / "failure.json").write_text(json.dumps(record, indent=1) + "\n")
    return folder
