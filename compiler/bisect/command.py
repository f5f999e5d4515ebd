"""A command of the user's with `{model}` in it, and how it is told where the model is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

MODEL = "{model}"
# Told in front of the command: the folder that the script is in.
HERE = '"$here"'


def with_path(command: str, path: Path) -> str:
    """The command for the shell, with the path of a model, whatever is in that path."""
    text = str(path)
    return _filled(command, {
        "": shlex.quote(text), "'": text.replace("'", "'\\''"),
        '"': re.sub(r'([\\"$`])', r"\\\1", text),
    })  # fmt: skip


def with_file_here(command: str, name: str) -> str:
    """The command for a script, with a file in the folder `$here`."""
    return _filled(command, {"": f"{HERE}/{name}", '"': f"$here/{name}", "'": f"'{HERE}'/{name}"})


def _filled(command: str, spellings: Mapping[str, str]) -> str:
    """The command with a spelling for each `{model}`, by the quote of the shell that it is in."""
    first, *rest = command.split(MODEL)
    filled, quote = first, _open_quote(first, "")
    for text in rest:
        filled += spellings[quote] + text
        quote = _open_quote(text, quote)
    return filled


def _open_quote(text: str, quote: str) -> str:
    """The quote that is open behind a text, given the one that is open before it."""
    characters = iter(text)
    for character in characters:
        if character == "\\" and quote != "'":
            next(characters, None)
        elif character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
    return quote
