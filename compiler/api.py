"""`compiler.build`: what `python -m compiler build` does, as a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compiler.errors import UserError
from compiler.progress import Progress, nothing

if TYPE_CHECKING:
    from torch import nn

    from compiler.building import Stage
    from compiler.rewrite import Pass
    from compiler.targets.chips import Chip

DEFAULT_MODEL = "dav2-small"
DEFAULT_PIPELINE = "insert_resize:height=480:width=640,fold_norm,split_heads,flip_average"


def build(
    model: str | nn.Module = DEFAULT_MODEL, passes: str | None = None, *,
    inputs: Mapping[str, Any] | None = None, output: Path | None = None,
    size: str | None = None, weights: str = "auto", image: Path | None = None,
    images: Path | None = None, emulate: str | None = None,
    exporter: Literal["dynamo", "torchscript"] = "dynamo", opset: int | None = None,
    canonicalize: bool = True, verify: Literal["each", "final", "full", "none"] = "each",
    allow_noop: bool = False, estimate: str | None = None,
    target: Literal["htp", "cpu"] | None = None, chip: str | None = None,
    progress: Progress = nothing,
    notice: Callable[[str], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Builds a model through a pipeline into a folder and returns what its `build.json` holds.

    Args:
        model: a name (`dav2-small`), an official `.pth` checkpoint, `hf:OWNER/NAME` or `hf:FOLDER`
            (a model of transformers), an `.onnx` file or a folder with one, or a
            `torch.nn.Module`, which is exported in evaluation mode.
        passes: the pipeline, as `--passes` takes it: names, and paths of your own passes' files; if
            None the default one, or with a `target` none but what is measured to pay there.
        inputs: of a module: example tensors by name, for `forward`'s arguments of that name or, if
            there are none, by position; their shapes are the model's.
        output: the folder; `build/NAME` if None. It appears whole or not at all.
        size: input size of a named model, `350` or height×width `392x518`, for text the number of
            tokens; 518, or what an `hf:` model's settings say, if None.
        weights: `auto`, `twin:SEED`, a `.pth` file, a Hugging Face id or folder.
        image: the photo for `depth.png`; a sample if None.
        images: a folder of photos that approximate passes are calibrated with (every other one)
            and judged by (the rest); generated images and a sample if None. Depth maps beside
            them are ground truth: `compiler.quantize.truth`.
        emulate: a chip (`iq-9075`) on whose emulated numerics the last stage's loss is measured,
            on `image`, as well; takes minutes, needs the extra `htp`.
        exporter: which PyTorch exporter writes a named model or a module.
        opset: of the export; the exporter's default if None.
        canonicalize: whether `canonicalize` runs first.
        verify: `each` stage, the `final` one, `full` (whole float64 too), or `none`.
        allow_noop: a pass that rewrites nothing is an error unless this is set.
        estimate: a chip (`iq-9075`) to simulate every stage's latency for; needs the extra `htp`.
        target: `htp` or `cpu`: adds the passes that make this model faster there, as measured.
        chip: of the target `htp`; `iq-9075` if None.
        progress: told (what, done, total) during long steps.
        notice: told one-line messages about licences and weights.

    Raises:
        UserError: bad input; nothing is left behind.
        models.ModelError: the same, about the model, its weights or the image.
        VerificationError: a stage that does not compute what it must.
    """
    import models
    from compiler.building import appearing_whole, build_record, build_stages, write_json
    from compiler.foreign import origins
    from compiler.notebook import BuildRecord
    from compiler.pictures import write_depth_picture
    from compiler.pipeline import parse_pipeline
    from compiler.quantize.images import Images, approximates
    from compiler.report import write_report
    from compiler.targets.chips import chip_named, chip_with_estimates

    simulated = None if estimate is None else _chip(estimate, chip_with_estimates)
    emulated = None if emulate is None else _chip(emulate, chip_named)
    if passes is None:
        passes = DEFAULT_PIPELINE if target is None else ""
    if target is not None:
        _refuse_target(target, chip, canonicalize=canonicalize)
    pipeline = [*parse_pipeline("canonicalize" if canonicalize else ""), *parse_pipeline(passes)]
    if not approximates(pipeline):
        _refuse_without_approximation(images, emulate)
    elif emulate is not None:
        _refuse_declared_behind(pipeline)
    if images is not None:
        Images(images).photos()  # a folder without any is refused now
    if isinstance(model, str):
        _refuse_inputs(model, inputs)
        source = models.resolve(model, size=size, weights=weights, exporter=exporter, opset=opset)
    else:
        _refuse_settings(size, weights)
        source = models.resolve_module(model, inputs, exporter=exporter, opset=opset)
    photo = image or models.sample_image()
    models.load_image(photo, 14, 14)  # a bad image is refused now, not after the build
    for text in source.notices:
        (notice or (lambda _text: None))(text)
    folder = (output or Path("build") / source.name).resolve()
    with appearing_whole(folder) as beside:
        exported = beside / "exported"
        exported.mkdir()
        progress("reading" if source.is_onnx else "exporting", 0, 1)
        path, described = source.write(exported), dict[str, Any]()
        if target is not None:
            from compiler.tuning.recommending import recommend

            found = recommend(path, passes, target, chip, beside, images, progress)
            pipeline = parse_pipeline(
                ",".join(filter(None, ("canonicalize", found.best.effective)))
            )
            described = {"target": found.record()}
        stages = build_stages(
            path, pipeline, beside, allow_noop=allow_noop, verify=verify,
            progress=progress, failures=folder.with_name(f"{folder.name}.failure"),
            spent=exported, images=images,
        )  # fmt: skip
        description = {
            "name": source.name,
            "weights": source.weights,
            "notices": list(source.notices),
        }
        if simulated is not None:
            _estimate_stages(stages, simulated, progress)
        if emulated is not None:
            _emulate(stages, photo, emulated, progress)
        record = build_record(stages, pipeline, description, verify) | origins(pipeline) | described
        progress("depth picture", 0, 1)
        write_depth_picture(beside / "depth.png", photo, stages[0].path, stages[-1].path)
        write_json(beside / "build.json", record)
        progress("report", 0, 1)
        write_report(beside)
    return BuildRecord(record, folder)


def _refuse_inputs(model: str, inputs: Mapping[str, Any] | None) -> None:
    if inputs is not None:
        raise UserError(f"inputs= is for a torch.nn.Module: {model!r} has its own")


def _refuse_settings(size: str | None, weights: str) -> None:
    if size is not None or weights != "auto":
        raise UserError("size= and weights= do not apply to a torch.nn.Module: it has its own")


def _refuse_target(target: Literal["htp", "cpu"], chip: str | None, *, canonicalize: bool) -> None:
    """Refuses, before the work, a target that can't be measured here."""
    from compiler.tuning.recommending import judge_for

    judge_for(target, chip)
    if not canonicalize:
        raise UserError("--target measures the canonical model: leave out --no-canonicalize")


def _refuse_without_approximation(images: Path | None, emulate: str | None) -> None:
    if emulate is not None:
        raise UserError("--emulate measures what approximate passes lose: there is none here")
    if images is not None:
        raise UserError("--images is for approximate passes, say quantize: there is none here")


def _refuse_declared_behind(pipeline: Sequence[Pass]) -> None:
    """The result is compared with what comes in front of the first approximate pass."""
    first = [pass_.contract for pass_ in pipeline].index("approximate")
    for later in pipeline[first:]:
        if later.contract == "declared":
            raise UserError(
                f"--emulate compares the result with the model before {pipeline[first].name}, and "
                f"{later.name} changes the function behind it: put {later.name} first"
            )


def _chip(name: str, find: Callable[[str], Chip]) -> Chip:
    """The chip to estimate or emulate; a missing wheel is refused now, not after the build."""
    from compiler.targets.htp import require_wheel

    require_wheel()
    return find(name)


def _emulate(stages: Sequence[Stage], photo: Path, chip: Chip, progress: Progress) -> None:
    """Adds the loss on the NPU's numerics to the last approximate stage's, from the exact model."""
    from compiler.quantize.npu import npu_loss

    approximate = [i for i, stage in enumerate(stages) if stage.report.loss is not None]
    if not approximate:
        return  # it found nothing to do
    reference, report = stages[approximate[0] - 1], stages[approximate[-1]].report
    on_npu, here = npu_loss(reference.path, stages[-1].path, photo, chip, progress)
    assert report.loss is not None
    report.loss |= {"npu": {"chip": chip.name, **on_npu.record()}, "photo": here.record()}
    report.notes.append(f"emulated on {chip.name}: {on_npu.text()} (on the CPU {here.text()})")


def _estimate_stages(stages: Sequence[Stage], chip: Chip, progress: Progress) -> None:
    """Fills in each stage's estimate; a stage that the NPU's compiler refuses gets a note."""
    from compiler.targets.htp import estimate

    for done, (before, stage) in enumerate(zip([None, *stages], stages, strict=False)):
        progress(f"estimating {stage.report.stage}", done, len(stages))
        if before is not None and not stage.rewrites:
            stage.report.estimate = before.report.estimate
            continue
        try:
            stage.report.estimate = {"chip": chip.name, **estimate(stage.path, chip).record()}
        except UserError as error:
            stage.report.notes.append(f"{stage.report.name} has no estimate: {error}")
