"""`python -m compiler hub …`: a model on AI Hub's devices. Imports wait until a command runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from compiler.errors import UserError
from compiler.records import json_text, print_json

if TYPE_CHECKING:
    from compiler.hub.chain import Chain
    from compiler.hub.client import Hub, Job
    from compiler.progress import Progress

hub_app = typer.Typer(
    no_args_is_help=True,
    help="Compile, profile and run a model on AI Hub's devices, and share the jobs.\n\nEach "
    "command goes on where the last one stopped, Ctrl-C included: nothing is uploaded twice. The "
    "API token is the client's own (`qai-hub configure`).",
)

DEVICE = "Samsung Galaxy S24 (Family)"
RUNTIME = "qnn_context_binary"
JOB_ID = r"j[a-z0-9]{5,}"

Runtime = Literal["qnn_context_binary", "qnn_dlc", "precompiled_qnn_onnx", "onnx", "tflite"]
Model = Annotated[Path, typer.Argument(help="A model, or the folder of a build.")]
Target = Annotated[
    str, typer.Argument(metavar="MODEL|JOB", help="A model, a build's folder, or a job's id.")
]
Device = Annotated[str, typer.Option(help="As in `hub devices`.")]
WhichDevice = Annotated[
    str | None, typer.Option("--device", help="Which, if the model was compiled for several.")
]
Runtimes = Annotated[
    Runtime | None, typer.Option(help=f"What to compile to.  [default: {RUNTIME}]")
]
Options = Annotated[
    str, typer.Option(help='Further compile options as AI Hub takes them: "--quantize_io …".')
]
Deadline = Annotated[
    float | None,
    typer.Option(metavar="MINUTES", help="Give up waiting then; the jobs go on.  [default: never]"),
]
Anew = Annotated[
    bool, typer.Option("--anew", help="Forget what was uploaded and submitted before.")
]
Image = Annotated[Path | None, typer.Option(help="RGB photo to run on the device.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@hub_app.command("compile")
def compile_model(
    model: Model, device: Device = DEVICE, runtime: Runtimes = None, options: Options = "",
    deadline: Deadline = None, anew: Anew = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Upload a model and compile it for a device."""
    from compiler.hub import display

    with _chain(model, device, _compile_options(runtime, options), deadline, anew, 2) as chain:
        chain.compile()
    if as_json:
        print_json(_record(chain))
    else:
        display.print_done(_record(chain))


@hub_app.command()
def profile(
    target: Target, device: Device = DEVICE, runtime: Runtimes = None, options: Options = "",
    deadline: Deadline = None, anew: Anew = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Measure a model on a device: latency, memory, compute units, slowest layers by pass.

    Uploads and compiles what is not compiled yet. Given a job, it waits for that one.
    """
    from compiler.hub import display

    if (job_id := _job_id(target)) is not None:
        _profile_job(job_id, deadline, as_json)
        return
    compile_options = _compile_options(runtime, options)
    with _chain(Path(target), device, compile_options, deadline, anew, 3) as chain:
        found = chain.profile()
    if as_json:
        print_json({**_record(chain), "profile": found.record()})
    else:
        display.print_done(_record(chain))
        display.print_profile(found)
        display.print_file(str(chain.profile_path), "all of the profile")


@hub_app.command()
def infer(
    target: Target,
    image: Annotated[Path, typer.Option(help="RGB photo to run on the device.")],
    device: Device = DEVICE, runtime: Runtimes = None, options: Options = "",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="PNG to write, with the values beside it "
                                  "as .npy.  [default: the hub folder; IMAGE_JOB.png]"),
    ] = None,
    deadline: Deadline = None, anew: Anew = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Run a photo on the device: its depth beside the one computed here, and the error.

    Given a compile job, the device's depth alone.
    """
    from compiler.hub import display

    if output is not None and output.suffix.lower() != ".png":
        raise UserError(f"the picture is a PNG: give -o {output.with_suffix('.png')}, not {output}")
    if (job_id := _job_id(target)) is not None:
        depth = _infer_with_job(job_id, image, output, deadline)
    else:
        compile_options = _compile_options(runtime, options)
        with _chain(Path(target), device, compile_options, deadline, anew, 3) as chain:
            depth = chain.depth(image, output)
    if as_json:
        print_json(depth)
    else:
        display.print_depth(depth)


@hub_app.command()
def share(
    target: Target,
    email: Annotated[list[str], typer.Option(help="Who may see it; as often as needed.")],
    device: WhichDevice = None,
    as_json: Json = False,
) -> None:
    """Share a compile job, its models included, with e-mail addresses."""
    from compiler.hub import display
    from compiler.hub.client import connect

    emails = _emails(email)
    hub = connect()
    if (job_id := _job_id(target)) is not None:
        shared = hub.share(job_id, emails)
    else:
        with _compiled_chain(hub, Path(target), device) as chain:
            job_id, shared = chain.compilation.job.id, chain.share(emails)
    if as_json:
        print_json({"job": job_id, "shared_with": shared})
    else:
        display.print_file(job_id, f"is shared with {', '.join(shared)}")


@hub_app.command()
def status(
    target: Annotated[
        str | None, typer.Argument(metavar="[MODEL|JOB]", help="[default: the newest jobs]")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=50, help="How many of the newest.")] = 20,
    as_json: Json = False,
) -> None:
    """List the newest jobs, or those of a model, or look one up."""
    from compiler.hub import display
    from compiler.hub.client import connect

    hub = connect()
    with _waiting("nothing was changed") as show:
        show("looking up jobs", 0, 1)
        if target is None:
            jobs = hub.jobs(limit)
        elif (job_id := _job_id(target)) is not None:
            jobs = [hub.job(job_id)]
        else:
            jobs = [hub.job(job_id) for job_id in _jobs_of(Path(target))]
    if as_json:
        print_json([asdict(job) for job in jobs])
    else:
        display.print_jobs([asdict(job) for job in jobs])


@hub_app.command()
def fetch(
    target: Target,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write; it gets the extension of what was "
                     "compiled.  [default: the hub folder]"),
    ] = None,
    device: WhichDevice = None,
    deadline: Deadline = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Download a compiled model, whole or not at all."""
    from compiler.hub import display
    from compiler.hub.chain import fetch_model
    from compiler.hub.client import connect

    hub = connect(deadline)
    if (job_id := _job_id(target)) is not None:
        with _waiting("nothing was written") as show:
            hub.say = lambda text: show(text, 0, 1)
            hub.finished(job_id).require_success()
            path = fetch_model(hub, job_id, output or Path(job_id))
    else:
        with _compiled_chain(hub, Path(target), device) as chain:
            path = chain.fetch(output)
    if as_json:
        print_json({"path": str(path), "nbytes": path.stat().st_size})
    else:
        display.print_file(str(path), f"{path.stat().st_size / 1e6:.1f} MB")


@hub_app.command()
def devices(as_json: Json = False) -> None:
    """List the devices, as `--device` takes them."""
    from compiler.hub import display
    from compiler.hub.client import connect

    with _waiting("nothing was changed") as show:
        show("listing devices", 0, 1)
        found = connect().devices()
    if as_json:
        print_json(found)
    else:
        display.print_devices(found)


@hub_app.command()
def run(
    model: Model,
    device: Device = DEVICE, runtime: Runtimes = None, options: Options = "", image: Image = None,
    emails: Annotated[
        list[str] | None, typer.Option("--share", help="E-mail address; as often as needed.")
    ] = None,
    deadline: Deadline = None, anew: Anew = False, as_json: Json = False,
) -> None:  # fmt: skip
    """The whole chain: upload, compile, profile, run a photo, share, fetch the compiled model."""
    from compiler.hub import display

    shared = _emails(emails or [])
    with _chain(model, device, _compile_options(runtime, options), deadline, anew, 5) as chain:
        found = chain.profile(image)
        depth = None if image is None else chain.depth(image)
        if shared:
            chain.share(shared)
        path = chain.fetch()
    if as_json:
        record = {"profile": found.record(), "depth": depth, "compiled_model": str(path)}
        print_json({**_record(chain), **record})
        return
    display.print_done(_record(chain))
    display.print_profile(found)
    display.print_file(str(chain.profile_path), "all of the profile")
    display.print_file(str(path), f"the compiled model, {path.stat().st_size / 1e6:.1f} MB")
    if depth is not None:
        display.print_depth(depth)


def require_account() -> None:
    """Raises UserError now rather than after a build, if AI Hub can't be used."""
    from compiler.hub.client import connect

    connect()


def profile_build(folder: Path, device: str, *, quiet: bool) -> dict[str, Any]:
    """`build --upload`: uploads, compiles and profiles a build, which is complete already.

    Prints tables unless `quiet`; returns what the build's `build.json` says of AI Hub then.
    """
    from compiler.hub import display

    resume = f"the build is complete; `hub profile {folder}` goes on from here"
    with _chain(folder, device, _compile_options(None, ""), None, False, 3, resume) as chain:
        found = chain.profile()
    if not quiet:
        display.print_done(_record(chain))
        display.print_profile(found)
    return chain.state.record()


# -- how -------------------------------------------------------------------------------------------


_RESUME = "the same command goes on from here, and uploads nothing twice"


@contextmanager
def _chain(
    target: Path, device: str, options: str, deadline: float | None, anew: bool, steps: int,
    resume: str = _RESUME,
) -> Iterator[Chain]:  # fmt: skip
    from compiler import display
    from compiler.hub.chain import Chain
    from compiler.hub.client import connect
    from compiler.hub.state import State

    hub = connect(deadline)
    with _waiting(resume) as show:
        show("reading the model", 0, steps)
        state = State.of(target, anew=anew)
        compilation = state.compilation(device, options)
        yield Chain(hub, state, compilation, show, display.notice, steps)


@contextmanager
def _compiled_chain(hub: Hub, target: Path, device: str | None) -> Iterator[Chain]:
    from compiler import display
    from compiler.hub.chain import Chain
    from compiler.hub.state import State

    with _waiting(_RESUME) as show:
        show("reading the model", 0, 1)
        state = State.of(target)
        yield Chain(hub, state, state.compiled(device), show, display.notice, 5)


@contextmanager
def _waiting(resume: str) -> Iterator[Progress]:
    """The progress display; Ctrl-C ends in a line that says how to go on, and exit code 130."""
    from compiler import display

    try:
        with display.progress() as show:
            yield show
    except KeyboardInterrupt:
        print(f"interrupted: {resume}", file=sys.stderr)
        raise typer.Exit(130) from None


def _profile_job(job_id: str, deadline: float | None, as_json: bool) -> None:
    from compiler.building import write_whole
    from compiler.hub import display
    from compiler.hub.profile import read_profile

    with _job_run(job_id, None, deadline) as (hub, job):
        content = hub.profile(job.id)
    profile = read_profile(content, None)
    path = Path(f"{job.id}.profile.json")
    write_whole(path, (json_text(content) + "\n").encode())
    if as_json:
        print_json({"job": asdict(job), "profile": profile.record()})
    else:
        display.print_jobs([asdict(job)])
        display.print_profile(profile)
        display.print_file(str(path), "all of the profile")


def _infer_with_job(
    job_id: str, image: Path, output: Path | None, deadline: float | None
) -> dict[str, Any]:
    from compiler.hub.chain import map_of, write_depths

    with _job_run(job_id, image, deadline) as (hub, job):
        depth = map_of(hub.outputs(job.id), job.id)
    path = output or Path(f"{image.stem}_{job.id}.png")
    return {"job": job.id, **write_depths(path, image, depth, None)}


@contextmanager
def _job_run(job_id: str, image: Path | None, deadline: float | None) -> Iterator[tuple[Hub, Job]]:
    """The finished inference job of a job's id."""
    from compiler import display
    from compiler.hub.chain import inference_of
    from compiler.hub.client import connect

    hub = connect(deadline)
    with _waiting("the job goes on: give its id in place of the compile job's") as show:
        hub.say = lambda text: show(text, 0, 1)
        yield hub, inference_of(hub, job_id, image, display.notice)


def _jobs_of(target: Path) -> list[str]:
    from compiler.hub.state import State

    compilations = State.of(target).compilations
    asked = [a for c in compilations for a in (c.job, *(run.job for run in c.runs))]
    return [job.id for job in asked if job.id]


def _record(chain: Chain) -> dict[str, Any]:
    """What a chain did, for `--json`: its part of the state."""
    return {
        "model": str(chain.state.model),
        "upload": asdict(chain.state.upload),
        **asdict(chain.compilation),
    }


def _job_id(target: str) -> str | None:
    """The target if it is a job's id; a file or folder of that name comes first."""
    if Path(target).exists():
        return None
    if re.fullmatch(JOB_ID, target):
        return target
    raise UserError(f"{target}: no such file or folder, and no job's id (they look like jabc123de)")


def _compile_options(runtime: Runtime | None, options: str) -> str:
    """The compile options in AI Hub's words."""
    words = " ".join(options.split())
    if "--target_runtime" not in words:
        return f"--target_runtime {runtime or RUNTIME} {words}".strip()
    if runtime is not None:
        raise UserError("give --runtime or --target_runtime in --options, not both")
    return words


def _emails(given: list[str]) -> list[str]:
    emails = [email.strip() for text in given for email in text.split(",") if email.strip()]
    bad = [email for email in emails if not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", email)]
    if bad:
        raise UserError(f"{bad[0]!r} is no e-mail address")
    return emails
