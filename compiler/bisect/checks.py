"""What tells a good model from a bad one: a command of the user's, or the verifier's numbers."""

from __future__ import annotations

import math
import shlex
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from compiler.bisect.prefixes import Built
from compiler.errors import UserError
from compiler.graph import Graph
from compiler.rewrite import DeclaredPass, Float64, Function, Signature
from compiler.verify.kernels.call import UnsupportedInFloat64
from compiler.verify.proof import REFUSALS, judge
from compiler.verify.sizes import Sizes
from compiler.verify.whole import (
    GROSS_ERROR,
    NOISE_MULTIPLE,
    RESIZE_BOUND,
    Float32Model,
    accepted_sizes,
    distance,
    float64_model,
    least_bound,
    memoized,
    model_inputs,
)

Verdict = Literal["good", "bad", "skip"]
MODEL = "{model}"
# As for `git bisect run`: the command can't tell.
CANNOT_TELL = 125
NOT_RUN = (126, 127)


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

    def __call__(self, model: Path, number: int) -> Verdict:
        """Runs the command on a model's file."""
        command = self.text.replace(MODEL, shlex.quote(str(model.resolve())))
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        if done.returncode in NOT_RUN:
            said = (done.stderr.strip().splitlines() or ["it can't be run"])[-1]
            raise UserError(f"--check {self.text!r}: {said}")
        if done.returncode == CANNOT_TELL:
            return "skip"
        return "bad" if done.returncode else "good"


class NumericCheck:
    """Whole models in float32 against the source, through what the passes declare."""

    text = "float32 against the source"

    def __init__(self, built: Built) -> None:
        self._built = built
        source = Graph.load(built.stages[0])
        self._inputs = Signature.of(source).inputs
        self._sizes = next(iter(accepted_sizes(built.stages[0], self._inputs)), Sizes({}))
        self._least = least_bound(source)
        self._resizes = _count_resizes(source)
        self._expected = self._references(memoized(Float32Model(built.stages[0])))
        self._noise = self._measured_noise(float64_model(source))

    def __call__(self, model: Path, number: int) -> Verdict:
        """Runs the model; what onnxruntime refuses is bad."""
        try:
            graph = Graph.load(model)
            inputs = model_inputs(self._sizes.bind(Signature.of(graph).inputs))
            actual = Float32Model(model)(inputs)
        except UnsupportedInFloat64:
            return "skip"
        except UserError:
            return "bad"
        expected = self._expected[number](inputs)
        if actual.keys() != expected.keys():
            return "bad"
        status = judge(actual, expected, self._bound(graph)).status
        return "skip" if status == "UNVERIFIED" else "bad" if status == "fail" else "good"

    def _references(self, source: Function) -> list[Function]:
        """What each stage must compute, given what the passes before it declare."""
        found = [source]
        stages = zip(self._built.passes, self._built.stages, strict=False)
        for pass_, before in stages:
            if isinstance(pass_, DeclaredPass):
                signature = Signature.of(Graph.load(before))
                call = partial(_through, pass_, found[-1], signature)
                found.append(memoized(call))
            else:
                found.append(found[-1])
        return found

    def _measured_noise(self, exact: Function) -> float:
        """How far the source's float32 is from its float64; nan if it has none."""
        try:
            inputs = model_inputs(self._sizes.bind(self._inputs))
            return distance(self._expected[0](inputs), exact(inputs))
        except (UnsupportedInFloat64, *REFUSALS):
            return math.nan

    def _bound(self, graph: Graph) -> float:
        if not math.isfinite(self._noise):
            return GROSS_ERROR
        gained = _count_resizes(graph) > self._resizes
        least = max(self._least, RESIZE_BOUND if gained else 0.0)
        return max(NOISE_MULTIPLE * self._noise, least)


def _count_resizes(graph: Graph) -> int:
    return sum(node.op == "Resize" for node in graph.nodes)


def _through(
    pass_: DeclaredPass[Any], f: Function, before: Signature, inputs: Mapping[str, Float64]
) -> dict[str, Float64]:
    return pass_.expected(f, inputs, before)
