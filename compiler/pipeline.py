"""Pipelines as text: `insert_resize:height=480:width=640,fold_norm`; a pass is a file's name.

A pass with a single option takes its value without its name, `for_target:aihub`, and so does an
option that is a choice: `flip_average:batch`. A user's own pass
is the path of its file: `./my_pass.py:option=value`.
"""

from __future__ import annotations

import difflib
import importlib
import math
import pkgutil
import typing
from collections.abc import Sequence
from dataclasses import MISSING, fields

from compiler import foreign
from compiler.errors import UserError
from compiler.rewrite import Pass


def pass_names() -> list[str]:
    """The names of this project's passes: the modules of the package `passes`."""
    import passes

    return sorted(module.name for module in pkgutil.iter_modules(passes.__path__))


def all_pass_names() -> list[str]:
    """The names that `--passes` takes, those that installed packages offer included."""
    return sorted({*pass_names(), *foreign.entry_point_names()})


def pass_class(name: str) -> type[Pass]:
    """The pass of a name, or in a user's file. Raises UserError, in one line."""
    ours = pass_names()
    if foreign.is_file_name(name):
        kind = foreign.pass_in_file(name)
        own = kind.__module__.rpartition(".")[2]
        if own in ours:
            raise UserError(f"{name} has the name of this project's {own}: rename the file")
        return kind
    packages = foreign.packages_of(name)
    if len(packages) + (name in ours) > 1:
        offers = [*(["this project"] if name in ours else []), *packages]
        raise UserError(
            f"{' and '.join(offers)} have a pass {name!r} each: uninstall what is not meant"
        )
    if packages:
        return foreign.pass_of_package(name)
    if name not in ours:
        raise UserError(f"no pass {name!r}{nearest(name, all_pass_names())}")
    found = foreign.passes_defined_in(importlib.import_module(f"passes.{name}"))
    assert len(found) == 1, f"passes/{name}.py must define one pass, not {len(found)}"
    return found[0]


def parse_pipeline(text: str) -> list[Pass]:
    """The passes of a pipeline text, in order.

    Raises UserError that names every unknown pass, option and value at once.
    """
    passes, faults = [], []
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, *options = item.split(":")
        try:
            kind = pass_class(name)
        except UserError as fault:
            faults.append(str(fault))
            continue
        parsed, wrong = _options(kind, options)
        if not wrong:
            try:
                passes.append(foreign.checked(kind(**parsed)))
            except ValueError as fault:
                wrong.append(str(fault))
        faults += [f"{name}: {fault}" for fault in wrong]
    faults += _namesakes(passes)
    if faults:
        raise UserError(f"--passes {text!r}: {'; '.join(faults)} (see `python -m compiler passes`)")
    return passes


def _namesakes(passes: Sequence[Pass]) -> list[str]:
    """Two passes of one name can't be told apart in a build."""
    kinds = {type(pass_): pass_.name for pass_ in passes}
    return [
        f"two passes are called {name!r}: rename one of them"
        for name in sorted({*kinds.values()})
        if [*kinds.values()].count(name) > 1
    ]


def pipeline_text(passes: Sequence[Pass]) -> str:
    """The text that `parse_pipeline`, in this folder, turns into these passes."""
    return ",".join(_text(pass_) for pass_ in passes)


def _text(pass_: Pass) -> str:
    origin = foreign.origin_of(type(pass_))
    name = pass_.name if origin is None or origin.package else origin.text
    return name + pass_.text().removeprefix(pass_.name)


def _options(kind: type[Pass], texts: list[str]) -> tuple[dict[str, object], list[str]]:
    known = {option.name: option for option in fields(kind)}  # type: ignore[arg-type]
    types = typing.get_type_hints(kind)
    values: dict[str, object] = {}
    faults = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals and name not in known:
            name, value = _option_of(text, types, list(known)), text
        if name not in known:
            faults.append(f"no option {name!r}{nearest(name, list(known))}")
            continue
        try:
            values[name] = _value(types[name], value)
        except ValueError as fault:
            faults.append(f"{name}={value}: {fault}")
    missing = [
        option.name
        for option in known.values()
        if option.default is MISSING and option.name not in values
    ]
    if missing and not faults:
        faults.append(f"needs {' and '.join(f'{name}=…' for name in missing)}")
    return values, faults


def _option_of(value: str, types: dict[str, object], known: list[str]) -> str:
    """The name of the option that a value without one is for, or the text itself."""
    choices = [name for name in known if value in typing.get_args(types[name])]
    fitting = known if len(known) == 1 else choices
    return fitting[0] if len(fitting) == 1 else value


def _value(kind: object, text: str) -> object:
    choices = typing.get_args(kind)
    if choices:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text
    if kind is int:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError("must be a whole number above 0")
        return int(text)
    if kind is float:
        return _number(text)
    return text


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("must be a number")
    return number


def nearest(name: str, known: Sequence[str]) -> str:
    """`, did you mean …?`, or the list of what is known."""
    near = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {near[0]!r}?" if near else f" (known: {', '.join(known) or 'none'})"
