"""Passes from elsewhere: a user's own file, or an installed package (entry points).

A package offers a pass under the name of the pass's module:

    [project.entry-points."compiler.passes"]
    mul_by_reciprocal = "acme_passes.mul_by_reciprocal"
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import traceback
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from compiler.errors import UserError
from compiler.rewrite import ApproximatePass, GraphPass, LocalPass, Pass

GROUP = "compiler.passes"
_BASES = (LocalPass, GraphPass, ApproximatePass)
_CONTRACTS = ("exact", "algebraic", "declared", "approximate")  # proven, or measured
_ORIGINS: dict[type[Pass], Origin] = {}


@dataclass(frozen=True)
class Origin:
    """Where a foreign pass came from: its file, and its package (`acme-passes 1.2`) if it has one.

    `sha256` is that of the code that runs, read once: of its own file, not of what that imports.
    """

    path: Path
    sha256: str
    package: str = ""

    @property
    def text(self) -> str:
        """The package, or the file as `--passes` takes it: `./my_pass.py` in this folder."""
        if self.package:
            return self.package
        here = Path.cwd().resolve()
        return f"./{self.path.relative_to(here)}" if here in self.path.parents else str(self.path)


def is_file_name(name: str) -> bool:
    """Whether a name in a pipeline means a file."""
    return name.endswith(".py") or "/" in name


def origin_of(kind: type[Pass]) -> Origin | None:
    """Where a pass came from; None for those of this project."""
    return _ORIGINS.get(kind)


def origins(passes: Sequence[Pass]) -> dict[str, Any]:
    """What `build.json` says of the foreign passes of a pipeline; empty if there are none."""
    found = {pass_.name: origin for pass_ in passes if (origin := origin_of(type(pass_)))}
    records = {name: {**asdict(origin), "path": str(origin.path)} for name, origin in found.items()}
    return {"foreign_passes": records} if records else {}


def pass_in_file(text: str) -> type[Pass]:
    """The pass in a user's file, given relative to the working directory.

    The same bytes at the same path give the same class. Raises UserError.
    """
    path = Path(text).expanduser().resolve()
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"no file {text} (a pass's file ends in .py; paths start at {Path.cwd()})")
    if not path.stem.isidentifier():
        raise UserError(f"{text}: a pass is named like its file, and {path.stem!r} is no name "
                        "(letters, digits and _)")  # fmt: skip
    code = path.read_bytes()
    digest = hashlib.sha256(code).hexdigest()
    place = hashlib.sha256(str(path).encode()).hexdigest()
    module = _module(f"file_{place[:16]}_{digest[:16]}.{path.stem}", path, code, text)
    kind = _pass_in(module, text)
    _ORIGINS[kind] = Origin(path, digest)
    return kind


def _module(name: str, path: Path, code: bytes, text: str) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and type hints look their module up
    try:
        with _telling(f"{text} can't be imported", path):
            exec(compile(code, str(path), "exec"), vars(module))
    except UserError:
        del sys.modules[name]
        raise
    return module


@contextmanager
def running(pass_: Pass) -> Iterator[None]:
    """Tells what a foreign pass raises in one line; a pass of this project may raise as it is."""
    origin = origin_of(type(pass_))
    if origin is None:
        yield
        return
    with _telling(f"pass {pass_.name!r} ({origin.text}) fails", origin.path):
        yield


@contextmanager
def _telling(what: str, path: Path | None) -> Iterator[None]:
    """Turns whatever foreign code raises into one line with the last place in `path`."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        places = [(f.filename, f.lineno) for f in frames if path is None or f.filename == str(path)]
        if isinstance(error, SyntaxError) and error.filename:
            places.append((error.filename, error.lineno))
        file, line = places[-1] if places else (path, 1)
        reason = " ".join(traceback.format_exception_only(error)[-1].split())
        raise UserError(f"{what}: {reason} ({file}:{line})") from error


def entry_point_names() -> list[str]:
    """The names that installed packages offer passes under."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def packages_of(name: str) -> list[str]:
    """The packages that offer a pass of this name, with their versions."""
    return sorted(_package(entry) for entry in entry_points(group=GROUP, name=name))


def pass_of_package(name: str) -> type[Pass]:
    """The pass that an installed package offers under `name`. Raises UserError."""
    entry = next(iter(entry_points(group=GROUP, name=name)))
    what = f"{name} of {_package(entry)} ({entry.value})"
    with _telling(f"{what} can't be imported", None):
        loaded: Any = entry.load()
    module = loaded if inspect.ismodule(loaded) else sys.modules[entry.module]
    kind = _pass_in(module, what)
    own = module.__name__.rpartition(".")[2]
    if own != name:
        raise UserError(f"{what}: a pass is named like its module, so the entry point must be "
                        f"called {own!r}")  # fmt: skip
    path = Path(inspect.getfile(kind)).resolve()
    _ORIGINS[kind] = Origin(path, hashlib.sha256(path.read_bytes()).hexdigest(), _package(entry))
    return kind


def _package(entry: EntryPoint) -> str:
    return "an unnamed package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


def passes_defined_in(module: ModuleType) -> list[type[Pass]]:
    """The passes that a module defines; what it imports is not counted, nor are its `_Bases`."""
    return [
        value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, Pass)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]


def _pass_in(module: ModuleType, what: str) -> type[Pass]:
    """The one pass that a foreign module defines. Raises UserError if it can't be run."""
    found = passes_defined_in(module)
    if len(found) != 1:
        names = f" ({' and '.join(kind.__name__ for kind in found)})" if found else ""
        raise UserError(f"{what} defines {len(found) or 'no'} passes{names}: it must define one "
                        "class derived from LocalPass, DeclaredPass or GraphPass")  # fmt: skip
    reason = _why_unusable(found[0])
    if reason is not None:
        raise UserError(f"{what}: {found[0].__name__} {reason}")
    return found[0]


def _why_unusable(kind: type[Pass]) -> str | None:
    """Why a class can't be run as a pass: what the type checker says of ours."""
    if not issubclass(kind, _BASES):
        return "derives from Pass alone: take LocalPass, DeclaredPass or GraphPass"
    missing = sorted(kind.__abstractmethods__)
    if missing:
        return f"has no {' and no '.join(missing)}"
    own = "__dataclass_params__" in vars(kind)
    if not (own and is_dataclass(kind) and vars(kind)["__dataclass_params__"].frozen):
        return "is no frozen dataclass: write @dataclass(frozen=True) above it"
    return _why_no_options(kind)


def checked(pass_: Pass) -> Pass:
    """The pass. Raises ValueError if the verifier has no bound for its contract."""
    if pass_.contract not in _CONTRACTS:
        raise ValueError(f"contract {pass_.contract!r} must be one of {', '.join(_CONTRACTS)}")
    return pass_


def _why_no_options(kind: type[Pass]) -> str | None:
    """Why the fields of a class can't be read from text."""
    try:
        types = typing.get_type_hints(kind)
    except NameError as error:
        return f"has an option of unknown type: {error}"
    for option in fields(kind):  # type: ignore[arg-type]
        of = types[option.name]
        if of not in (int, float, str) and typing.get_origin(of) is not typing.Literal:
            return f"has the option {option.name!r}, which must be an int, float, str or Literal"
    return None
