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
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from compiler.building import refuse_folder, writing
from compiler.errors import UserError
from compiler.graph import read_model
from compiler.targets.attribution import Attribution, attribute, graph_names, once_a_graph
from compiler.targets.chips import Chip
from compiler.targets.provider import CANNOT_LOAD

CONTEXT_OP = "EPContext"
# What the provider leaves to the CPU in every quantized model: its float inputs and outputs.
EDGE_OPS = ("QuantizeLinear", "DequantizeLinear")
INSTALL = "pip install -e '.[htp]' -c constraints.txt (Linux x86-64 with glibc 2.35 or newer)"
# How often a running child's caller hears how long it has run, in seconds.
TICK_SECONDS = 0.5


@dataclass(frozen=True)
class CpuNode:
    """A node that the NPU leaves to the CPU, and the provider's reason.

    `name` is that of its first output if it has none.
    """

    op: str
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op} {self.name!r}: {self.reason}"


@dataclass(frozen=True)
class Estimate:
    """What preparing a model for a chip says about running it there.

    Latencies are simulated milliseconds, `low` and `high` the simulation's own bounds. Bytes are
    traffic with DRAM in one inference. `missing_ops` counts ops without a cost: above zero the
    latency is not to be trusted. `cpu_nodes` are left to the CPU, and not in the latency.
    """

    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    fill_bytes: int
    spill_bytes: int
    context_bytes: int
    missing_ops: int
    cpu_nodes: tuple[CpuNode, ...]
    attribution: Attribution

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


@dataclass(frozen=True)
class Prepared:
    """The files of one preparation: the ONNX wrapper, the binary it points to, the profile."""

    folder: Path

    @property
    def wrapper(self) -> Path:
        """The ONNX model around the binary, with the nodes that are left to the CPU."""
        return self.folder / "model.onnx"

    @property
    def binary(self) -> Path:
        """The context binary."""
        return self.folder / "model_qnn.bin"

    def cpu_nodes(self) -> tuple[CpuNode, ...]:
        """The nodes that stayed outside the NPU's context."""
        wrapper = onnx.load(self.wrapper, load_external_data=False)
        trace = self.folder / "qnn_op_trace.json"
        unsupported = json.loads(trace.read_text("utf-8"))["unsupported_nodes"]
        reasons = {(n["op_type"], n["node_name"]): n["reason"] for n in unsupported}
        left = (node for node in wrapper.graph.node if node.op_type != CONTEXT_OP)
        return tuple(
            CpuNode(n.op_type, n.name or n.output[0],
                    reasons.get((n.op_type, n.name)) or "the provider gives no reason")
            for n in left
        )  # fmt: skip


def refused_nodes(folder: Path) -> list[CpuNode] | None:
    """The nodes that the provider's trace in a folder says it refused; None if it took no node."""
    trace = json.loads((folder / "qnn_op_trace.json").read_text("utf-8"))
    if not any(graph["op_mappings"] for graph in trace["subgraph_traces"]):
        return None
    return [CpuNode(n["op_type"], n["node_name"], n["reason"]) for n in trace["unsupported_nodes"]]


def estimate(model: Path, chip: Chip) -> Estimate:
    """Prepares a model for a chip and reads what its compiler simulated."""
    with tempfile.TemporaryDirectory() as folder:
        return read_estimate(prepare(model, chip, Path(folder), simulate=True), model)


def compile_for(model: Path, chip: Chip, output: Path) -> tuple[CpuNode, ...]:
    """Writes the context binary `output` and its wrapper `output.onnx`; returns the CPU's nodes."""
    if output.suffix == ".onnx":
        raise UserError(f"{output}: that is the wrapper's name; name the binary, say model.bin")
    _refuse_to_replace(output)
    with writing(output), _folder_beside(output) as folder:
        prepared = prepare(model, chip, folder)
        on_cpu = prepared.cpu_nodes()
        wrapper = onnx.load(prepared.wrapper)
        for node in wrapper.graph.node:
            for field in node.attribute:
                if node.op_type == CONTEXT_OP and field.name == "ep_cache_context":
                    field.s = output.name.encode()
        onnx.save(wrapper, prepared.wrapper)
        prepared.binary.replace(output)
        prepared.wrapper.replace(output.with_suffix(".onnx"))
        return on_cpu


def _refuse_to_replace(output: Path) -> None:
    """Raises UserError unless the binary and its wrapper are new, or both are of this kind."""
    refuse_folder(output)
    wrapper = output.with_suffix(".onnx")
    if wrapper.exists():
        ops = {node.op_type for node in read_model(wrapper).graph.node}
        if CONTEXT_OP not in ops:
            raise UserError(f"{wrapper} is a model, not a wrapper: choose another name for -o")
    elif output.exists():
        raise UserError(f"{output} is there already, without a wrapper: choose another -o")


def require_wheel() -> None:
    """Raises UserError, which says what to install, where the NPU compiler is missing."""
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        raise UserError(f"Qualcomm's NPU compiler is not installed: {INSTALL}")


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent.resolve()) as folder:
        yield Path(folder)


def prepare(model: Path, chip: Chip, folder: Path, *, simulate: bool = False) -> Prepared:
    """Compiles a model for a chip into files in `folder`, in a process of its own.

    With `simulate` the folder also gets a trace of the inference, of about 100 MB. Raises UserError
    when the provider isn't installed, can't load, or refuses the model.
    """
    prepared = Prepared(folder)
    job = {"context": str(prepared.wrapper), "trace": str(folder)}
    run_provider(model, chip, folder, job | ({"profile": str(folder)} if simulate else {}))
    if not prepared.binary.exists():
        raise UserError(f"{model}: the NPU takes none of its nodes; `check` says why")
    return prepared


def run_provider(
    model: Path,
    chip: Chip,
    folder: Path,
    job: dict[str, str],
    ticking: Callable[[float], None] = lambda _seconds: None,
) -> None:
    """One session of the provider in a child process; `job` as in `compiler.targets.provider`.

    `ticking` is told every half second how many seconds have passed. Raises UserError when the
    provider isn't installed, can't load, or refuses the model.
    """
    require_wheel()
    read_model(model)  # a bad file is refused in our words
    job = {
        "model": str(model.resolve()), "soc_model": str(chip.soc_model),
        "htp_arch": str(chip.htp_arch), "vtcm_mb": str(chip.vtcm_mb), **job,
    }  # fmt: skip
    command = [sys.executable, "-m", "compiler.targets.provider", json.dumps(job)]
    said, start = folder / "stderr.txt", time.monotonic()
    with said.open("wb") as stderr, subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=stderr, cwd=folder
    ) as child:  # fmt: skip
        try:
            while child.poll() is None:
                ticking(time.monotonic() - start)
                _wait(child)
        except BaseException:
            child.kill()  # Ctrl-C leaves no child behind
            raise
    reason = _reason(said.read_text("utf-8", errors="replace"))
    if child.returncode == CANNOT_LOAD:
        raise UserError(f"Qualcomm's NPU compiler does not load here ({reason}): {INSTALL}")
    if child.returncode:
        raise UserError(f"{model}: Qualcomm's NPU compiler could not take the model: {reason}")


def _wait(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(TICK_SECONDS)
    except subprocess.TimeoutExpired:
        return


def read_estimate(prepared: Prepared, model: Path) -> Estimate:
    """The simulation's figures, from the profile of a preparation of `model`.

    Where nodes are left to the CPU between others, the NPU runs several graphs, one by one.
    """
    graphs = once_a_graph(_blocks(prepared.folder), len(graph_names(prepared.folder)))
    latency = "Simulated (Accelerator exec time us"
    if any(f"{latency})" not in rows for rows in graphs):
        raise UserError("the provider wrote no simulated latency for this chip")
    latencies_ms = [rows[f"{latency})"] / 1e3 for rows in graphs]
    return Estimate(
        latency_ms=sum(latencies_ms),
        latency_low_ms=sum(rows[f"{latency} (lower estimate))"] for rows in graphs) / 1e3,
        latency_high_ms=sum(rows[f"{latency} (upper estimate))"] for rows in graphs) / 1e3,
        fill_bytes=_total(graphs, ("Input Fill", "Intermediate Fill", "Inter HTP Fill")),
        spill_bytes=_total(graphs, ("Intermediate Spill", "Inter HTP Spill", "Output Spill")),
        context_bytes=prepared.binary.stat().st_size,
        missing_ops=_total(graphs, ("Missing Ops (Number of Ops with no Costs associated)",)),
        cpu_nodes=prepared.cpu_nodes(),
        attribution=attribute(prepared.folder, model, latencies_ms),
    )


def _blocks(profile: Path) -> list[dict[str, int]]:
    """The profile's rows, a block for each preparation of a graph that it tells of."""
    blocks: list[dict[str, int]] = []
    with (profile / "profile.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["Message"] == "FINALIZE":
                blocks.append({})
            if row["Time"].isdecimal():
                blocks[-1][row["Event Identifier"]] = int(row["Time"])
    return blocks


def _total(graphs: Iterable[dict[str, int]], names: Iterable[str]) -> int:
    return sum(rows[name] for rows in graphs for name in names)


def _reason(stderr: str) -> str:
    """The last line that says something, of what a failed child printed."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line] or lines
    return errors[-1][-300:] if errors else "it stopped without a word"
