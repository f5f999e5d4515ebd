"""Every planted fault in a build: pass and rewrite are named, the reproducer is small and fails.

The faults go, one at a time, into the passes of a whole pipeline, in builds of three models: of
four narrow layers, of two, and Depth Anything V2 Small (70×56 images; a handful at 518).
"""

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

import pytest
import small_depth
import torch
from bisections import bisected, built
from mutants import EDITS, WRONG, Mutant

import models
from compiler.pipeline import parse_pipeline
from compiler.rewrites import read_rewrites
from compiler.verify.reduction import READABLE
from models.depth_anything import DepthMap, empty_network
from models.twin import twin_state_dict
from models.variants import RELATIVE, Variant

PIPELINE = ["canonicalize", "insert_resize:height=64:width=72", "fold_norm", "split_heads",
            "flip_average"]  # fmt: skip
ROOT = Path(__file__).parents[1]
SCORE: defaultdict[str, Counter[str]] = defaultdict(Counter)

# One of each kind: in a head, of the weights, malformed, small, by comparing, declared, outside.
QUICK = {"scale x1.01", "slice +1 of k", "head left out", "LayerNorm eps x10",
         "one weight element x1.01", "copy differs in one weight", "rows flipped, batch",
         "edit outside of the rewrite, split_heads"}  # fmt: skip
AT_518 = {"scale x1.01", "LayerNorm eps x10", "copy differs in one weight", "rows flipped, batch",
          "edit outside of the rewrite, split_heads"}  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


def two_layers(folder: Path) -> Path:
    """The small model without its last two layers; the head's four taps are 1, 2, 2 and 2."""
    empty = empty_network(Variant(small_depth.TINY, RELATIVE))
    kept = empty.backbone.encoder.layer[:2]
    nothing = torch.nn.Identity(), torch.nn.Identity()
    empty.backbone.encoder.layer = torch.nn.ModuleList([*kept, *nothing])
    shapes = {name: parameter.shape for name, parameter in empty.named_parameters()}
    empty.load_state_dict(twin_state_dict(shapes, 0), assign=True)
    return small_depth.write(folder, DepthMap(empty, small_depth.HEIGHT, small_depth.WIDTH))


def small(size: str, folder: Path) -> Path:
    """Depth Anything V2 Small."""
    source = models.resolve("dav2-small", size=size, weights="twin:0", exporter="dynamo",
                            opset=None)  # fmt: skip
    return source.write(folder)


@pytest.fixture(scope="session")
def sources(depth_model, tmp_path_factory):
    """The models by name; each is exported once."""
    written = {"four layers": depth_model}
    writers = {"two layers": two_layers, "Small": partial(small, "70x56"),
               "Small at 518": partial(small, "518")}  # fmt: skip

    def source_of(name: str) -> Path:
        if name not in written:
            written[name] = writers[name](tmp_path_factory.mktemp("source"))
        return written[name]

    return source_of


def pipeline_of(mutant: Mutant) -> str:
    """The whole pipeline with the mutant's pass in its place."""
    own = mutant.passes.partition(":")[0]
    instead_of = "split_heads" if own == "split_queries" else own
    passes = [mutant.passes if one.partition(":")[0] == instead_of else one for one in PIPELINE]
    if mutant.passes not in passes:
        passes.insert(len(passes) if own == "range_output" else 1, mutant.passes)
    return ",".join(passes)


def every_case():
    for model in ("four layers", "two layers", "Small", "Small at 518"):
        for mutant in WRONG if model != "Small at 518" else [m for m in WRONG if m.id in AT_518]:
            is_quick = model == "four layers" and mutant.id in QUICK
            yield pytest.param(model, mutant, id=f"{model}-{mutant.id}".replace(" ", "_"),
                               marks=[] if is_quick else [pytest.mark.slow])  # fmt: skip


def replayed(folder: Path) -> int:
    """The exit code of `replay.sh`, from another folder."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    command = ["sh", folder / "replay.sh"]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True).returncode


@pytest.mark.parametrize(("model", "mutant"), every_case())
def test_a_planted_fault_is_named_and_reproduced(sources, tmp_path, monkeypatch, model, mutant):
    with monkeypatch.context() as patch:
        mutant.plant(patch)
        folder = built(sources(model), pipeline_of(mutant), tmp_path / "b")
    mutant.plant(monkeypatch)  # it counts its calls: the pass may be run once more
    record = bisected(folder)
    name = mutant.passes.partition(":")[0]
    # Outside of all rewrites it is in none; of a pass with a single one, that one is named.
    in_none = mutant in EDITS and len(read_rewrites(folder)[f"{record['number']:02d}_{name}"]) > 1
    named = f"{name}, outside of its rewrites" if in_none else f"{name}#{mutant.rewrite} at"
    nodes = json.loads((tmp_path / "out" / "failure.json").read_text())["nodes"]
    done = {
        "pass named": record["pass"] == parse_pipeline(mutant.passes)[0].text(),
        "rewrite named": [title.startswith(named) for title in record["rewrites"]] == [True],
        "20 nodes at most": max(nodes.values()) <= READABLE,
        "replay fails": replayed(tmp_path / "out") == 1,
    }
    SCORE[model].update(["faults", *(what for what, is_so in done.items() if is_so)])
    assert all(done.values()), (done, record, nodes)


def test_score(capsys):
    """Prints the totals of what ran."""
    with capsys.disabled():
        for model, score in SCORE.items():
            print(f"\n{model}: {', '.join(f'{n} {what}' for what, n in score.items())}")
    assert all(set(score.values()) == {score["faults"]} for score in SCORE.values())
