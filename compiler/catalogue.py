"""The catalogue of passes, from their docstrings and fields."""

from __future__ import annotations

import inspect
import sys
import typing
from dataclasses import MISSING, fields
from typing import Any

from compiler.errors import UserError
from compiler.foreign import origin_of
from compiler.pipeline import all_pass_names, pass_class


def entries() -> list[dict[str, Any]]:
    """One entry a pass, by name; a package's pass that can't be had says why."""
    found = []
    for name in all_pass_names():
        try:
            found.append(entry(name))
        except UserError as fault:
            found.append({"name": name, "does": f"unusable: {fault}", "contract": "",
                          "options": {}, "text": ""})  # fmt: skip
    return found


def entry(name: str) -> dict[str, Any]:
    """Name, sentence, whole text, and options of one pass, by name or by file. Raises UserError.

    The sentence of a foreign pass ends in where it comes from.
    """
    kind = pass_class(name)
    text = inspect.getdoc(sys.modules[kind.__module__]) or inspect.getdoc(kind) or ""
    sentence, _, rest = text.partition("\n\n")
    origin = origin_of(kind)
    source = "" if origin is None else f" (from {origin.text})"
    types = typing.get_type_hints(kind)
    options = {
        option.name: {
            "default": None if option.default is MISSING else option.default,
            "values": list(typing.get_args(types[option.name])) or types[option.name].__name__,
        }
        for option in fields(kind)  # type: ignore[arg-type]
    }
    contract = text.partition("Contract: ")[2].split("\n")[0]
    return {"name": name, "does": " ".join(sentence.split()) + source, "contract": contract,
            "options": options, "text": rest.strip("\n")}  # fmt: skip
