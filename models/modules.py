"""A user's own `torch.nn.Module` as a source: called once, then exported as it was called."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.errors import ModelError
from models.export import Call, export_call
from models.exporters import Exporter


class ByName(nn.Module):
    """A module whose arguments, keyword-only ones included, are given by position."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module = module
        self.names = names

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Call the module."""
        return self.module(**dict(zip(self.names, tensors, strict=True)))


def call_of(module: nn.Module, inputs: Mapping[str, Any]) -> Call:
    """The call of a module with example inputs, which are tensors or NumPy arrays by name.

    Inputs named like arguments of `forward` go there; with other names they go by position. Raises
    ModelError.
    """
    tensors = {name: _tensor(name, value) for name, value in inputs.items()}
    if not tensors:
        raise ModelError(f"{_title(module)} needs inputs={{name: example tensor, …}}")
    positional, known = _arguments(module)
    strange = [name for name in tensors if name not in known]
    if strange and len(strange) < len(tensors):
        raise ModelError(
            f"inputs {strange} are no arguments of {_title(module)}'s forward({', '.join(known)}): "
            "name all of them as forward does, or none"
        )
    names = list(tensors) if strange else [name for name in known if name in tensors]
    arguments = tuple(tensors[name] for name in names)
    targets = positional[: len(names)] if strange else names
    # The torchscript exporter can't call a forward that has keyword-only arguments.
    direct = known == positional and targets == positional[: len(names)]
    direct = direct or len(targets) < len(names)  # too many: the call itself says so
    return Call(module if direct else ByName(module, targets), names, None, arguments)


def write_module(folder: Path, *, call: Call, exporter: Exporter, opset: int) -> Path:
    """Export a call in evaluation mode. Raises ModelError if it can't be made, or exported."""
    path = folder / "source.onnx"
    with _evaluating(call.module):
        named = replace(call, output_names=_output_names(call))
        try:
            export_call(named, path, exporter, opset)
        except Exception as error:  # whatever the exporter stumbles over is the user's module
            other = "torchscript" if exporter == "dynamo" else "dynamo"
            title, reason = _title(call.module), _first_line(error)
            raise ModelError(
                f"the {exporter} exporter can't export {title}: {reason}; try exporter={other!r}"
            ) from error
    return path


def _tensor(name: str, value: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"input {name!r} is a {type(value).__name__}, no tensor") from error


def _arguments(module: nn.Module) -> tuple[list[str], list[str]]:
    """The names of `forward`'s arguments, in order: those that go by position, and all."""
    parameters = inspect.signature(module.forward).parameters.values()
    positional = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
    return positional, [*positional, *(p.name for p in parameters if p.kind == p.KEYWORD_ONLY)]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and every part's own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _output_names(call: Call) -> list[str] | None:
    """`output`, `output_0` … or the keys of a dictionary; None if the result is none of these."""
    try:
        with torch.no_grad():
            result = call.module(*call.arguments)
    except Exception as error:  # the user's code, on the user's inputs
        pairs = zip(call.input_names, call.arguments, strict=True)
        shapes = {name: list(tensor.shape) for name, tensor in pairs}
        raise ModelError(
            f"{_title(call.module)} fails on the inputs {shapes}: {_first_line(error)}"
        ) from error
    if isinstance(result, torch.Tensor):
        return ["output"]
    named = dict(result) if isinstance(result, Mapping) else None
    values = list(result) if isinstance(result, list | tuple) else list((named or {}).values())
    if not values or not all(isinstance(value, torch.Tensor) for value in values):
        return None
    return list(named) if named else [f"output_{k}" for k in range(len(values))]


def _title(module: nn.Module) -> str:
    return type(module.module if isinstance(module, ByName) else module).__name__


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
