"""The ladder of checks: structure, each rewrite, whole models in float32 and in float64."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.errors import UserError, VerificationError
from compiler.graph import Graph
from compiler.randomness import draws
from compiler.rewrite import (
    ApproximatePass,
    DeclaredPass,
    Float64,
    Function,
    Pass,
    Rewrite,
    Signature,
)
from compiler.verify.kernels.call import UnsupportedInFloat64
from compiler.verify.proof import BOUNDS, REFUSALS, Proof, judge, prove
from compiler.verify.reproducer import write_reproducer, write_stage_reproducer
from compiler.verify.sizes import Sizes, is_static
from compiler.verify.structure import record_faults, structure_faults
from compiler.verify.whole import (
    MOST_NOISE,
    RESIZE_BOUND,
    Float32Model,
    accepted_sizes,
    agrees,
    battery,
    distance,
    float32_bound,
    float64_model,
    least_bound,
    memoized,
    model_inputs,
    told_noise,
    with_shapes,
)

_SEVERITY = {"pass": 0, "UNVERIFIED": 1, "fail": 2}

if TYPE_CHECKING:
    from compiler.building import Stage, Verify
    from compiler.progress import Progress


@dataclass(frozen=True)
class _Step:
    """A pass on its way: the file before, the stage after, and what that must compute."""

    last: Path
    after: Stage
    pass_: Pass
    signature: Signature
    reference: Function


class Verifier:
    """Checks the stages of one build; knows the source's noise and the last stage's values.

    Args:
        source: stage 0.
        mode: `each` compares whole float32 models after every pass, `final` after the last one,
            `full` whole float64 models as well.
        progress: told where a long step stands.
        failures: the folder that a reproducer is written to when a check fails.
    """

    def __init__(self, source: Stage, mode: Verify, progress: Progress, failures: Path) -> None:
        self._mode = mode
        self._progress = progress
        self._failures = failures
        self._last = source.path
        self._signature = Signature.of(source.graph)
        nodes = len(source.graph.nodes)
        self._least = least_bound(source.graph)
        self._changed_ops: set[str] = set()
        self._uncompared: list[_Step] = []
        self._sizes = accepted_sizes(source.path, self._signature.inputs)
        self._float32 = memoized(Float32Model(source.path))
        self._float64 = memoized(self._with_progress(source.path, "source in float64", nodes))
        self._noise = self._measured_noise()

    def check(self, after: Stage, pass_: Pass, *, is_last: bool) -> None:
        """Fills in a stage's report; raises VerificationError on the first rung that fails."""
        start = time.perf_counter()
        was, self._signature = self._signature, Signature.of(after.graph)
        last, self._last = self._last, after.path
        malformed = structure_faults(was, after.path, pass_, after.rewrites)
        if isinstance(pass_, ApproximatePass):
            self._require(malformed, last, after, pass_)
            self._start_again(after, last, pass_)
            after.report.verify_seconds = time.perf_counter() - start
            return
        self._require(malformed, last, after, pass_, after.rewrites)
        if after.rewrites:  # without any, the stage is the stage before
            sizes = self._sizes_in(last, was, after)
            after.report.float64 = asdict(self._prove_rewrites(after, pass_, sizes))
            # A Resize that goes takes its rounding with it, as one that comes brings its own.
            regions = [region for r in after.rewrites for region in (r.old, r.new)]
            self._changed_ops |= {node.op_type for region in regions for node in region.nodes}
            self._float32 = _through(self._float32, pass_, was)
            self._float64 = _through(self._float64, pass_, was)
        self._require(record_faults(last, after.path, pass_, after.rewrites), last, after, pass_)
        self._uncompared.append(_Step(last, after, pass_, self._signature, self._float32))
        rungs = []
        if is_last if self._mode == "final" else after.rewrites:
            rungs += self._report(after, "float32", self._compare_float32(after))
            if rungs:
                self._require_of_earlier()
            self._uncompared.clear()
        if self._mode == "full" and after.rewrites and not rungs:
            proof = self._compare_float64(after, is_last=is_last)
            rungs += self._report(after, "whole_float64", proof)
        self._require(rungs, last, after, pass_)
        after.report.verify_seconds = time.perf_counter() - start

    def _start_again(self, after: Stage, last: Path, pass_: Pass) -> None:
        """An approximation is measured, not proven; what comes after is compared with it."""
        self._require(record_faults(last, after.path, pass_, after.rewrites), last, after, pass_)
        if not after.rewrites:
            return
        what = f"{after.report.name.partition(':')[0]} in float64"
        self._least = least_bound(after.graph)
        self._changed_ops = set()
        self._uncompared.clear()
        self._float32 = memoized(Float32Model(after.path))
        self._float64 = memoized(self._with_progress(after.path, what, len(after.graph.nodes)))
        self._noise = self._measured_noise()

    def _require_of_earlier(self) -> None:
        """Raises for the first of the stages since the last comparison that differs already."""
        for step in self._uncompared[:-1]:
            inputs = self._inputs(step.signature)
            actual = Float32Model(step.after.path)(inputs)
            proof = judge(actual, step.reference(inputs), self._float32_bound(), noise=self._least)
            rungs = self._report(step.after, "float32", proof)
            self._require(rungs, step.last, step.after, step.pass_)

    def _report(self, stage: Stage, rung: str, proof: Proof) -> list[str]:
        """Writes a rung into the stage's report; the fault that it shows, if it does."""
        setattr(stage.report, rung, asdict(proof))
        if proof.status != "fail":
            return []
        return [f"the whole model in {rung.replace('_', ' ')} differs: error {proof.error:.3g}, "
                f"bound {proof.bound:.3g} ({proof.detail})"]  # fmt: skip

    def _require(
        self, faults: list[str], last: Path, stage: Stage, pass_: Pass,
        unproven: Sequence[Rewrite] = (),
    ) -> None:  # fmt: skip
        """Raises VerificationError, with a reproducer, if there is a fault."""
        for fault in faults[:1]:
            folder = write_stage_reproducer(
                self._failures, last, stage.path, pass_, fault, rewrites=unproven
            )
            raise VerificationError(
                f"{stage.report.stage} is wrong: {fault}; reproducer: {folder}", folder
            )

    def _sizes_in(self, last: Path, was: Signature, stage: Stage) -> list[Sizes]:
        """What dynamic sizes are in the stage before: its shapes only if a proof needs them."""
        if all(
            is_static({**rewrite.old.inputs, **rewrite.new.inputs}) for rewrite in stage.rewrites
        ):
            return self._sizes
        return [with_shapes(last, was.inputs, sizes) for sizes in self._sizes]

    def _inputs(self, signature: Signature | None = None) -> dict[str, Float64]:
        """Representative inputs of the last stage, or of an earlier one's signature.

        Dynamic sizes are the first that the source takes.
        """
        sizes = next(iter(self._sizes), Sizes({}))
        return model_inputs(sizes.bind((signature or self._signature).inputs))

    def _prove_rewrites(self, stage: Stage, pass_: Pass, sizes: list[Sizes]) -> Proof:
        """Rung 2, over all rewrites of the stage."""
        worst = Proof("pass", 0.0, BOUNDS[pass_.contract])
        unverified: list[str] = []
        for done, rewrite in enumerate(stage.rewrites):
            self._progress(f"proving {pass_.name}", done, len(stage.rewrites))
            proof = prove(rewrite, pass_, sizes=sizes)
            stage.recorded[done] = replace(stage.recorded[done], float64=asdict(proof))
            if proof.status == "fail":
                folder = write_reproducer(self._failures, rewrite, pass_, proof, sizes=sizes)
                raise VerificationError(
                    f"{rewrite.title} is wrong: {proof.detail}, bound {proof.bound:.3g}; "
                    f"reproducer: {folder}", folder
                )  # fmt: skip
            if proof.status == "UNVERIFIED":
                unverified.append(f"{rewrite.title}: {proof.detail}")
            elif not proof.error <= worst.error:
                worst = proof
        if unverified:
            count = f"{len(unverified)} of {len(stage.rewrites)}"
            return Proof("UNVERIFIED", worst.error, worst.bound, f"{count}: {unverified[0]}")
        return worst

    def _compare_float32(self, stage: Stage) -> Proof:
        """Rung 3: as written and as users run it, against the last stage's float32 values."""
        self._progress(f"float32 {stage.report.name.partition(':')[0]}", 0, 1)
        drawing = sorted({node.op for node in stage.graph.nodes if draws(stage.graph, node)})
        if drawing:
            return Proof("UNVERIFIED", math.nan, math.nan, f"{drawing[0]} draws random numbers")
        try:
            inputs = self._inputs()
        except UnsupportedInFloat64 as reason:
            return Proof("UNVERIFIED", math.nan, math.nan, str(reason))
        try:
            expected = self._float32(inputs)
        except UserError as reason:
            return self._no_run(reason)
        plain = memoized(Float32Model(stage.path))
        optimized = Float32Model(stage.path, optimized=True)
        bound = self._float32_bound()
        proofs = [judge(model(inputs), expected, bound, noise=self._least)
                  for model in (plain, optimized)]  # fmt: skip
        if self._mode != "final":
            self._float32 = plain
            self._changed_ops = set()
        worst = max(proofs, key=lambda proof: (_SEVERITY[proof.status], proof.error))
        if worst.status == "pass" and not self._noise <= MOST_NOISE:
            return Proof("UNVERIFIED", worst.error, bound, told_noise(self._noise))
        return worst

    def _float32_bound(self) -> float:
        """From the source's own noise, and from what was added since the last comparison."""
        gained = RESIZE_BOUND if "Resize" in self._changed_ops else 0.0
        return float32_bound(self._noise, max(self._least, gained))

    def _compare_float64(self, stage: Stage, *, is_last: bool) -> Proof:
        """Rung 4: the whole stage in float64 against the source's, through the declared changes."""
        # Stored weights are rounded: that, and no more, may show here.
        bound = self._least
        what = f"{stage.report.name.partition(':')[0]} in float64"
        model = self._with_progress(stage.path, what, len(stage.graph.nodes))
        try:
            natural = self._inputs()
            proof = judge(model(natural), self._float64(natural), bound, noise=bound)
            images = battery(self._signature.inputs) if is_last and proof.status != "fail" else {}
            for name, image in images.items():
                if not agrees(model(image), self._float64(image), bound):
                    return Proof("fail", math.inf, bound, f"on the image {name!r}")
        except UnsupportedInFloat64 as reason:
            return Proof("UNVERIFIED", math.nan, bound, str(reason))
        return proof

    def _measured_noise(self) -> float:
        """How far the source's float32 is from its own float64; nan if it has no float64."""
        try:
            inputs = self._inputs()
            exact = self._float64(inputs)
        except (UnsupportedInFloat64, *REFUSALS):  # generated integers may not fit
            return math.nan
        try:
            return distance(self._float32(inputs), exact, self._least)
        except UserError as reason:
            return self._no_run(reason).error

    def _no_run(self, reason: UserError) -> Proof:
        """What it means that the reference does not run: generated integers may not fit.

        Raises `reason` if there are none: such a model runs on no input.
        """
        if all(kind.is_float for kind in self._signature.inputs.values()):
            raise reason
        return Proof("UNVERIFIED", math.nan, math.nan, str(reason))

    def _with_progress(self, path: Path, what: str, nodes: int) -> Function:
        graph = Graph.load(path)
        return float64_model(graph, lambda done: self._progress(what, done, nodes))


def _through(reference: Function, pass_: Pass, before: Signature) -> Function:
    """The function that a stage must compute, given that of the stage before."""
    if not isinstance(pass_, DeclaredPass):
        return reference
    return lambda inputs: pass_.expected(reference, inputs, before)
