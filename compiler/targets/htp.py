"""Qualcomm's NPU compiler on the user's own machine: context binaries and simulated latency.

It comes with the wheel `onnxruntime-qnn` (extra `htp`), needs no account and no device. The latency
is the compiler's own simulation of the chip, deterministic to the microsecond; it was within 8 % of
what AI Hub publishes for the stock model on the one chip with both.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from compiler.building import writing
from compiler.errors import UserError
from compiler.graph import read_model
from compiler.targets.chips import Chip

CONTEXT_OP = "EPContext"
INSTALL = "pip install -e '.[htp]' -c constraints.txt (Linux x86-64 with glibc 2.35 or newer)"


@dataclass(frozen=True)
class Estimate:
    """What preparing a model for a chip says about running it there.

    Latencies are simulated milliseconds, `low` and `high` the simulation's own bounds. Bytes are
    traffic with DRAM in one inference. `missing_ops` counts ops without a cost: above zero the
    latency is not to be trusted. `cpu_nodes` are left to the CPU.
    """

    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    fill_bytes: int
    spill_bytes: int
    context_bytes: int
    missing_ops: int
    cpu_nodes: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


@dataclass(frozen=True)
class Prepared:
    """The files of one preparation: the ONNX wrapper, the binary it points to, the profile."""

    wrapper: Path
    binary: Path
    profile: Path


def cpu_nodes(wrapper: onnx.ModelProto) -> tuple[str, ...]:
    """The nodes that stayed outside the NPU's context, as `Op name`."""
    nodes = wrapper.graph.node
    return tuple(f"{n.op_type} {n.name}".strip() for n in nodes if n.op_type != CONTEXT_OP)


def estimate(model: Path, chip: Chip) -> Estimate:
    """Prepares a model for a chip and reads what its compiler simulated."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(model, chip, Path(folder))
        return read_estimate(prepared)


def compile_for(model: Path, chip: Chip, output: Path) -> tuple[str, ...]:
    """Writes the context binary `output` and its wrapper `output.onnx`; returns the CPU's nodes."""
    if output.suffix == ".onnx":
        raise UserError(f"{output}: that is the wrapper's name; name the binary, say model.bin")
    with writing(output), _folder_beside(output) as folder:
        prepared = prepare(model, chip, folder)
        wrapper = onnx.load(prepared.wrapper)
        for node in wrapper.graph.node:
            for attribute in node.attribute:
                if node.op_type == CONTEXT_OP and attribute.name == "ep_cache_context":
                    attribute.s = output.name.encode()
        onnx.save(wrapper, prepared.wrapper)
        prepared.binary.replace(output)
        prepared.wrapper.replace(output.with_suffix(".onnx"))
        return cpu_nodes(wrapper)


def require_wheel() -> None:
    """Raises UserError, which says what to install, where the NPU compiler is missing."""
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        raise UserError(f"Qualcomm's NPU compiler is not installed: {INSTALL}")


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent.resolve()) as folder:
        yield Path(folder)


def prepare(model: Path, chip: Chip, folder: Path) -> Prepared:
    """Compiles a model for a chip into files in `folder`, in a process of its own.

    Raises UserError when the provider isn't installed, can't load, or refuses the model.
    """
    require_wheel()
    read_model(model)  # a bad file is refused in our words
    files = Prepared(folder / "model.onnx", folder / "model_qnn.bin", folder / "profile.csv")
    job = {
        "model": str(model.resolve()), "context": str(files.wrapper), "profile": str(files.profile),
        "soc_model": str(chip.soc_model), "htp_arch": str(chip.htp_arch),
        "vtcm_mb": str(chip.vtcm_mb or ""),
    }  # fmt: skip
    command = [sys.executable, "-m", "compiler.targets.prepare", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode or not files.binary.exists():
        raise UserError(f"{model}: {_reason(done.stderr)}")
    return files


def read_estimate(prepared: Prepared) -> Estimate:
    """The simulation's figures, from the profile of a preparation."""
    with prepared.profile.open(newline="") as file:
        rows = {row["Event Identifier"]: int(row["Time"]) for row in csv.DictReader(file)}
    latency = "Simulated (Accelerator exec time us"
    if f"{latency})" not in rows:
        raise UserError("the provider wrote no simulated latency for this chip")
    return Estimate(
        latency_ms=rows[f"{latency})"] / 1e3,
        latency_low_ms=rows[f"{latency} (lower estimate))"] / 1e3,
        latency_high_ms=rows[f"{latency} (upper estimate))"] / 1e3,
        fill_bytes=_total(rows, ("Input Fill", "Intermediate Fill", "Inter HTP Fill")),
        spill_bytes=_total(rows, ("Intermediate Spill", "Inter HTP Spill", "Output Spill")),
        context_bytes=prepared.binary.stat().st_size,
        missing_ops=next(v for k, v in rows.items() if k.startswith("Missing Ops")),
        cpu_nodes=cpu_nodes(onnx.load(prepared.wrapper, load_external_data=False)),
    )


def _total(rows: dict[str, int], names: Iterable[str]) -> int:
    return sum(rows[name] for name in names)


def _reason(stderr: str) -> str:
    """The last line that says something, of what a failed preparation printed."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line] or lines
    text = errors[-1] if errors else "it stopped without a word"
    return f"Qualcomm's NPU compiler could not take the model: {text[-300:]}"
