"""The driver's side: what an approximate pass may measure by, and what its stage has lost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache, cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from compiler.errors import UserError, VerificationError
from compiler.pictures import is_map
from compiler.progress import Progress
from compiler.quantize.evidence import Evidence, Feeds, in_memory, told
from compiler.quantize.images import Images
from compiler.quantize.loss import Judged, Loss, Runner, image_loss, loss_of, worst_image
from compiler.quantize.truth import Map, against_truth, text
from compiler.region import TensorType
from compiler.rewrite import ApproximatePass
from compiler.verify.whole import Float32Model

if TYPE_CHECKING:
    from compiler.building import Stage

# Images that layers are ranked by: their order is what counts.
QUICK = 2


class Judge:
    """Compares approximations of one stage with it, on images that calibrate nothing.

    Nor do they choose what a pass spares: it measures on those that calibrate, as many of them.
    """

    def __init__(
        self, before: Stage, pass_: ApproximatePass, images: Images, progress: Progress
    ) -> None:
        self._pass = pass_
        self._before = before.path
        self._images = images
        self._graph = before.graph
        self._progress = progress
        self._beyond: float | None = None
        # Now: what can't be judged is refused before it is made.
        self._judging = images.judging(before.graph)
        self._truth = images.truth()
        if self._truth and not is_map(TensorType.of(before.graph.outputs[0])):
            raise UserError("there is depth beside the photos, and the model makes no depth map")

    def evidence(self) -> Evidence:
        """What the pass gets."""
        calibration = self._images.calibration(self._graph)
        images = dict(islice(calibration.items(), len(self._judging)))
        choosing = cache(lambda: self._with_expected(images))  # a pass may have nothing to choose

        def loss(model: onnx.ModelProto, quick: bool) -> float:
            return _loss(model, dict(islice(choosing().items(), QUICK if quick else None)))

        return Evidence(list(calibration.values()), loss, self._judged, self._progress)

    def require(self, after: Stage) -> None:
        """Writes the loss into a stage's report. Raises VerificationError if it is too much."""
        bound = self._pass.max_loss
        self._progress(f"judging {self._pass.name}", 0, 1)
        run = Float32Model(after.path, rounded=True)  # as it is written: float16 is rounded
        made = {name: run(feeds) for name, feeds in self._judging.items()}
        loss = Loss(tuple(image_loss(name, made[name], wanted)
                          for name, (_, wanted) in self._expected.items()))  # fmt: skip
        after.report.loss = loss.record() | {"max_loss": bound}
        after.report.notes.append(f"{self._pass.name} is approximate: {loss.text()}")
        if self._beyond is not None:
            after.report.notes.append(
                f"{self._pass.name}: images that judge lost {loss.measure} {self._beyond:.3g} with "
                f"the layers spared that calibrating ones chose, more than max_loss={bound:g}: "
                "more were spared in the same order"
            )
        if not math.isfinite(loss.value):
            raise VerificationError(
                f"{after.report.stage} makes values that are no numbers, or too large for its "
                f"types, on {worst_image(loss)}"
            )
        if loss.value > bound:
            raise VerificationError(
                f"{after.report.stage} loses {loss.measure} {loss.value:.3g}, more than "
                f"max_loss={bound:g} ({loss.text()}; most on {worst_image(loss)})"
            )
        if self._truth:
            found = self._against_truth(made)
            after.report.loss |= {"truth": found}
            after.report.notes.append(f"{self._pass.name} {text(found)}")

    def _against_truth(self, made: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, Any]:
        before = {name: wanted for name, (_, wanted) in self._expected.items()}
        return against_truth(self._truth, _maps(before), _maps(made))

    def _judged(self, model: onnx.ModelProto) -> float:
        """The loss that will be reported; the first that is too much is remembered."""
        loss = _loss(model, self._expected)
        if self._beyond is None and not loss <= self._pass.max_loss:
            self._beyond = loss
        return loss

    @cached_property
    def _expected(self) -> Judged:
        return self._with_expected(self._judging)

    def _with_expected(self, images: Mapping[str, Feeds]) -> Judged:
        """Images with what the model before makes of them."""
        reference = Float32Model(self._before)
        return {name: (feeds, reference(feeds)) for name, feeds in images.items()}


def _maps(outputs: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, Map]:
    """The first output of each image, H×W."""
    firsts = {name: np.asarray(next(iter(all_.values()))) for name, all_ in outputs.items()}
    return {name: values.reshape(values.shape[-2:]) for name, values in firsts.items()}


def _loss(model: onnx.ModelProto, judged: Judged) -> float:
    """The loss of a model in memory."""
    with told("onnxruntime"):
        return loss_of(_run(model), judged).value


def _run(model: onnx.ModelProto) -> Runner:
    """A model in memory, as a function."""
    session = in_memory(model)
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Feeds) -> dict[str, NDArray[Any]]:
        values = session.run(names, dict(feeds))
        return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}

    return run
