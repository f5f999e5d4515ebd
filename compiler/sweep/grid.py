"""The description of a sweep: a TOML file of axes; a variant takes one choice of each.

    passes = "insert_resize:height=480:width=640"    # of every variant, before those of the axes
    [[axes.size]]
    label = "350"
    size = 350
    [[axes.size]]
    label = "518"
    size = 518
    [[axes.mirror]]                                  # each without …
    [[axes.mirror]]                                  # … and with
    label = "flip"
    passes = "flip_average"

is 350, 350-flip, 518 and 518-flip. `passes` add up: the file's, those of the axes in their order,
then each `passes_last`. Any other key is set once: by the file, or over it by one axis. Files are
looked for beside the description (a folder of weights is written `./NAME`). `[published.ms]` holds
figures by label, `[published] source` what they are.
"""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from compiler.errors import UserError
from compiler.pipeline import nearest, parse_pipeline, pipeline_text
from models.exporters import Exporter

_GRIDS = Path(__file__).parent
# The keys of a choice, and of the file for all variants, with the types that TOML gives them.
_SETTINGS: dict[str, tuple[type, ...]] = {
    "model": (str,), "size": (int, str), "weights": (str,), "exporter": (str,), "opset": (int,),
    "canonicalize": (bool,), "passes": (str,), "passes_last": (str,),
}  # fmt: skip
_ADDED = ("passes", "passes_last")
_TYPES = {str: "text", int: "a whole number", bool: "true or false", dict: "a table"}
# Labels are names of folders on any system; the dot is for the files beside them.
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,99}")

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """A row of the table: what to build, as `compiler.build` takes it, and its published figure."""

    label: str
    model: str
    passes: str
    size: str | None = None
    weights: str = "auto"
    exporter: Exporter = "dynamo"
    opset: int | None = None
    canonicalize: bool = True
    published_ms: float | None = None


@dataclass(frozen=True)
class Grid:
    """A sweep's variants, in the order of their rows; `published` says where figures are from."""

    path: Path
    title: str
    variants: tuple[Variant, ...]
    published: str = ""


def read_grid(name: str) -> Grid:
    """A grid by the name of one that comes with the compiler (`lpcv2025`), or from a .toml file.

    Raises UserError that names the file, the key, and what to do.
    """
    path = Path(name)
    if path.suffix.lower() != ".toml":
        path = _GRIDS / f"{name}.toml"
        known = sorted(file.stem for file in _GRIDS.glob("*.toml"))
        if name not in known:
            raise UserError(f"no sweep {name!r}{nearest(name, known)}; or give a .toml file")
    try:
        return _grid(path, tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}; give a description") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML ({error}); correct it there") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _grid(path: Path, table: dict[str, Any]) -> Grid:
    """The grid of a parsed file. Raises ValueError that names the key."""
    kinds = {**_SETTINGS, "title": (str,), "axes": (dict,), "published": (dict,)}
    _check(table, kinds, "")
    axes = table.get("axes", {})
    if not axes:
        raise ValueError("axes: it has none; add choices, each as [[axes.NAME]]")
    for axis, choices in axes.items():
        if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
            raise ValueError(f"axes.{axis}: must be choices, each as [[axes.{axis}]]")
        for number, choice in enumerate(choices, start=1):
            _check(choice, {**_SETTINGS, "label": (str,)}, f"axes.{axis}, choice {number}: ")
    source, figures = _published(table.get("published", {}))
    variants = [
        _variant(table, dict(zip(axes, choices, strict=True)), path.parent, figures)
        for choices in itertools.product(*axes.values())
    ]
    _check_labels([variant.label for variant in variants], list(figures))
    return Grid(path, table.get("title", path.stem), tuple(variants), source)


def _check(table: Settings, kinds: Mapping[str, tuple[type, ...]], where: str) -> None:
    for key, value in table.items():
        if key not in kinds:
            raise ValueError(f"{where}no key {key!r}{nearest(key, list(kinds))}")
        if type(value) not in kinds[key]:
            wanted = " or ".join(_TYPES[kind] for kind in kinds[key])
            raise ValueError(f"{where}{key} = {value!r}: must be {wanted}")
        if key == "exporter" and value not in get_args(Exporter):
            raise ValueError(f"{where}exporter = {value!r}: must be one of "
                             f"{', '.join(get_args(Exporter))}")  # fmt: skip


def _published(table: Settings) -> tuple[str, dict[str, float]]:
    _check(table, {"source": (str,), "ms": (dict,)}, "published: ")
    figures = table.get("ms", {})
    for label, value in figures.items():
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ValueError(f"published.ms: {label} = {value!r}: must be milliseconds above 0")
    return table.get("source", ""), {label: float(value) for label, value in figures.items()}


def _variant(
    common: Settings, chosen: Mapping[str, Settings], folder: Path, figures: Mapping[str, float]
) -> Variant:
    label = "-".join(text for choice in chosen.values() if (text := choice.get("label", "")))
    if not _LABEL.fullmatch(label):
        raise ValueError(
            f"label {label!r} of {_places(chosen)}: give each variant one of letters, digits, _, + "
            "and -, that begins with a letter or a digit"
        )
    set_once = [key for key in _SETTINGS if key not in _ADDED]
    settings = {key: _once(key, label, common, chosen) for key in set_once}
    if settings["model"] is None:
        raise ValueError(f"variant {label!r} has no model; give model = …")
    sources = [common, *chosen.values()]
    texts = [s[key] for key in _ADDED for s in sources if s.get(key)]
    try:
        settings["passes"] = pipeline_text(parse_pipeline(",".join(texts)))
    except UserError as error:
        raise ValueError(f"variant {label!r}: {error}") from error
    given = {key: value for key, value in settings.items() if value is not None}
    for key in {"model", "weights"} & given.keys():
        given[key] = _beside(folder, given[key])
    if "size" in given:
        given["size"] = str(given["size"])
    return Variant(label, **given, published_ms=figures.get(label))


def _once(key: str, label: str, common: Settings, chosen: Mapping[str, Settings]) -> Any:
    """A setting of a variant: by the one axis that has it, else by the file, else None."""
    axes = [axis for axis, choice in chosen.items() if key in choice]
    if len(axes) > 1:
        names = " and ".join(f"axes.{axis}" for axis in axes)
        raise ValueError(f"variant {label!r}: {names} both set {key}; leave it to one of them")
    return chosen[axes[0]][key] if axes else common.get(key)


def _places(chosen: Mapping[str, Settings]) -> str:
    return " × ".join(f"axes.{axis}" for axis in chosen)


def _beside(folder: Path, name: str) -> str:
    """The path of a file, or of a folder with a separator in its name; other names stay."""
    is_path = Path(name).suffix.lower() in (".onnx", ".pth") or name.startswith(("./", "../"))
    return str(folder / name) if is_path else name


def _check_labels(labels: Sequence[str], published: Sequence[str]) -> None:
    double = [label for label, count in Counter(labels).items() if count > 1]
    if double:
        raise ValueError(f"{len(labels)} variants, of which several are {double[0]!r}: give each "
                         "choice of an axis a label of its own")  # fmt: skip
    for label in published:
        if label not in labels:
            raise ValueError(f"published.ms: no variant {label!r}{nearest(label, labels)}")
