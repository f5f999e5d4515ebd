"""What a build costs, beside onnxsim and OnnxSlim on the same file, in one run.

    python -m tools.benchmark              # Small: minutes
    python -m tools.benchmark --large      # Large (1.3 GB) too: OnnxSlim alone takes minutes
    python -m tools.benchmark --giant      # split_heads alone on Giant (5 GB), cut to fewer layers

Every line is a process of its own, so that its peak memory is its own; ratios are to our passes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from compiler.api import DEFAULT_PIPELINE

GIANT_LAYERS = (6, 12, 24, 40)


def main(
    large: Annotated[bool, typer.Option("--large", help="Also Large, 1.3 GB of weights.")] = False,
    giant: Annotated[
        bool, typer.Option("--giant", help="Only: how the cost grows with Giant's layers.")
    ] = False,
    step: Annotated[str, typer.Option(hidden=True)] = "",
    path: Annotated[Path, typer.Option(hidden=True)] = Path(),
) -> None:
    """Prints seconds, peak memory and ratios."""
    if step:
        print(json.dumps(_measured(STEPS[step], path)))
        return
    console = Console()
    if giant:
        console.print(_giant_table())
        return
    for name in ["small", *(["large"] if large else [])]:
        with tempfile.TemporaryDirectory() as folder:
            import models

            source = models.resolve(f"dav2-{name}", weights="twin:0").write(Path(folder))
            console.print(_table(name, source))
    with tempfile.TemporaryDirectory() as folder:
        seconds, nbytes = _run("build", Path(folder) / "build")
    console.print(f"build of Small at 518, verified: {seconds:.1f} s, {nbytes / 1e9:.2f} GB")


def _table(name: str, source: Path) -> Table:
    size = sum(file.stat().st_size for file in source.parent.iterdir())
    table = Table(title=f"Depth Anything V2 {name}, {size / 1e9:.2f} GB", box=None)
    for column in ("", "s", "ratio", "GB", "ratio"):
        table.add_column(column, justify="right")
    base: tuple[float, float] | None = None
    for step in ("passes", "canonicalize", "onnxsim", "onnxslim"):
        seconds, nbytes = _run(step, source)
        base = base or (seconds, nbytes)
        table.add_row(step, f"{seconds:.2f}", f"{seconds / base[0]:.1f}",
                      f"{nbytes / 1e9:.2f}", f"{nbytes / base[1]:.1f}")  # fmt: skip
    return table


def _giant_table() -> Table:
    """split_heads, unverified: the cost per layer should not depend on how many there are."""
    table = Table(title="split_heads on Depth Anything V2 giant, 24 heads a layer", box=None)
    for column in ("layers", "weights GB", "s", "s a layer", "GB"):
        table.add_column(column, justify="right")
    for layers in GIANT_LAYERS:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / f"{layers}.onnx"
            _run("giant", source)
            size = sum(file.stat().st_size for file in source.parent.iterdir())
            seconds, nbytes = _run("split_heads", source)
            table.add_row(str(layers), f"{size / 1e9:.2f}", f"{seconds:.2f}",
                          f"{seconds / layers:.3f}", f"{nbytes / 1e9:.2f}")  # fmt: skip
    return table


def _run(step: str, path: Path) -> tuple[float, float]:
    command = [sys.executable, "-m", "tools.benchmark", "--step", step, "--path", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result["seconds"], result["nbytes"]


def _measured(step: Callable[[Path], float], path: Path) -> dict[str, Any]:
    seconds = step(path)
    # Not getrusage: its maximum would include what the parent had before this process began.
    status = Path("/proc/self/status").read_text()
    kilobytes = status.partition("VmHWM:")[2].split()[0]
    return {"seconds": seconds, "nbytes": int(kilobytes) * 1024}


def _passes(source: Path) -> float:
    return _through(source, DEFAULT_PIPELINE)


def _canonicalize(source: Path) -> float:
    return _through(source, "canonicalize")


def _split_heads(source: Path) -> float:
    return _through(source, "split_heads")


def _giant(path: Path) -> float:
    """Exports the first layers of Giant, as many as the file's name says, with twin weights."""
    from models.depth_anything import DepthMap, empty_network
    from models.export import export
    from models.exporters import choose_opset
    from models.twin import twin_state_dict
    from models.variants import PATCH, RELATIVE, TABLE_SIDE, Variant, variant_named

    start = time.perf_counter()
    layers = int(path.stem)
    taps = (layers // 4, layers // 2, layers - 1, layers)
    encoder = replace(variant_named("dav2-giant").encoder, layers=layers, taps=taps)
    network = empty_network(Variant(encoder, RELATIVE))
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    network.load_state_dict(twin_state_dict(shapes, 0), assign=True)
    side = TABLE_SIDE * PATCH
    export(DepthMap(network, side, side), path, side, side, "dynamo", choose_opset("dynamo", None))
    return time.perf_counter() - start


def _through(source: Path, pipeline: str) -> float:
    """Seconds of the passes themselves: reading and writing of stages, without stage 0."""
    from compiler.building import Builder
    from compiler.pipeline import parse_pipeline

    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        builder = Builder(Path(folder), allow_noop=True)
        stage = builder.source(source)
        start = time.perf_counter()
        for number, pass_ in enumerate(parse_pipeline(pipeline), start=1):
            stage = builder.apply(stage, pass_, number)
        return time.perf_counter() - start


def _onnxsim(source: Path) -> float:
    import onnx
    import onnxsim

    start = time.perf_counter()
    model, _ = onnxsim.simplify(onnx.load(source))
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        onnx.save(model, Path(folder) / "model.onnx", save_as_external_data=True)
    return time.perf_counter() - start


def _onnxslim(source: Path) -> float:
    import onnx
    import onnxslim

    start = time.perf_counter()
    model = onnxslim.slim(onnx.load(source))
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        onnx.save(model, Path(folder) / "model.onnx", save_as_external_data=True)
    return time.perf_counter() - start


def _build(folder: Path) -> float:
    import compiler

    start = time.perf_counter()
    compiler.build(weights="twin:0", output=folder)
    return time.perf_counter() - start


STEPS: dict[str, Callable[[Path], float]] = {
    "passes": _passes,
    "canonicalize": _canonicalize,
    "onnxsim": _onnxsim,
    "onnxslim": _onnxslim,
    "build": _build,
    "giant": _giant,
    "split_heads": _split_heads,
}

if __name__ == "__main__":
    typer.run(main)
