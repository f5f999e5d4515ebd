"""The command line. Heavy imports wait until a command needs them, so that `--help` is instant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from compiler.api import DEFAULT_MODEL, DEFAULT_PIPELINE
from compiler.errors import UserError, VerificationError
from compiler.records import json_text

app = typer.Typer(
    name="compiler",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Rewrites ONNX models for mobile NPUs, and **proves every rewrite in float64** at its own "
    "cut.\n\nStart with `python -m compiler build`: Depth Anything V2 Small, rewritten and "
    "verified in `build/dav2-small/`. Any `.onnx` file takes its place.",
    epilog="Exit codes: 0 done, 1 the numbers differ, 2 bad input (one line says what to do).",
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Chips = Annotated[
    str, typer.Option(help="s24, s25, s26, iq-9075, sa8775 or sa8797; the last three simulate.")
]


@app.command()
def build(
    model: Annotated[
        str,
        typer.Argument(
            help="dav2-small|base|large|giant, with -metric-indoor or -metric-outdoor for metres; "
            "an official .pth checkpoint; or any .onnx file."
        ),
    ] = DEFAULT_MODEL,
    passes: Annotated[
        str, typer.Option(help="The pipeline: NAME:OPTION=VALUE,NAME… See the command `passes`.")
    ] = DEFAULT_PIPELINE,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write.  [default: build/NAME]")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Input size, 350 or HEIGHTxWIDTH 392x518.  [default: 518]")
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            help="auto, twin:SEED, an official .pth, a Hugging Face id or folder. auto takes the "
            "Hugging Face weights if they can be had, else a twin."
        ),
    ] = "auto",
    image: Annotated[
        Path | None, typer.Option(help="RGB photo for depth.png.  [default: a sample]")
    ] = None,
    exporter: Annotated[
        Literal["dynamo", "torchscript"], typer.Option(help="PyTorch exporter of named models.")
    ] = "dynamo",
    opset: Annotated[
        int | None, typer.Option(help="Opset of the export.  [default: the exporter's]")
    ] = None,
    canonicalize: Annotated[
        bool, typer.Option(help="Run the pass canonicalize before all others.")
    ] = True,
    verify: Annotated[
        Literal["each", "final", "full", "none"],
        typer.Option(
            help="Prove every rewrite in float64, and compare whole models in float32: after each "
            "pass, after the final one, or (full) in float64 too."
        ),
    ] = "each",
    allow_noop: Annotated[
        bool, typer.Option("--allow-noop", help="A pass that rewrites nothing is no error.")
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Simulate every stage's latency on --chip.")
    ] = False,
    chip: Chips = "iq-9075",
    as_json: Json = False,
) -> None:
    """Build a model: rewrite it pass by pass and verify every stage.

    Writes a folder with every stage, `model.onnx`, its weights, `build.json` and `depth.png`.
    """
    from compiler import api, display

    with display.progress() as show:
        record = api.build(
            model, passes, output=output, size=size, weights=weights, image=image,
            exporter=exporter, opset=opset, canonicalize=canonicalize, verify=verify,
            allow_noop=allow_noop, estimate=chip if estimate else None,
            progress=show, notice=display.notice,
        )  # fmt: skip
    folder = output or Path("build") / record["model"]["name"]
    if as_json:
        _print_json(record)
    else:
        display.print_build(record, folder)


@app.command()
def verify(
    a: Annotated[Path, typer.Argument(help="The reference model.")],
    b: Annotated[Path, typer.Argument(help="The model in question, with the same signature.")],
    inputs: Annotated[
        Path | None, typer.Option(help=".npz with an array an input.  [default: generated]")
    ] = None,
    bound: Annotated[
        float | None, typer.Option(help="Largest error in float64.  [default: 2⁻²⁰]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two models of one signature, in float64 and float32. Exit code 1: they differ."""
    from compiler import display
    from compiler.compare import compare_models

    with display.progress() as show:
        comparison = compare_models(a, b, inputs=inputs, bound=bound, progress=show)
    if as_json:
        _print_json(comparison.record())
    else:
        display.print_comparison(comparison)
    raise typer.Exit(0 if comparison.is_equal else 1)


@app.command()
def estimate(
    models: Annotated[list[Path], typer.Argument(help="Models or folders of builds, to compare.")],
    chip: Chips = "iq-9075",
    as_json: Json = False,
) -> None:
    """Simulate latency and memory traffic on a Snapdragon NPU: on this machine, no upload."""
    from compiler import display
    from compiler.records import model_in
    from compiler.targets.chips import chip_with_estimates
    from compiler.targets.htp import estimate as estimate_model

    target = chip_with_estimates(chip)
    estimates = {}
    with display.progress() as show:
        for done, model in enumerate(models):
            show(f"preparing {model}", done, len(models))
            estimates[str(model)] = estimate_model(model_in(model), target)
    if as_json:
        records = [{"model": name, "chip": chip, **e.record()} for name, e in estimates.items()]
        _print_json(records if len(records) > 1 else records[0])
    else:
        display.print_estimates(estimates, target)


@app.command("compile")
def compile_model(
    model: Annotated[Path, typer.Argument(help="A model, or the folder of a build.")],
    chip: Chips,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The binary; its ONNX wrapper goes beside it.")
    ] = Path("model.bin"),
) -> None:
    """Compile a model for a Snapdragon NPU: a context binary and the ONNX wrapper around it."""
    from compiler import display
    from compiler.records import model_in
    from compiler.targets.chips import chip_named
    from compiler.targets.htp import compile_for

    target = chip_named(chip)
    with display.progress() as show:
        show(f"compiling for {target.description}", 0, 1)
        on_cpu = compile_for(model_in(model), target, output)
    display.print_compiled(output, on_cpu)


@app.command()
def passes(
    name: Annotated[str | None, typer.Argument(help="Show this pass whole.")] = None,
    as_json: Json = False,
) -> None:
    """List the passes: what each does, its options and its contract."""
    from compiler import catalogue, display

    entries = catalogue.entries() if name is None else [catalogue.entry(name)]
    if as_json:
        _print_json(entries)
    elif name is None:
        display.print_catalogue(entries)
    else:
        display.print_pass(entries[0])


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="A model, or the folder of a build with --pass.")],
    b: Annotated[Path | None, typer.Argument(help="The other model.")] = None,
    pass_name: Annotated[
        str | None, typer.Option("--pass", help="Show what this pass did in the build A.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what changed between two models, or in one pass of a build. Exit code 1: they differ."""
    from compiler import display
    from compiler.diff import diff_graphs
    from compiler.graph import Graph
    from compiler.records import stages_around

    if (b is None) == (pass_name is None):
        raise UserError("diff takes two models, or a build's folder and --pass NAME")
    before, after = (a, b) if b is not None else stages_around(a, str(pass_name))
    difference = diff_graphs(Graph.load(before), Graph.load(after))
    if as_json:
        _print_json(difference.record())
    else:
        display.print_diff(difference, before, after)
    raise typer.Exit(0 if difference.is_empty else 1)


@app.command()
def run(
    model: Annotated[Path, typer.Argument(help="An image-to-map model.onnx, or a build's folder.")],
    image: Annotated[Path, typer.Argument(help="An RGB photo; resized to the model's input.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="PNG to write, with the values beside it as .npy.  "
                     "[default: IMAGE_depth.png]"),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Run a model on a photo: the depth as a picture and as raw numbers."""
    import numpy as np

    from compiler import display
    from compiler.building import writing
    from compiler.pictures import depth_of, write_depth
    from compiler.records import model_in

    path = output or Path(f"{image.stem}_depth.png")
    if path.suffix.lower() not in ("", ".png"):
        raise UserError(f"the picture is a PNG: give -o {path.with_suffix('.png')}, not {path}")
    path = path.with_suffix(".png")
    with display.progress() as show:
        show("running", 0, 1)
        depth = depth_of(model_in(model), image)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_depth(path, depth)
        np.save(path.with_suffix(".npy"), depth.astype(np.float32))
    record = {"picture": str(path), "values": str(path.with_suffix(".npy")),
              "shape": list(depth.shape), "min": float(depth.min()), "max": float(depth.max()),
              "mean": float(depth.mean())}  # fmt: skip
    if as_json:
        _print_json(record)
    else:
        display.print_run(record)


def main() -> None:
    """Runs the command line; what a person did wrong gets one line and exit code 2."""
    from models.errors import ModelError

    try:
        app()
    except (UserError, ModelError) as error:
        _fail("error", error, 2)
    except VerificationError as error:
        _fail("verification failed", error, 1)


def _fail(kind: str, error: Exception, code: int) -> None:
    print(f"{kind}: {' '.join(str(error).split())}", file=sys.stderr)
    raise SystemExit(code) from None


def _print_json(record: Any) -> None:
    print(json_text(record))
