"""The driver's side: what an approximate pass may measure by, and what its stage has lost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from compiler.errors import UserError, VerificationError
from compiler.pictures import is_map
from compiler.progress import Progress
from compiler.quantize.evidence import Evidence, Feeds, in_memory, rounding, told
from compiler.quantize.images import Images
from compiler.quantize.loss import Loss, Runner, image_loss, loss_of, worst_image
from compiler.quantize.truth import Map, against_truth, text
from compiler.region import TensorType
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
        self._truth = images.truth()
        if self._truth and not is_map(TensorType.of(before.graph.outputs[0])):
            raise UserError("there is depth beside the photos, and the model makes no depth map")

    def evidence(self) -> Evidence:
        """What the pass gets."""
        calibration = list(self._images.calibration(self._graph).values())
        return Evidence(calibration, self._quick_or_whole, self._progress)

    def require(self, after: Stage) -> None:
        """Writes the loss into a stage's report. Raises VerificationError if it is too much."""
        bound = self._pass.max_loss
        self._progress(f"judging {self._pass.name}", 0, 1)
        with _rounded(after.path) as run:
            made = {name: run(feeds) for name, feeds in self._judging.items()}
        loss = Loss(tuple(image_loss(name, made[name], wanted)
                          for name, (_, wanted) in self._expected.items()))  # fmt: skip
        after.report.loss = loss.record() | {"max_loss": bound}
        after.report.notes.append(f"{self._pass.name} is approximate: {loss.text()}")
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

    def _quick_or_whole(self, model: onnx.ModelProto, quick: bool) -> float:
        judged = dict(islice(self._expected.items(), QUICK if quick else None))
        with told("onnxruntime"):
            return loss_of(_run(model), judged).value

    @cached_property
    def _expected(self) -> Mapping[str, tuple[Feeds, Mapping[str, NDArray[Any]]]]:
        reference = Float32Model(self._before)
        return {name: (feeds, reference(feeds)) for name, feeds in self._judging.items()}


def _maps(outputs: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, Map]:
    """The first output of each image, H×W."""
    firsts = {name: np.asarray(next(iter(all_.values()))) for name, all_ in outputs.items()}
    return {name: values.reshape(values.shape[-2:]) for name, values in firsts.items()}


@contextmanager
def _rounded(path: Path) -> Iterator[Runner]:
    """A stage as a function, as it is written: float16 is rounded."""
    model = onnx.load(path, load_external_data=False)
    beside = path.with_name(f".{path.name}.rounding")  # where its weights are
    try:
        beside.write_bytes(rounding(model).SerializeToString())
        yield Float32Model(beside)
    finally:
        beside.unlink(missing_ok=True)


def _run(model: onnx.ModelProto) -> Runner:
    """A model in memory, as a function."""
    session = in_memory(model)
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Feeds) -> dict[str, NDArray[Any]]:
        values = session.run(names, dict(feeds))
        return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}

    return run
