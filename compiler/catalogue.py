"""The catalogue of passes, from their docstrings and fields."""

from __future__ import annotations

import importlib
import inspect
import typing
from dataclasses import MISSING, fields
from typing import Any

from compiler.errors import UserError
from compiler.pipeline import nearest, pass_class, pass_names


def entries() -> list[dict[str, Any]]:
    """One entry a pass, by name."""
    return [entry(name) for name in pass_names()]


def entry(name: str) -> dict[str, Any]:
    """Name, sentence, whole text, and options of one pass. Raises UserError if there is none."""
    if name not in pass_names():
        raise UserError(f"no pass {name!r}{nearest(name, pass_names())}")
    text = inspect.getdoc(importlib.import_module(f"passes.{name}")) or ""
    sentence, _, rest = text.partition("\n\n")
    kind = pass_class(name)
    types = typing.get_type_hints(kind)
    options = {
        option.name: {
            "default": None if option.default is MISSING else option.default,
            "values": list(typing.get_args(types[option.name])) or types[option.name].__name__,
        }
        for option in fields(kind)  # type: ignore[arg-type]
    }
    contract = text.partition("Contract: ")[2].split("\n")[0]
    return {"name": name, "does": " ".join(sentence.split()), "contract": contract,
            "options": options, "text": rest.strip("\n")}  # fmt: skip
