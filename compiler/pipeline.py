"""Pipelines as text: `insert_resize:height=480:width=640,fold_norm`; a pass is a file's name.

A pass with a single option takes its value without its name: `for_target:aihub`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Sequence
from dataclasses import MISSING, fields

from compiler.errors import UserError
from compiler.rewrite import Pass


def pass_names() -> list[str]:
    """The names of all passes: the modules of the package `passes`."""
    import passes

    return sorted(module.name for module in pkgutil.iter_modules(passes.__path__))


def pass_class(name: str) -> type[Pass]:
    """The pass of a module of `passes`, by its name."""
    module = importlib.import_module(f"passes.{name}")
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Pass)
        and value.__module__ == module.__name__
    ]
    assert len(found) == 1, f"passes/{name}.py must define one pass, not {len(found)}"
    return found[0]


def parse_pipeline(text: str) -> list[Pass]:
    """The passes of a pipeline text, in order.

    Raises UserError that names every unknown pass, option and value at once.
    """
    passes, faults = [], []
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, *options = item.split(":")
        if name not in pass_names():
            faults.append(f"no pass {name!r}{nearest(name, pass_names())}")
            continue
        parsed, wrong = _options(pass_class(name), options)
        faults += [f"{name}: {fault}" for fault in wrong]
        if not wrong:
            passes.append(pass_class(name)(**parsed))
    if faults:
        raise UserError(f"--passes {text!r}: {'; '.join(faults)} (see `python -m compiler passes`)")
    return passes


def pipeline_text(passes: Sequence[Pass]) -> str:
    """The text that `parse_pipeline` turns into these passes."""
    return ",".join(pass_.text() for pass_ in passes)


def _options(kind: type[Pass], texts: list[str]) -> tuple[dict[str, object], list[str]]:
    known = {option.name: option for option in fields(kind)}  # type: ignore[arg-type]
    types = typing.get_type_hints(kind)
    values: dict[str, object] = {}
    faults = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals and len(known) == 1 and name not in known:
            name, value = next(iter(known)), text  # `for_target:aihub`
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
    return text


def nearest(name: str, known: Sequence[str]) -> str:
    """`, did you mean …?`, or the list of what is known."""
    near = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {near[0]!r}?" if near else f" (known: {', '.join(known) or 'none'})"
