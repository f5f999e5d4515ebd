"""The driver's side: what an approximate pass may measure by, and what its stage has lost."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from compiler.errors import VerificationError
from compiler.progress import Progress
from compiler.quantize.evidence import Evidence, Feeds, in_memory, told
from compiler.quantize.images import Images
from compiler.quantize.loss import Runner, loss_of, worst_image
from compiler.rewrite import ApproximatePass
from compiler.verify.whole import Float32Model

if TYPE_CHECKING:
    from compiler.building import Stage

# Images that layers are ranked by: their order is what counts.
QUICK = 2


class Judge:
    """Compares approximations of one stage with it, on images that calibrate nothing."""

    def __init__(
        self, before: Stage, pass_: ApproximatePass, images: Images, progress: Progress
    ) -> None:
        self._pass = pass_
        self._before = before.path
        self._images = images
        self._graph = before.graph
        self._progress = progress
        # Now: what can't be judged is refused before it is made.
        self._judging = images.judging(before.graph)

    def evidence(self) -> Evidence:
        """What the pass gets."""
        calibration = list(self._images.calibration(self._graph).values())
        return Evidence(calibration, self._quick_or_whole, self._progress)

    def require(self, after: Stage) -> None:
        """Writes the loss into a stage's report. Raises VerificationError if it is too much."""
        bound = self._pass.max_loss
        self._progress(f"judging {self._pass.name}", 0, 1)
        loss = loss_of(Float32Model(after.path), self._expected)
        after.report.loss = loss.record() | {"max_loss": bound}
        after.report.notes.append(f"{self._pass.name} is approximate: {loss.text()}")
        if not loss.value <= bound:
            raise VerificationError(
                f"{after.report.stage} loses {loss.measure} {loss.value:.3g}, more than "
                f"max_loss={bound:g} ({loss.text()}; most on {worst_image(loss)})"
            )

    def _quick_or_whole(self, model: onnx.ModelProto, quick: bool) -> float:
        judged = dict(islice(self._expected.items(), QUICK if quick else None))
        with told("onnxruntime"):
            return loss_of(_run(model), judged).value

    @cached_property
    def _expected(self) -> Mapping[str, tuple[Feeds, Mapping[str, NDArray[Any]]]]:
        reference = Float32Model(self._before)
        return {name: (feeds, reference(feeds)) for name, feeds in self._judging.items()}


def _run(model: onnx.ModelProto) -> Runner:
    """A model in memory, as a function."""
    session = in_memory(model)
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Feeds) -> dict[str, NDArray[Any]]:
        values = session.run(names, dict(feeds))
        return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}

    return run
