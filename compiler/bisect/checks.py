"""What tells a good model from a bad one: a command of the user's, or the verifier's numbers."""

from __future__ import annotations

import math
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from compiler.bisect.command import MODEL, with_path
from compiler.bisect.prefixes import Built
from compiler.errors import UserError
from compiler.graph import Graph, Node
from compiler.randomness import RANDOM
from compiler.rewrite import DeclaredPass, Float64, Function, Signature
from compiler.verify.kernels.call import UnsupportedInFloat64
from compiler.verify.proof import REFUSALS, judge
from compiler.verify.sizes import Sizes
from compiler.verify.whole import (
    RESIZE_BOUND,
    Float32Model,
    accepted_sizes,
    distance,
    float32_bound,
    float64_model,
    least_bound,
    memoized,
    model_inputs,
)

Verdict = Literal["good", "bad", "skip"]
# As for `git bisect run`: the command can't tell.
CANNOT_TELL = 125
NOT_RUN = (126, 127)
# Who stops a command says nothing of the model: that it crashes does.
STOPPED = {signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM}


class Check(Protocol):
    """Says whether a model is good."""

    @property
    def text(self) -> str:
        """What is checked, for people."""

    def __call__(self, model: Path, number: int) -> Verdict:
        """The verdict on a model that passes 1 to `number` led to, the last one perhaps in part."""


class CommandCheck:
    """A command with `{model}` in it: exit code 0 is good, 125 can't tell, any other is bad."""

    def __init__(self, command: str) -> None:
        if MODEL not in command:
            raise UserError(f"--check {command!r} has no {MODEL}: it says where the model's path "
                            "goes")  # fmt: skip
        self.text = command
        self.answer = ""
        """What the last call ended with: `exit code 3: no such device`."""

    def __call__(self, model: Path, number: int) -> Verdict:
        """Runs the command on a model's file. Raises UserError if it can't be run to its end."""
        done = subprocess.run(with_path(self.text, model.resolve()), shell=True, check=False,
                              capture_output=True, text=True, errors="replace")  # fmt: skip
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        self.answer = ": ".join([f"exit code {done.returncode}", *said])
        if done.returncode in NOT_RUN:
            raise UserError(f"--check {self.text!r} can't be run: {self.answer}")
        if _signal_of(done.returncode) in STOPPED:
            raise UserError(f"--check {self.text!r} was stopped from outside ({self.answer}): that "
                            "says nothing of the model")  # fmt: skip
        if done.returncode == CANNOT_TELL:
            return "skip"
        return "bad" if done.returncode else "good"


def _signal_of(code: int) -> int:
    """The signal that ended a command, as Python or a shell tells it; 0 for none."""
    return -code if code < 0 else max(code - 128, 0)


@dataclass(frozen=True)
class _Reference:
    """What a stage must compute, and how far float32 itself may be from that."""

    call: Function
    noise: float
    """How far float32 is from float64; nan if one can't be had."""
    least: float
    resizes: int


class NumericCheck:
    """Whole models in float32 against the source, through what the passes declare.

    What an approximate pass made is the source of what comes behind it: its loss was judged by the
    build.
    """

    text = "float32 against the source"

    def __init__(self, built: Built) -> None:
        source = built.stages[0]
        inputs = Signature.of(Graph.load(source)).inputs
        self._sizes = next(iter(accepted_sizes(source, inputs)), Sizes({}))
        self._expected = self._references(built)

    def __call__(self, model: Path, number: int) -> Verdict:
        """Runs the model; what onnxruntime refuses is bad."""
        try:
            graph = Graph.load(model)
            if any(map(_may_draw, graph.nodes)):
                return "skip"
            inputs = model_inputs(self._sizes.bind(Signature.of(graph).inputs))
            actual = Float32Model(model)(inputs)
        except UnsupportedInFloat64:
            return "skip"
        except UserError:
            return "bad"
        reference = self._expected[number]
        expected = reference.call(inputs)
        if actual.keys() != expected.keys():
            return "bad"
        bound = _bound(reference, graph)
        status = judge(actual, expected, bound, noise=reference.least).status
        return "skip" if status == "UNVERIFIED" else "bad" if status == "fail" else "good"

    def _references(self, built: Built) -> list[_Reference]:
        """What each stage must compute, given what the passes before it declare."""
        found = [self._reference(built.stages[0])]
        for pass_, before, after in zip(built.passes, built.stages, built.stages[1:], strict=False):
            last = found[-1]
            if pass_.contract == "approximate":
                last = self._reference(after)
            elif isinstance(pass_, DeclaredPass):
                signature = Signature.of(Graph.load(before))
                call = memoized(partial(_through, pass_, last.call, signature))
                last = replace(last, call=call)
            found.append(last)
        return found

    def _reference(self, path: Path) -> _Reference:
        """A stage as the measure of itself and of what follows."""
        graph = Graph.load(path)
        call = memoized(partial(_run, path))
        noise = self._measured_noise(call, graph)
        return _Reference(call, noise, least_bound(graph), _count_resizes(graph))

    def _measured_noise(self, call: Function, graph: Graph) -> float:
        try:
            inputs = model_inputs(self._sizes.bind(Signature.of(graph).inputs))
            return distance(call(inputs), float64_model(graph)(inputs), least_bound(graph))
        except (UnsupportedInFloat64, UserError, *REFUSALS):
            return math.nan


def _run(path: Path, inputs: Mapping[str, Float64]) -> dict[str, Float64]:
    return Float32Model(path)(inputs)


def _bound(reference: _Reference, graph: Graph) -> float:
    gained = RESIZE_BOUND if _count_resizes(graph) > reference.resizes else 0.0
    return float32_bound(reference.noise, max(reference.least, gained))


def _may_draw(node: Node) -> bool:
    """Whether a node may draw random numbers: Dropout does where it is told that it is trained."""
    return node.op in RANDOM or (node.op == "Dropout" and len(node.inputs) > 2)


def _count_resizes(graph: Graph) -> int:
    return sum(node.op == "Resize" for node in graph.nodes)


def _through(
    pass_: DeclaredPass[Any], f: Function, before: Signature, inputs: Mapping[str, Float64]
) -> dict[str, Float64]:
    return pass_.expected(f, inputs, before)
