"""The bisection of a build: its ends, its passes, the rewrites of the bad pass, the reproducer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from compiler.bisect.checks import Check, CommandCheck, NumericCheck, Verdict
from compiler.bisect.culprit import Culprit, disproven, write_culprit
from compiler.bisect.prefixes import Built, Unit
from compiler.bisect.search import Interval, first_bad
from compiler.building import build_record, build_stages, write_json, writing
from compiler.errors import UserError
from compiler.foreign import origins
from compiler.pipeline import parse_pipeline
from compiler.progress import Progress

Told = Callable[[str], None]


@dataclass
class Bisection:
    """A bisection in progress: what was checked, and what is said on the way."""

    built: Built
    check: Check
    told: Told
    verdicts: dict[Path, Verdict] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)

    def verdict(self, model: Path, number: int) -> Verdict:
        """What the check says of a model; asked once."""
        if model not in self.verdicts:
            self.verdicts[model] = self.check(model, number)
        return self.verdicts[model]

    def say(self, text: str) -> None:
        """Tells a step."""
        self.steps.append(text)
        self.told(text)

    def pass_title(self, number: int) -> str:
        """`pass 3 of 5 (split_heads)`."""
        name = self.built.passes[number - 1].name
        return f"pass {number} of {len(self.built.passes)} ({name})"


def bisect(
    folder: Path, scratch: Path, output: Path, *, check: str | None, told: Told, progress: Progress
) -> dict[str, Any]:
    """Finds the first bad pass and rewrite of a build, and leaves a reproducer.

    Args:
        folder: of the build.
        scratch: an empty folder for models between stages.
        output: the folder of the reproducer.
        check: a command with `{model}`; whole models in float32 against the source if None.
        told: told every step in a line.
        progress: told where a long step stands.

    Raises:
        UserError: if the source is bad already, or the result is good.
    """
    start = time.perf_counter()
    if output.exists() and not (output / "failure.json").exists():
        raise UserError(f"{output} exists and is no reproducer: choose another -o")
    built = Built.of(folder, scratch)
    progress("the check", 0, 1)
    run = Bisection(built, NumericCheck(built) if check is None else CommandCheck(check), told)
    culprits, proven = _culprits(run)
    first = culprits[0]
    reproducer = None
    if len(culprits) == 1:
        if isinstance(run.check, CommandCheck):
            _require_steady(run.check, first)
        progress("making the reproducer small", 0, 1)
        with writing(output):
            write_culprit(output, built, first, run.check)
        reproducer = str(output)
    return {
        "check": "float64 at each rewrite's cut" if proven else run.check.text,
        "pass": built.passes[first.number - 1].text(), "number": first.number,
        "passes": len(built.passes), "rewrites": [one.title for one in culprits],
        "detail": first.detail, "checks": len(run.verdicts), "steps": run.steps,
        "seconds": time.perf_counter() - start, "reproducer": reproducer,
        "replays": reproducer is not None and (output / "replay.sh").exists(),
    }  # fmt: skip


@contextmanager
def scratch_beside(output: Path) -> Iterator[Path]:
    """An empty folder for the time being; weights may be more than `/tmp` holds."""
    parent = next(folder for folder in output.absolute().parents if folder.is_dir())
    with writing(output):
        scratch = TemporaryDirectory(prefix=".bisect-", dir=parent)
    with scratch as folder:
        yield Path(folder)


def build_for_bisection(
    model: str, passes: str, folder: Path, *, size: str | None, weights: str, canonicalize: bool,
    progress: Progress,
) -> None:  # fmt: skip
    """Builds a model, unverified, with what a bisection needs of a build.

    Raises what `compiler.build` raises of bad input.
    """
    import models

    pipeline = [*parse_pipeline("canonicalize" if canonicalize else ""), *parse_pipeline(passes)]
    source = models.resolve(model, size=size, weights=weights, exporter="dynamo", opset=None)
    exported = folder / "exported"
    exported.mkdir(parents=True)
    stages = build_stages(
        source.write(exported), pipeline, folder, allow_noop=True, verify="none",
        progress=progress, failures=folder / "failure", spent=exported,
    )  # fmt: skip
    record = build_record(stages, pipeline, {"name": source.name}, "none")
    write_json(folder / "build.json", record | origins(pipeline))


def _culprits(run: Bisection) -> tuple[list[Culprit], bool]:
    """The first bad rewrite (several where the check can't tell), and whether proofs found it."""
    built, last = run.built, len(run.built.passes)
    source = run.verdict(built.stages[0], 0)
    _require(run.check, source, "the source", "good")
    result = run.verdict(built.stages[-1], last) if source == "good" else "skip"
    _require(run.check, result, "the result", "bad")
    if result != "bad":
        return [_by_proofs(run, shows="nothing" if result == "good" else "too little")], True
    run.say(f"source good, result bad: {last} passes to look at")
    interval = first_bad(last, lambda k: run.verdict(built.stages[k], k), _teller(run, "passes"))
    if interval.left > 1:
        return [_whole_pass(built, number)
                for number in range(interval.good + 1, interval.bad + 1)], False  # fmt: skip
    return _bad_rewrites(run, interval.bad), False


def _require(check: Check, said: Verdict, what: str, wanted: Verdict) -> None:
    """Refuses what a command says of an end: without a good and a bad one there is no between."""
    if isinstance(check, CommandCheck) and said != wanted:
        verdict = "can't be told" if said == "skip" else f"is {said}"
        raise UserError(f"{what} {verdict} by {check.text!r} ({check.answer}): there is nothing to "
                        "bisect")  # fmt: skip


def _require_steady(check: CommandCheck, found: Culprit) -> None:
    """Asks for the models without and with the rewrite once more: a moody check finds anything."""
    for model, said in ((found.good, "good"), (found.bad, "bad")):
        again = check(model, found.number)
        if again != said:
            raise UserError(f"{check.text!r} called {model.name} {said}, and asked again "
                            f"{again} ({check.answer}): it finds nothing until it says the same "
                            "every time")  # fmt: skip


def _teller(run: Bisection, what: str) -> Callable[[Interval, int, Verdict], None]:
    """Says after each check what is left."""

    def tell(found: Interval, position: int, said: Verdict) -> None:
        known = f"0–{found.good} good, 0–{found.bad} bad"
        skipped = f", 0–{position} can't be told" if said == "skip" else ""
        run.say(f"{what}: {known}{skipped} → {found.left} left")

    return tell


def _bad_rewrites(run: Bisection, number: int) -> list[Culprit]:
    """The bad rewrites of the bad pass: one, unless the check can't tell."""
    built = run.built
    run.say(f"the first bad pass is {run.pass_title(number)}")
    units = built.units(number)
    if not units:
        return [_without_prefixes(run, number)]

    def verdict(count: int) -> Verdict:
        path = built.with_first(number, units, count)
        return "skip" if path is None else run.verdict(path, number)

    teller = _teller(run, f"{run.pass_title(number)}: rewrites")
    found = first_bad(len(units), verdict, teller)
    return [_culprit_of(built, number, units, index) for index in range(found.good, found.bad)]


def _culprit_of(built: Built, number: int, units: list[Unit], index: int) -> Culprit:
    stages = built.stages[number - 1 : number + 1]
    good = built.with_first(number, units, index) or stages[0]
    bad = built.with_first(number, units, index + 1) or stages[1]
    return Culprit(number, units[index].title, "", good, bad)


def _without_prefixes(run: Bisection, number: int) -> Culprit:
    """The bad rewrite of a pass whose rewrites can't be applied one by one."""
    recorded = run.built.rewrites[number - 1]
    if len(recorded) == 1:
        return _whole_pass(run.built, number)
    run.say(f"{run.pass_title(number)}: its {len(recorded)} rewrites can't be applied one by one; "
            "each is compared in float64 at its own cut")  # fmt: skip
    return disproven(run.built, number) or _whole_pass(run.built, number)


def _whole_pass(built: Built, number: int) -> Culprit:
    recorded = built.rewrites[number - 1]
    title = recorded[0].title if len(recorded) == 1 else built.passes[number - 1].name
    return Culprit(number, title, "", built.stages[number - 1], built.stages[number])


def _by_proofs(run: Bisection, *, shows: str) -> Culprit:
    """What the whole model does not show: every rewrite at its own cut, pass by pass."""
    run.say(f"the whole model in float32 shows {shows}: each rewrite is compared in float64 at its "
            "own cut")  # fmt: skip
    for number in range(1, len(run.built.passes) + 1):
        found = disproven(run.built, number)
        if found is not None:
            run.say(f"{run.pass_title(number)}: {found.title} differs")
            return found
        run.say(f"{run.pass_title(number)}: {_standing(run.built, number)}")
    whole = "the whole model in float32, and " if shows == "nothing" else ""
    raise UserError(f"the result is good: {whole}every rewrite at its own cut{_unproven(run.built)}"
                    "; for what only a device shows give --check COMMAND")  # fmt: skip


def _standing(built: Built, number: int) -> str:
    """How far the rewrites of a pass that differs nowhere can be trusted."""
    if built.passes[number - 1].contract == "approximate":
        loss = built.losses[number - 1]
        return f"approximate: nothing to prove; the build measured {loss or 'no loss'}"
    return f"{len(built.rewrites[number - 1])} rewrites hold"


def _unproven(built: Built) -> str:
    """What is measured and not proven, in brackets; nothing if all is proven."""
    pairs = zip(built.passes, built.losses, strict=True)
    found = [f"{pass_.name} ({loss})" for pass_, loss in pairs if loss]
    return f" but for {' and '.join(found)}, which the build measured" if found else ""
