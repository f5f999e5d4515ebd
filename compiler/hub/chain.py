"""A model on AI Hub, step by step: upload, compile, run on the device, share, fetch.

Every step looks at the state first and does only what is missing, so that running a chain again
goes on where it stopped. Only `Chain.upload` sends the model, and never when its id is known.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import models
from compiler.building import refuse_folder, sha256, write_whole, writing
from compiler.errors import UserError
from compiler.graph import Graph
from compiler.hub.client import COMPILE as COMPILE_KIND
from compiler.hub.client import SUCCESS, ExpiredError, Hub, Job
from compiler.hub.profile import Profile, read_profile
from compiler.hub.state import Asked, Compilation, DeviceRun, State
from compiler.pictures import Map, depth_of, image_size, write_comparison, write_depth
from compiler.progress import Progress
from compiler.records import json_text
from compiler.rewrite import Signature
from compiler.targets import preflight
from compiler.targets.package import MODEL_NAME, package
from compiler.verify.measure import compare

Notice = Callable[[str], None]

STEPS = UPLOAD, COMPILE, RUN, SHARE, FETCH = (
    "uploading", "compiling", "running on the device", "sharing", "fetching the compiled model",
)  # fmt: skip
# A model of a thousand nodes can have as many findings; errors come first.
_FINDINGS_TOLD = 20


class Chain:
    """One model, one device, one set of options, and how far they got."""

    def __init__(
        self, hub: Hub, state: State, compilation: Compilation, progress: Progress, notice: Notice,
        steps: int,
    ) -> None:  # fmt: skip
        """Takes the state over.

        Args:
            hub: the service.
            state: is saved whenever something is known.
            compilation: the part of the state that this chain is about.
            progress: told (what, steps done, steps).
            notice: told one line a finding and a job.
            steps: how many steps there will be, for the progress.
        """
        self.hub, self.state, self.compilation = hub, state, compilation
        self._notice = notice
        self._done = 0
        self._steps = steps
        self._progress = progress
        hub.say = self._say

    def upload(self) -> str:
        """The uploaded model's id; checks and packages the model first if it must be sent."""
        upload = self.state.upload
        if upload.is_open:
            self._step(UPLOAD)
            with tempfile.TemporaryDirectory() as folder:
                path = self._packaged(Path(folder) / "upload")
                self._preflight(path)
                was_asked = self._named(upload)
                nbytes = sum(f.stat().st_size for f in (path, *path.rglob("*")) if f.is_file())
                self._say(f"uploading {nbytes / 1e6:.0f} MB")
                upload.id = self.hub.upload_model(path, upload.name, was_asked=was_asked)
            upload.status = SUCCESS
            self.state.save()
        return upload.id

    def compile(self) -> Asked:
        """The compile job, once it has succeeded; uploads the model first if it must."""
        asked = self.compilation.job
        if asked.is_open:
            device, options = self.compilation.device, self.compilation.options
            self._say("looking up the device")
            self.hub.require_device(device)  # a wrong name costs no upload
            model_id = self.upload()
            self._step(COMPILE)
            was_asked = self._named(asked)
            self._submitted(asked, self.hub.submit_compile(
                model_id, device, asked.name, options, was_asked=was_asked
            ))  # fmt: skip
        return self._finished(asked, COMPILE)

    def run(self, photo: Path | None) -> Asked:
        """The profiled inference job on a photo or (None) random inputs; compiles first.

        A photo's dataset that has expired is uploaded again; the model is not.
        """
        inputs = None if photo is None else self._inputs(photo)
        run = self.compilation.run(None if photo is None else sha256(photo))
        if run.job.is_open:
            self.compile()
            self._step(RUN)
            try:
                self._submit_run(run, inputs)
            except ExpiredError:
                run.inputs = Asked()
                self._submit_run(run, inputs)
        return self._finished(run.job, RUN)

    def profile(self, photo: Path | None = None) -> Profile:
        """The profile of `run(photo)`, saved as `profile.json`."""
        job = self.run(photo)
        self._say("downloading the profile")
        profile = self.hub.profile(job.id)
        write_whole(self.profile_path, (json_text(profile) + "\n").encode())
        return read_profile(profile, self.state.model)

    def depth(self, photo: Path, output: Path | None = None) -> dict[str, Any]:
        """The device's depth of a photo beside the local one: picture, values and the error.

        The picture goes to `output`, or to the hub folder.
        Outputs that have expired at AI Hub are computed again, from the same compiled model.
        """
        job = self.run(photo)
        self._say("downloading the depth")
        try:
            depth = map_of(self.hub.outputs(job.id), job.id)
        except ExpiredError:
            self.compilation.run(sha256(photo)).job = Asked()
            job = self.run(photo)
            depth = map_of(self.hub.outputs(job.id), job.id)
        self._say("running the model here")
        local = depth_of(self.state.model, photo)
        if local.shape != depth.shape:
            raise UserError(
                f"job {job.id} gives a map of {depth.shape}, the model here one of {local.shape}"
            )
        path = output or self.folder / "depth.png"
        return {"job": job.id, **write_depths(path, photo, depth, local)}

    def share(self, emails: Sequence[str]) -> list[str]:
        """Shares the compile job, its model included; returns everyone it is shared with."""
        self._step(SHARE)
        self.compilation.shared_with = self.hub.share(self.compilation.job.id, emails)
        self.state.save()
        return self.compilation.shared_with

    def fetch(self, output: Path | None = None) -> Path:
        """Downloads the compiled model, whole or not at all; into the hub folder if no output."""
        job = self.compile()
        for name in self.compilation.files:
            if output is None and self._is_fetched(name):
                return self.folder / name
        self._step(FETCH)
        path = fetch_model(self.hub, job.id, output or self.folder / "model")
        if output is None:
            self._fetched(path.name)
        return path

    @property
    def folder(self) -> Path:
        """Where the files of this device and runtime go."""
        return self.state.folder / self.compilation.folder_name

    @property
    def profile_path(self) -> Path:
        """Where `profile` saves what AI Hub measured."""
        return self.folder / "profile.json"

    # -- how -------------------------------------------------------------------------------------

    def _step(self, step: str) -> None:
        self._done = STEPS.index(step)
        self._say(step)

    def _say(self, text: str) -> None:
        self._progress(text, self._done, self._steps)

    def _named(self, asked: Asked) -> bool:
        """Gives what will be asked for a unique name, on disk first; or keeps that of a lost try.

        Returns whether it was asked for already.
        """
        was_asked = asked.was_asked
        if not was_asked:
            name = f"{self.state.title} {secrets.token_hex(4)}"
            asked.name, asked.id, asked.url, asked.status = name, "", "", ""
            self.state.save()
        return was_asked

    def _submitted(self, asked: Asked, job: Job) -> None:
        asked.id, asked.url, asked.status = job.id, job.url, job.status
        self.state.save()
        self._notice(f"{job.kind} job {job.id}: {job.url}")

    def _finished(self, asked: Asked, step: str) -> Asked:
        """Waits for a job. A failure is on disk before it is raised; next time it is asked anew."""
        if asked.status != SUCCESS:
            self._step(step)
            job = self.hub.finished(asked.id)
            asked.status = job.status
            self.state.save()
            job.require_success()
        return asked

    def _submit_run(self, run: DeviceRun, inputs: dict[str, NDArray[Any]] | None) -> None:
        if inputs is not None and run.inputs.is_open:
            was_asked = self._named(run.inputs)
            self._say("uploading the photo")
            run.inputs.id = self.hub.upload_inputs(inputs, run.inputs.name, was_asked=was_asked)
            self.state.save()
        was_asked = self._named(run.job)
        self._submitted(run.job, self.hub.submit_inference(
            self.compilation.job.id, self.compilation.device, run.job.name, run.inputs.id,
            was_asked=was_asked,
        ))  # fmt: skip

    def _inputs(self, photo: Path) -> dict[str, NDArray[Any]]:
        size = image_size(Signature.of(Graph.load(self.state.model)))
        if size is None:
            raise UserError(f"{self.state.model}: not a model of one RGB image; leave --image out")
        name, height, width = size
        return {name: models.load_image(photo, height, width)}

    def _preflight(self, packaged: Path) -> None:
        """Tells what AI Hub will not take, of exactly what it would get."""
        path = packaged / MODEL_NAME if packaged.is_dir() else packaged
        findings = preflight.check(path, "aihub")
        if "--truncate_64bit_io" in self.compilation.options:  # AI Hub's own cure for those
            findings = [f for f in findings if f.rule not in ("64-bit input", "64-bit output")]
        for finding in findings[:_FINDINGS_TOLD]:
            self._notice(str(finding))
        if len(findings) > _FINDINGS_TOLD:
            self._notice(f"… and {len(findings) - _FINDINGS_TOLD} more findings")
        errors = [finding for finding in findings if finding.is_error]
        if errors:
            raise UserError(
                f"{self.state.model}: AI Hub would refuse it, nothing was uploaded: {errors[0]}"
                + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")
            )

    def _packaged(self, folder: Path) -> Path:
        self._say("packaging")
        return package(self.state.model, folder)

    def _is_fetched(self, name: str) -> bool:
        path = self.folder / name
        known = self.compilation.files.get(name)
        return known is not None and path.is_file() and sha256(path) == known

    def _fetched(self, name: str) -> None:
        self.compilation.files[name] = sha256(self.folder / name)
        self.state.save()


def write_depths(path: Path, photo: Path, depth: Map, local: Map | None) -> dict[str, Any]:
    """Draws a device's depth, beside the local one if there is one; the values go beside as .npy.

    Returns where they are, and the error: |device − local| / |local − its mean|, in L2.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if local is None:
            write_depth(path, depth)
        else:
            write_comparison(path, photo, local, depth, ("here", "on the device"))
        np.save(path.with_suffix(".npy"), depth.astype(np.float32))
    error = None if local is None else compare(depth, local).centred_l2
    return {
        "picture": str(path), "values": str(path.with_suffix(".npy")), "shape": list(depth.shape),
        "min": float(depth.min()), "max": float(depth.max()), "error": error,
    }  # fmt: skip


def fetch_model(hub: Hub, compile_id: str, output: Path) -> Path:
    """Downloads a compiled model, whole or not at all.

    `output` gets the extension of what AI Hub made (.bin, .dlc, .tflite, .onnx.zip) unless it ends
    in it. Returns where the model is.
    """
    refuse_folder(output)
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".hub-", dir=output.parent) as folder:
            path = hub.download_model(compile_id, Path(folder))
            extension = ".onnx.zip" if path.name.endswith(".onnx.zip") else path.suffix
            name = output.name.removesuffix(extension) + extension
            path.replace(output.with_name(name))
    return output.with_name(name)


def inference_of(hub: Hub, job_id: str, photo: Path | None, notice: Notice) -> Job:
    """The finished inference job of an id: that job, or a new one of a compile job's model.

    A new one runs on a photo or (None) random inputs. No state is kept: `notice` is told its id.
    """
    job = hub.job(job_id)
    if job.kind == COMPILE_KIND:
        hub.finished(job_id).require_success()
        title = f"{job.name} {secrets.token_hex(4)}"
        inputs = "" if photo is None else _photo_for(hub, job_id, photo, title)
        job = hub.submit_inference(job_id, job.device, title, inputs, was_asked=False)
        notice(f"{job.kind} job {job.id}: {job.url}")
    return hub.finished(job.id).require_success()


def _photo_for(hub: Hub, compile_id: str, photo: Path, title: str) -> str:
    """Uploads a photo in the size that a compiled model takes; returns the dataset's id."""
    shapes = hub.input_shapes(compile_id)
    sizes = [(name, *s[2:]) for name, s in shapes.items() if len(s) == 4 and s[1] == 3]
    if len(shapes) != 1 or not sizes:
        raise UserError(f"job {compile_id}: not a model of one RGB image (it takes {shapes})")
    name, height, width = sizes[0]
    inputs = {name: models.load_image(photo, height, width)}
    return hub.upload_inputs(inputs, title, was_asked=False)


def map_of(outputs: dict[str, NDArray[Any]], job_id: str) -> Map:
    """The first output as H×W."""
    values = np.asarray(next(iter(outputs.values())), dtype=np.float64)
    if values.ndim < 2 or any(d != 1 for d in values.shape[:-2]):
        raise UserError(f"job {job_id} does not give one map: its first output is {values.shape}")
    return values.reshape(values.shape[-2:])
