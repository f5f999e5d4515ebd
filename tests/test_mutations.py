"""The verifier's mutation score: every planted fault is rejected, what is equivalent passes.

The model is a small Depth Anything V2 with twin weights. A fault must be found at the rewrite that
it is in, and the error must name pass and rewrite.
"""

import re
from collections import Counter

import pytest
import torch
from mutants import EDITS, EQUIVALENT, WRONG, Mutant, pipelines

from compiler.building import build_stages
from compiler.errors import VerificationError
from compiler.pipeline import parse_pipeline

SCORE: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def one_thread():
    """Matrices this small are slower in two threads, and far slower beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(source, tmp_path, passes):
    folder = tmp_path / "build"
    folder.mkdir()
    return build_stages(source, parse_pipeline(passes), folder, failures=tmp_path / "failure")


def by_id(mutants: list[Mutant]):
    return [pytest.param(mutant, id=mutant.id.replace(" ", "_")) for mutant in mutants]


@pytest.mark.parametrize("passes", pipelines())
def test_what_is_not_planted_passes(depth_model, tmp_path, passes):
    (*_, stage) = build(depth_model, tmp_path, passes)
    found_work = passes != "canonicalize"  # dynamo's export is canonical as it is
    assert bool(stage.report.rewrites) == found_work
    if found_work:
        assert stage.report.float64["status"] == "pass"
        assert stage.report.float32["status"] == "pass"


@pytest.mark.parametrize("mutant", by_id(WRONG))
def test_is_rejected(depth_model, tmp_path, monkeypatch, mutant):
    SCORE["wrong"] += 1
    mutant.plant(monkeypatch)
    with pytest.raises(VerificationError) as failure:
        build(depth_model, tmp_path, mutant.passes)
    name = mutant.passes.rpartition(",")[2].partition(":")[0]
    named = rf"{name} changed '\S+' outside" if mutant in EDITS else rf"{name}#\d+ at \S+"
    assert re.search(named, str(failure.value)), "names pass and rewrite"
    SCORE["rejected"] += 1


@pytest.mark.parametrize("mutant", by_id(EQUIVALENT))
def test_equivalent_passes(depth_model, tmp_path, monkeypatch, mutant):
    SCORE["equivalent"] += 1
    mutant.plant(monkeypatch)
    (*_, stage) = build(depth_model, tmp_path, mutant.passes)
    assert stage.report.float64["status"] == "pass"
    SCORE["passed"] += 1


def test_score(capsys):
    with capsys.disabled():
        print(
            f"\nmutants: {SCORE['rejected']} of {SCORE['wrong']} rejected, "
            f"{SCORE['passed']} of {SCORE['equivalent']} equivalent ones pass"
        )
    assert SCORE["rejected"] == SCORE["wrong"]
    assert SCORE["passed"] == SCORE["equivalent"]
