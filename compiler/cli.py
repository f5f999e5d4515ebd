"""The command line. Heavy imports wait until a command needs them, so that `--help` is instant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from compiler.api import DEFAULT_MODEL, DEFAULT_PIPELINE
from compiler.errors import UserError, VerificationError
from compiler.hub.commands import DEVICE, Device, hub_app
from compiler.records import print_json

app = typer.Typer(
    name="compiler",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Rewrites ONNX models for mobile NPUs, and **proves every rewrite in float64** at its own "
    "cut.\n\nStart with `python -m compiler build`: Depth Anything V2 Small, rewritten and "
    "verified in `build/dav2-small/`. Any `.onnx` file takes its place.",
    epilog="Exit codes: 0 done, 1 the numbers differ or a target refuses, 2 bad input (one line "
    "says what to do).",
)
app.add_typer(hub_app, name="hub")
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
            "an official .pth checkpoint; hf:OWNER/NAME or hf:FOLDER, a model of transformers; "
            "any .onnx file, or a folder with one."
        ),
    ] = DEFAULT_MODEL,
    passes: Annotated[
        str | None,
        typer.Option(
            help="The pipeline: NAME:OPTION=VALUE,NAME… See the command `passes`.  "
            f"[default: {DEFAULT_PIPELINE}; with --target none]"
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write.  [default: build/NAME]")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Input size, 350 or HEIGHTxWIDTH 392x518; for text the number of tokens.  "
            "[default: 518; of hf: models what their settings say]"
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            help="auto, twin:SEED, an official .pth, a Hugging Face id or folder. auto takes the "
            "Hugging Face weights if they can be had, else a twin. hf: models: auto or twin:SEED."
        ),
    ] = "auto",
    image: Annotated[
        Path | None, typer.Option(help="RGB photo for depth.png.  [default: a sample]")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of RGB photos for quantize and float16: every other one calibrates, the "
            "rest judge the loss. A depth map beside photo.jpg (photo.npy or a photo.png of 16 "
            "bits; 0: unknown) is ground truth: both models are aligned with it in scale and "
            "shift, as in MiDaS.  [default: generated, and a sample]"
        ),
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
    emulate: Annotated[
        bool,
        typer.Option(
            "--emulate", help="Measure what approximate passes lose on --chip's numerics: minutes."
        ),
    ] = False,
    target: Annotated[
        Literal["htp", "cpu"] | None,
        typer.Option(
            help="Add the passes that make this model faster on the NPU (--chip) or on this "
            "machine's CPU, as measured; none that costs."
        ),
    ] = None,
    chip: Chips = "iq-9075",
    upload: Annotated[
        bool, typer.Option("--upload", help="Then compile and profile it on AI Hub's --device.")
    ] = False,
    device: Device = DEVICE,
    as_json: Json = False,
) -> None:
    """Build a model: rewrite it pass by pass and verify every stage.

    Writes a folder with every stage, `model.onnx`, its weights, `build.json`, `report.html` and
    `depth.png`.
    """
    from compiler import api, display
    from compiler.hub.commands import profile_build, require_account
    from compiler.quantize.display import print_losses

    if upload:
        require_account()
    with display.progress() as show:
        record = api.build(
            model, passes, output=output, size=size, weights=weights, image=image, images=images,
            exporter=exporter, opset=opset, canonicalize=canonicalize, verify=verify,
            allow_noop=allow_noop, estimate=chip if estimate else None, target=target,
            emulate=chip if emulate else None, chip=chip if target == "htp" else None,
            progress=show, notice=display.notice,
        )  # fmt: skip
    folder = output or Path("build") / record["model"]["name"]
    if not as_json:
        display.print_build(record, folder)
        print_losses(record)
    if upload:
        record["hub"] = profile_build(folder, device, quiet=as_json)
    if as_json:
        print_json(record)


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
        print_json(comparison.record())
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
    estimates = []
    with display.progress() as show:
        for done, model in enumerate(models):
            show(f"preparing {model}", done, len(models))
            estimates.append((str(model), estimate_model(model_in(model), target)))
    if as_json:
        records = [{"model": name, "chip": chip, **e.record()} for name, e in estimates]
        print_json(records if len(records) > 1 else records[0])
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
def emulate(
    model: Annotated[Path, typer.Argument(help="An image-to-map model, or a build's folder.")],
    image: Annotated[Path, typer.Argument(help="An RGB photo; resized to the model's input.")],
    chip: Chips = "s24",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="PNG to write.  [default: IMAGE_CHIP.png]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a model with the NPU's own float16 or integer numerics, on this machine: minutes."""
    from compiler import display
    from compiler.building import writing
    from compiler.pictures import write_comparison
    from compiler.records import model_in
    from compiler.targets.chips import chip_named
    from compiler.targets.emulate import emulate as emulate_model
    from compiler.targets.emulate import expected_seconds
    from compiler.targets.htp import require_wheel

    target, path = chip_named(chip), _png(output or Path(f"{image.stem}_{chip}.png"))
    require_wheel()
    seconds = expected_seconds(model_in(model))
    display.notice(f"emulating {target.description}: about {seconds / 60:.1f} minutes")
    with display.progress() as show:
        emulation = emulate_model(model_in(model), image, target, show)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_comparison(path, image, emulation.float32, emulation.npu, ("float32", chip))
    record = {"picture": str(path), "chip": chip, "centred_l2": emulation.error.centred_l2,
              "max_ratio": emulation.error.max_ratio,
              "cpu_nodes": [str(node) for node in emulation.cpu_nodes]}  # fmt: skip
    if as_json:
        print_json(record)
    else:
        display.print_emulation(record)


@app.command()
def check(
    model: Annotated[Path, typer.Argument(help="A model, or the folder of a build.")],
    target: Annotated[
        Literal["htp", "aihub"],
        typer.Option(help="htp: the NPU of `compile` and `estimate`. aihub: Qualcomm's cloud."),
    ] = "htp",
    as_json: Json = False,
) -> None:
    """Say what a target would refuse in a model, or leave to the CPU. Exit code 1: refused."""
    from compiler import display
    from compiler.records import model_in
    from compiler.targets.preflight import check as findings_of

    findings = findings_of(model_in(model), target)
    if as_json:
        print_json([finding.record() for finding in findings])
    else:
        display.print_findings(findings, target)
    raise typer.Exit(1 if any(finding.is_error for finding in findings) else 0)


@app.command()
def passes(
    name: Annotated[str | None, typer.Argument(help="Show this pass whole.")] = None,
    as_json: Json = False,
) -> None:
    """List the passes: what each does, its options and its contract."""
    from compiler import catalogue, display

    entries = catalogue.entries() if name is None else [catalogue.entry(name)]
    if as_json:
        print_json(entries)
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
    html: Annotated[
        Path | None, typer.Option(help="Write it as a page of HTML instead of printing it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what changed between two models, or in one pass of a build. Exit code 1: they differ.

    Identical changes are shown once, with their count; names alone are no difference.
    """
    from compiler.building import writing
    from compiler.diff import diff_files, diff_pass

    if (b is None) == (pass_name is None):
        raise UserError("diff takes two models, or a build's folder and --pass NAME")
    difference = diff_files(a, b) if b is not None else diff_pass(a, str(pass_name))
    if html is not None:
        from compiler.diff.page import write_page

        with writing(html):
            write_page(difference, html)
    if as_json:
        print_json(difference.record())
    elif html is None:
        from compiler.diff.text import print_diff

        print_diff(difference)
    raise typer.Exit(0 if difference.is_empty else 1)


@app.command()
def bisect(
    build: Annotated[str, typer.Argument(help="The folder of a build, or a model with --passes.")],
    passes: Annotated[
        str | None, typer.Option(help="Build the model through this pipeline first, unverified.")
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(
            help="A command with {model} in it; exit code 0: good, 125: can't tell, else bad.  "
            "[default: float32 against the source]"
        ),
    ] = None,
    size: Annotated[str | None, typer.Option(help="With --passes, as in `build`.")] = None,
    weights: Annotated[str, typer.Option(help="With --passes, as in `build`.")] = "auto",
    canonicalize: Annotated[bool, typer.Option(help="With --passes, as in `build`.")] = True,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for the reproducer.  [default: BUILD.bisect]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the first bad pass of a build, then its first bad rewrite, and leave a reproducer."""
    from compiler import display
    from compiler.bisect.bisecting import bisect as search
    from compiler.bisect.bisecting import build_for_bisection, scratch_beside
    from compiler.bisect.display import print_bisection, print_step

    folder, target = Path(build), output or Path(f"{Path(build).resolve().name}.bisect")
    with scratch_beside(target) as scratch, display.progress() as show:
        if passes is not None:
            folder = scratch / "build"
            build_for_bisection(
                build, passes, folder, size=size, weights=weights, canonicalize=canonicalize,
                progress=show,
            )  # fmt: skip
        told = (lambda _text: None) if as_json else print_step
        record = search(folder, scratch, target, check=check, told=told, progress=show)
    if as_json:
        print_json(record)
    else:
        print_bisection(record)


@app.command()
def explain(
    model: Annotated[Path, typer.Argument(help="A build's folder, a stage of it, or a model.")],
    node: Annotated[str, typer.Argument(help="A node, or a tensor or weight.")],
    as_json: Json = False,
) -> None:
    """Print where a node comes from: the rewrites, the source's nodes, PyTorch's modules."""
    from compiler.explain import explain as history_of
    from compiler.explain import print_history

    history = history_of(model, node)
    if as_json:
        print_json(history.record())
    else:
        print_history(history)


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

    path = _png(output or Path(f"{image.stem}_depth.png"))
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
        print_json(record)
    else:
        display.print_run(record)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a build.")],
) -> None:
    """Write `report.html` of a build: one page with tables, drawings and the map, no network."""
    from compiler import display
    from compiler.report import write_report

    with display.progress() as show:
        show("report", 0, 1)
        path = write_report(folder)
    print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


@app.command()
def view(
    folder: Annotated[Path, typer.Argument(help="The folder of a build.")],
    stage: Annotated[
        str | None,
        typer.Option(help="04_split_heads, or the name of its pass.  [default: the last]"),
    ] = None,
    viewer: Annotated[
        Literal["netron", "model-explorer"] | None,
        typer.Option(
            "--with",
            help="model-explorer shows the stage before, too, both coloured by pass.  "
            "[default: what is installed]",
        ),
    ] = None,
) -> None:
    """Open a stage of a build in Netron or Google's Model Explorer, until Ctrl-C."""
    from compiler.view import view as open_view

    open_view(folder, stage, viewer)


@app.command()
def sweep(
    grid: Annotated[
        str, typer.Argument(help="lpcv2025, or a .toml description of models, sizes and passes.")
    ],
    chip: Chips = "iq-9075",
    device: Annotated[
        str | None, typer.Option(help="Measure on this device, too, as in `hub devices`.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write.  [default: sweep/GRID]")
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(help="GB for builds in parallel.  [default: 80 % of what is free]"),
    ] = None,
    runs: Annotated[int, typer.Option(help="Rounds of the CPU's timing.")] = 5,
    verify: Annotated[
        Literal["each", "final", "full", "none"], typer.Option(help="As in `build`.")
    ] = "each",
    as_json: Json = False,
) -> None:
    """Build and measure a grid of variants: one table, with the published figures beside it.

    What is there and current is not done again. Exit code 1: a variant failed, its row says why.
    """
    from compiler import display
    from compiler.sweep.grid import read_grid
    from compiler.sweep.running import sweep as run_sweep
    from compiler.sweep.table import print_sweep

    description = read_grid(grid)
    folder = output or Path("sweep") / description.path.stem
    with display.progress() as show:
        record = run_sweep(
            description, folder, chip=chip, device=device, memory_gb=memory, runs=runs,
            verify=verify, progress=show, notice=display.notice,
        )  # fmt: skip
    if as_json:
        print_json(record)
    else:
        print_sweep(record, folder)
    raise typer.Exit(1 if any(row["error"] for row in record["rows"]) else 0)


@app.command()
def tune(
    model: Annotated[str, typer.Argument(help="As in `build`.")] = DEFAULT_MODEL,
    passes: Annotated[
        str, typer.Option(help="Passes that every candidate has: a resize, a flip average …")
    ] = "",
    chip: Annotated[
        list[str] | None,
        typer.Option(help="Simulated chip, repeatable: the score is the mean.  [default: iq-9075]"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Measure on this device of AI Hub instead.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Measure on this machine's CPU.")] = False,
    max_loss: Annotated[
        float | None,
        typer.Option(help="Try approximate passes that lose at most this (AbsRel).  [default: no]"),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="With --max-loss, as in `build`.  [default: generated]")
    ] = None,
    schedules: Annotated[
        int, typer.Option(help="Schedules of each chip that count: luck averages out.")
    ] = 3,
    minutes: Annotated[float, typer.Option(help="No candidate is begun after that.")] = 30.0,
    size: Annotated[str | None, typer.Option(help="As in `build`.")] = None,
    weights: Annotated[str, typer.Option(help="As in `build`.")] = "auto",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write.  [default: tune/MODEL]")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(help="GB for candidates in parallel.  [default: 80 % of free]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Search for the fastest pipeline on a chip; every candidate is verified.

    What is known is not measured again: Ctrl-C when you like, and type the same line to go on.
    """
    from compiler import display
    from compiler.tuning.display import print_tuning
    from compiler.tuning.judges import judge_of
    from compiler.tuning.running import Model, folder_for
    from compiler.tuning.running import tune as run_tune

    folder = output or folder_for(model)
    with display.progress() as show:
        record = run_tune(
            Model(model, passes, size, weights), folder,
            judge_of(chip, device, cpu=cpu, schedules=schedules),
            minutes=minutes, max_loss=max_loss, images=images, memory_gb=memory,
            progress=show, notice=display.notice,
        )  # fmt: skip
    if as_json:
        print_json(record)
    else:
        print_tuning(record, folder)


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


def _png(path: Path) -> Path:
    if path.suffix.lower() not in ("", ".png"):
        raise UserError(f"the picture is a PNG: give -o {path.with_suffix('.png')}, not {path}")
    return path.with_suffix(".png")
