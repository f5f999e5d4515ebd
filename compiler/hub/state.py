"""What AI Hub has been asked for a model: ids and URLs, on disk before and after every request.

A build keeps it in its `build.json` under "hub", any other model in `MODEL.hub.json` beside it. It
belongs to the bytes of the model and its weights: when they change, it starts anew. Every name is
written before it is sent, every id as soon as it is known, so an interrupted run goes on where it
was.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compiler.building import sha256, write_whole
from compiler.errors import UserError
from compiler.graph import read_model
from compiler.hub.client import FAILED
from compiler.records import json_text, model_in
from compiler.weights import MappedWeight


@dataclass
class Asked:
    """Something that AI Hub makes. With a name and no id, the answer to a request was lost."""

    name: str = ""
    id: str = ""
    url: str = ""
    status: str = ""

    @property
    def is_open(self) -> bool:
        """Whether it has still to be asked for: never asked, lost, or failed."""
        return not self.id or self.status == FAILED

    @property
    def was_asked(self) -> bool:
        """Whether a request may have been answered without our knowing."""
        return bool(self.name) and not self.id


@dataclass
class DeviceRun:
    """A profiled inference on the device: on a photo (its SHA-256), or on random inputs."""

    image: str | None
    inputs: Asked = field(default_factory=Asked)
    job: Asked = field(default_factory=Asked)


@dataclass
class Compilation:
    """The model compiled for one device with one set of options, and all that was done with it.

    `files` holds the SHA-256 of what was fetched, by name.
    """

    device: str
    options: str
    job: Asked = field(default_factory=Asked)
    runs: list[DeviceRun] = field(default_factory=list)
    shared_with: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def run(self, image: str | None) -> DeviceRun:
        """The run on an image; without one, any that is done or under way will do."""
        for run in self.runs:
            if run.image == image or (image is None and not run.job.is_open):
                return run
        self.runs.append(DeviceRun(image))
        return self.runs[-1]

    @property
    def folder_name(self) -> str:
        """For its files: the device, the runtime and a hash of the other options, if any.

        In letters that no file system minds.
        """
        runtime = re.search(r"--target_runtime[ =](\S+)", self.options)
        rest = " ".join(self.options.replace(runtime[0] if runtime else "", "").split())
        hashed = hashlib.sha256(rest.encode()).hexdigest()[:6] if rest else ""
        words = f"{self.device} {runtime[1] if runtime else ''} {hashed}"
        return re.sub(r"[^a-z0-9_]+", "-", words.lower()).strip("-")


@dataclass
class State:
    """A model's state; the lists are in order of first use."""

    model: Path
    path: Path
    folder: Path
    title: str
    sha256: str
    upload: Asked = field(default_factory=Asked)
    compilations: list[Compilation] = field(default_factory=list)

    @classmethod
    def of(cls, target: Path, *, anew: bool = False) -> State:
        """The state of a model or a build's folder; empty for other bytes, and if `anew`.

        Raises UserError where there is no model, or where its state can't be read.
        """
        model = model_in(target)
        state = cls(model, *_places(target), content_sha256(model))
        record = {} if anew else _read(state.path).get("hub", {})
        try:
            if record.get("sha256") == state.sha256:
                state.upload = _asked(record["upload"])
                state.compilations = [_compilation(entry) for entry in record["compilations"]]
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{state.path}: its hub record is damaged; give --anew") from None
        return state

    def compilation(self, device: str, options: str) -> Compilation:
        """The one for a device and options, kept from now on."""
        for known in self.compilations:
            if (known.device, known.options) == (device, options):
                return known
        self.compilations.append(Compilation(device, options))
        return self.compilations[-1]

    def compiled(self, device: str | None) -> Compilation:
        """The one compilation that was submitted (for a device). UserError unless it is one."""
        found = [c for c in self.compilations if c.job.id and device in (None, c.device)]
        if len(found) == 1:
            return found[0]
        names = ", ".join(sorted({repr(c.device) for c in found}))
        raise UserError(
            f"{self.model} was compiled {len(found)} times for {names}: give --device, or a job"
            if found
            else f"{self.model} has no compile job at AI Hub yet: see `hub compile`"
        )

    def record(self) -> dict[str, Any]:
        """As it is kept on disk."""
        return {
            "sha256": self.sha256,
            "upload": asdict(self.upload),
            "compilations": [asdict(compilation) for compilation in self.compilations],
        }

    def save(self) -> None:
        """Writes it whole or not at all; the rest of a `build.json` stays as it is now."""
        document = {**_read(self.path), "hub": self.record()}
        write_whole(self.path, (json_text(document) + "\n").encode())


def content_sha256(model: Path) -> str:
    """The SHA-256 of a model and of its external weights' files. UserError if it is no model."""
    weights = {
        str(MappedWeight(tensor, model.parent).source[0])  # type: ignore[index]
        for tensor in read_model(model).graph.initializer
        if tensor.data_location
    }
    hashes = [sha256(path) for path in (model, *map(Path, sorted(weights)))]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _places(target: Path) -> tuple[Path, Path, str]:
    """Where a model's state goes, where its files go, and what people call it."""
    if not target.is_dir():
        beside = target.with_name(f"{target.stem}.hub.json")
        return beside, target.with_name(f"{target.stem}.hub"), target.stem
    record = _read(target / "build.json")
    if "model" not in record:
        raise UserError(f"{target}: not the folder of a build (it has no readable build.json)")
    return target / "build.json", target / "hub", str(record["model"].get("name", target.name))


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read as JSON ({error}); repair or remove it") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}: holds no JSON object; repair or remove it")
    return record


def _asked(entry: dict[str, str]) -> Asked:
    if not all(isinstance(value, str) for value in entry.values()):
        raise TypeError(entry)
    return Asked(**entry)


def _compilation(entry: dict[str, Any]) -> Compilation:
    runs = [
        DeviceRun(run["image"], _asked(run["inputs"]), _asked(run["job"])) for run in entry["runs"]
    ]
    return Compilation(**{**entry, "job": _asked(entry["job"]), "runs": runs})
