"""Whether a pipeline did all that it should with the attentions of a network."""

import re
from collections.abc import Iterator

import onnx
from fuzzing.attention import Made, Network
from fuzzing.language import NOT_MERGED, SLICED_MASKS
from fuzzing.net import is_dynamic
from fuzzing.oracle import Outcome, built
from hypothesis import strategies as st

from compiler.building import StageReport

HEADS_APART = ("d3h", "dh3", "3dh", "h3d", "h·3d Split")
TILES = (2, 1, 3)
HEADS = ("split_heads", "split_heads", "split_heads:group=2", "split_heads:merge=sum")


@st.composite
def pipelines(draw) -> str:
    """split_heads, split_queries, or both, in either order, behind canonicalize or not."""
    heads = draw(st.sampled_from(HEADS))
    queries = f"split_queries:tile={draw(st.sampled_from(TILES))}"
    orders = ([heads], [queries], [heads, queries], [queries, heads])
    passes = draw(st.sampled_from(orders))
    return ",".join(["canonicalize", *passes] if draw(st.booleans()) else passes)


def check_network(network: Network, pipeline: str) -> Outcome:
    """Built, proven, and every attention split or refused for a reason that is in it."""
    outcome = built(network.model, pipeline)
    passes = [name for name in outcome.names if name != "canonicalize"]
    for stage in outcome.stages:
        for proof in (stage.report.float64, stage.report.float32):
            is_proven = proof is None or proof["status"] == "pass"
            assert is_proven or is_explained(proof["detail"], network), (stage.report.name, proof)
    if "split_heads" in passes:
        check_heads(network, outcome, is_first=passes[0] == "split_heads")
    if passes[0] == "split_queries":
        check_queries(network, outcome)
    return outcome


def is_explained(detail: str, network: Network) -> bool:
    """Whether the network is one of which there is no more to say."""
    if "hidden by a mask" in detail:  # the first of causal queries sees one key
        return any(one.form.mask != "none" or one.is_constant for one in network.made)
    # An Exp without the maximum taken off overflows.
    overflows = any(one.form.softmax == "apart" for one in network.made)
    if overflows and re.search("measure its noise by|no value is finite", detail):
        return True
    return "is constant" in detail and any(one.is_constant for one in network.made)


# -- heads -----------------------------------------------------------------------------------------


def check_heads(network: Network, outcome: Outcome, *, is_first: bool) -> None:
    """What split_heads split, refused, and left behind."""
    report = outcome.report("split_heads")
    allowed = [set(why_not_split(one, network, report.name)) for one in network.made]
    check_reasons(report, allowed)
    slices = sum(slices_allowed(one, report.name) for one in network.made)
    assert not is_first or report.slices_left <= slices, f"{report.slices_left} slices left"


def why_not_split(one: Made, network: Network, pass_text: str) -> Iterator[str]:
    """The reasons for which an attention may be left alone; none if it has to be split."""
    form, sizes = one.form, one.sizes
    has_one_sequence = sizes.batch == 1 and not is_dynamic(sizes.batch)
    if one.heads == 1:
        yield from ("nothing to split", "never merged with the features", "dynamic")
    if form.merge in NOT_MERGED or one.path & network.tapped:
        yield from ("never merged with the features", "also an output", "dynamic")
    if form.layout == "folded" and form.softmax != "Attention" and not has_one_sequence:
        yield from ("never merged with the features", "dynamic")
    if form.repeat == "five axes" and one.probabilities & network.tapped:
        yield "has no axis of heads"
    if sizes.keys == 1:  # sums of one and products with one key are folded to less
        yield from ("nothing to split", "dynamic")
    if sizes.width == 1:  # an axis of one feature may be gone before heads are merged with it
        yield from ("never merged with the features", "dynamic")
    if network.is_dynamic:  # what old opsets compute of shapes, shape inference does not know
        yield from ("has no shape", "of a tensor without shape")
    if "group=2" in pass_text:
        yield from ("already is one group", "can't be divided", "share keys")
    if "merge=sum" in pass_text:
        yield "merge=sum:"


def slices_allowed(one: Made, pass_text: str) -> float:
    """Explicit slices: none of what constant weights project, any of inputs."""
    form = one.form
    is_input = form.mask in SLICED_MASKS or (
        form.position == "per head" and is_dynamic(one.sizes.tokens)
    )
    # Halves of a head behind a norm are slices in the source; those of two heads are no range,
    # and neither are two heads that lie apart.
    has_halves = form.rotary != "none" and (form.norm != "none" or "group" in pass_text)
    has_halves |= "group" in pass_text and (form.packing in HEADS_APART or form.merge == "d·h")
    is_batch = one.heads == one.sizes.width == 1  # which looks like heads of one feature
    # A group over the seam of two copies of the keys is no range.
    has_few = one.sizes.few < one.sizes.heads
    has_halves |= "group" in pass_text and form.repeat in ("Tile", "Concat") and has_few
    # What is repeated, or merged with a batch, to a size without a name is so before it is sliced.
    is_unknown = has_few and one.is_dynamic
    is_unknown |= form.position == "decomposed" and is_dynamic(one.sizes.batch)
    free = is_input or form.cache or has_halves or is_batch or is_unknown
    return float("inf") if free else 0


# -- queries ---------------------------------------------------------------------------------------


def check_queries(network: Network, outcome: Outcome) -> None:
    """What split_queries split and refused, of attentions that no other pass has touched."""
    report = outcome.report("split_queries")
    tile = int(report.name.partition("tile=")[2])
    check_reasons(report, [set(why_not_tiled(one, network, tile)) for one in network.made])


def why_not_tiled(one: Made, network: Network, tile: int) -> Iterator[str]:
    """The reasons for which an attention may keep its queries together."""
    if network.is_dynamic:
        yield from ("dynamic, so that no tile has a size", "has no shape", "without shape")
    if one.tokens <= tile:
        yield "already are one tile"
    if one.probabilities & network.tapped:
        yield "is used elsewhere as well"
    if one.form.softmax == "Attention":
        yield "what a query sees depends on its number"
    if one.sizes.keys == 1:
        yield "nothing to split"


def check_reasons(report: StageReport, allowed: list[set[str]]) -> None:
    """Each attention is split or has a reason; and each reason is one that was expected."""
    reasons = [refusal["reason"] for refusal in report.refusals]
    known = "|".join(sorted({re.escape(reason) for one in allowed for reason in one}))
    strange = [reason for reason in reasons if not known or not re.search(known, reason)]
    assert not strange, strange
    certain = sum(not one for one in allowed)
    assert report.rewrites >= certain, f"{report.rewrites} of {certain} split: {reasons}"
    counted = sum("nothing to split" not in one for one in allowed)
    assert report.rewrites + len(reasons) >= counted, f"{counted} attentions: {reasons}"


# -- real models -----------------------------------------------------------------------------------


def check_mutant(model: onnx.ModelProto, attentions: int, pipeline: str) -> None:
    """Of a real model that was mutated it is known how many attentions it has, not how."""
    outcome = built(model, pipeline)
    for stage in outcome.stages:
        for proof in (stage.report.float64, stage.report.float32):
            # The first query of a causal attention sees one key.
            is_proven = proof is None or proof["status"] == "pass"
            assert is_proven or "hidden by a mask" in proof["detail"], (stage.report.name, proof)
    if {"canonicalize", "split_heads"} <= {*outcome.names}:
        report = outcome.report("split_heads")
        reasons = [refusal["reason"] for refusal in report.refusals]
        assert report.rewrites + len(reasons) >= attentions, reasons
