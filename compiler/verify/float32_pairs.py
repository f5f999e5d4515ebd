"""Where two stages that are equal in float64 part in onnxruntime's float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from compiler.components import changed_components
from compiler.graph import Graph
from compiler.rewrite import Rewrite, Signature
from compiler.verify.measure import compare
from compiler.verify.reduction import Pair, with_one_signature
from compiler.verify.sizes import Sizes
from compiler.verify.whole import Float32Model, accepted_sizes, model_inputs

# So many pieces of two stages are looked at in one run: all tensors at once may be gigabytes.
PIECES = 8


def float32_pairs(before: Path, after: Path, name: str, seed: int = 0) -> Iterator[Pair]:
    """The changed pieces between shared tensors that part the most, with the real values there.

    Args:
        before: a stage; the same tensor has the same name in both.
        after: the stage after it.
        name: of the pass between them.
        seed: of the inputs of the whole model.
    """
    types = Signature.of(Graph.load(before)).inputs
    sizes = next(iter(accepted_sizes(before, types)), Sizes({}))
    inputs = model_inputs(sizes.bind(types), seed)
    pieces = changed_components(Graph.load(before), Graph.load(after), name)
    found: list[tuple[float, Pair]] = []
    for start in range(0, len(pieces), PIECES):
        some = pieces[start : start + PIECES]
        feeds = {n: kind for piece in some for n, kind in piece.old.inputs.items()}
        values = _values(before, inputs, [*feeds])
        found += [_alone(piece, values) for piece in some if values.keys() >= {*piece.old.inputs}]
    yield from (pair for _, pair in sorted(found, key=lambda one: -one[0]))


def _alone(piece: Rewrite, values: dict[str, Any]) -> tuple[float, Pair]:
    """How far the two sides of a piece are apart on the same values, and the pair."""
    feeds = {name: values[name] for name in piece.old.inputs}
    pair = with_one_signature(Pair(piece.old, piece.new, feeds, tuple(feeds), piece.place))
    old, new = (_run(region.model(), pair.feeds) for region in (pair.old, pair.new))
    return max(compare(new[name], old[name]).centred_l2 for name in old), pair


def _run(model: onnx.ModelProto, feeds: Any) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "piece.onnx"
        onnx.save(model, path)
        return dict(Float32Model(path)(feeds))


def _values(path: Path, inputs: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Tensors of a model in float32, as it is written."""
    model = onnx.load(path, load_external_data=False)
    given = {output.name for output in model.graph.output} | set(inputs)
    made = {name for node in model.graph.node for name in node.output}
    wanted = [name for name in dict.fromkeys(names) if name in made and name not in given]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    beside = path.with_name(f".{path.name}.pieces")  # where its weights are
    try:
        beside.write_bytes(model.SerializeToString())
        values = Float32Model(beside)(inputs)
    finally:
        beside.unlink(missing_ok=True)
    return {**{name: np.asarray(value) for name, value in inputs.items()}, **values}
