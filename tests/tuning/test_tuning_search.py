"""The search's logic, on latencies that are given by a function."""

import pytest

from compiler.tuning.figures import Figures, Measurement, pareto
from compiler.tuning.search import search
from compiler.tuning.space import SLOTS, Slot, Space, name_of

INTEGERS = Slot(("quantize:max_loss=0.02",))


def figures(text, ms, *, loss=None, error="", places=("here",)):
    measured = () if error else tuple(Measurement(place, ms, 10.0) for place in places)
    return Figures(text, text, measured, loss=loss, error=error)


def measured_by(latency, seen=None):
    """What `search` calls: the figures of a candidate by a function of its passes' texts."""

    def measure(candidates):
        found = []
        for candidate in candidates:
            if seen is not None:
                seen.append(candidate)
            ms = latency(candidate)
            text = ",".join(candidate)
            found.append(ms if isinstance(ms, Figures) else figures(text, ms))
        return found

    return measure


def never():
    return False


def space_of(*choices, base=()):
    return Space(tuple(base), tuple(Slot(choice) for choice in choices))


def test_it_finds_the_best_choice_of_every_slot():
    cost = {"a:2": -3, "b": -1, "a": -1, "c": 2}
    space = space_of(("a", "a:2", "a:3"), ("b",), ("c",))
    best = search(space, measured_by(lambda c: 10 + sum(cost.get(t, 0) for t in c)), is_over=never)
    assert best.pipeline == "a:2,b"


def test_two_passes_that_pay_only_together_are_found_from_the_recommended_ones(monkeypatch):
    slots = (Slot(("a",)), Slot(("b",)))
    monkeypatch.setattr("compiler.tuning.space.SLOTS", slots)
    together = measured_by(lambda c: 8.0 if set(c) == {"a", "b"} else 10.0 + len(c))
    assert search(Space((), slots), together, is_over=never).pipeline == "a,b"


def test_a_pass_that_earns_nothing_is_left_out(monkeypatch):
    slots = (Slot(("a",)), Slot(("b",)))
    monkeypatch.setattr("compiler.tuning.space.SLOTS", slots)
    free = measured_by(lambda c: 9.0 if "a" in c else 10.0)
    assert search(Space((), slots), free, is_over=never).pipeline == "a"


def test_a_failing_candidate_is_never_the_best():
    def latency(candidate):
        return figures("a", 1, error="verification failed") if candidate else 10.0

    assert search(space_of(("a",)), measured_by(latency), is_over=never).pipeline == ""


def test_without_a_measurement_there_is_no_best():
    broken = measured_by(lambda c: figures(",".join(c), 1, error="no NPU"))
    assert search(space_of(("a",)), broken, is_over=never) is None


@pytest.mark.parametrize(("max_loss", "found"), [(0.02, "quantize:max_loss=0.02"), (0.01, "")])
def test_a_loss_is_taken_up_to_the_bound(max_loss, found):
    def latency(candidate):
        return figures(",".join(candidate), 5, loss=0.015) if candidate else 10.0

    space = Space((), (INTEGERS,))
    best = search(space, measured_by(latency), is_over=never, max_loss=max_loss)
    assert best.pipeline == found


def test_a_loss_that_the_user_asked_for_is_no_obstacle():
    """`--passes quantize` without a bound: the pass has its own."""
    space = space_of(("a",), base=("quantize",))
    lossy = measured_by(lambda c: figures(",".join(c), 10 - len(c), loss=0.015))
    assert "a" in search(space, lossy, is_over=never).pipeline.split(",")


@pytest.mark.parametrize(
    ("base", "max_loss", "found"),
    [((), None, False), (("quantize",), None, True), ((), 0.02, True)],
)
def test_gemms_are_tried_with_whole_numbers(base, max_loss, found):
    space = Space.around(base, max_loss)
    assert ("linear_as_gemm" in [slot.name for slot in space.slots]) is found
    recommended = [name_of(text) for text in space.recommended()]
    assert ("linear_as_gemm" in recommended) is ("quantize" in base)
    if base:
        assert recommended[-2:] == ["linear_as_gemm", "quantize"]


def test_the_order_is_searched_once_the_choices_are_settled(monkeypatch):
    slots = (Slot(("a",)), Slot(("b",)))
    monkeypatch.setattr("compiler.tuning.space.SLOTS", slots)
    ordered = measured_by(lambda c: {("a", "b"): 9.0, ("b", "a"): 8.0}.get(c, 10.0))
    assert search(Space((), slots), ordered, is_over=never).pipeline == "b,a"


def test_nothing_is_begun_when_the_time_is_spent():
    seen = []
    search(space_of(("a",), ("b",)), measured_by(lambda c: 10.0, seen), is_over=lambda: True)
    assert seen == [(), ()]


def test_what_the_user_decided_is_kept_and_in_the_users_order():
    base = ("insert_resize:height=4:width=4", "split_heads:group=2", "flip_average")
    space = Space.around(base)
    assert "split_heads" not in [slot.name for slot in space.slots]
    names = [name_of(text) for text in space.recommended()]
    assert [name for name in names if name in map(name_of, base)] == list(map(name_of, base))
    for candidate in space.reordered(space.recommended()):
        kept = [text for text in candidate if text in base]
        assert kept == list(base)


def test_what_is_added_to_scores_joins_them_before_heads_are_split():
    names = [name_of(text) for text in Space.around(()).recommended()]
    ordered = ["einsum_as_matmul", "broadcast_as_matmul", "join_products", "split_heads"]
    assert [name for name in names if name in ordered] == ordered


def test_a_pass_stands_at_its_place_in_the_order():
    space = Space.around(("insert_resize:height=4:width=4", "flip_average", "./mine.py"))
    names = [name_of(text) for text in space.recommended()]
    assert names.index("fold_norm") > names.index("./mine.py")
    space = Space.around(("insert_resize:height=4:width=4", "flip_average"))
    names = [name_of(text) for text in space.recommended()]
    assert names.index("fold_norm") < names.index("insert_resize") < names.index("flip_average")
    assert names.index("split_heads") < names.index("insert_resize")
    assert names.index("flip_average") < names.index("fold_flip") < names.index("pad_tokens")


def test_every_recommended_pass_exists_and_is_exact():
    from compiler.pipeline import parse_pipeline

    for slot in SLOTS:
        for pass_ in parse_pipeline(",".join(slot.choices)):
            assert pass_.contract in ("exact", "algebraic"), pass_.text()
    approximate = [slot for slot in Space.around((), 0.02).slots if slot.name == "quantize"]
    choices = parse_pipeline(",".join(approximate[0].choices))
    assert {pass_.max_loss for pass_ in choices} == {0.02}


def test_the_score_is_the_geometric_mean_over_places():
    both = Figures("a", "a", (Measurement("one", 5, 10), Measurement("two", 20, 10)))
    assert both.score == pytest.approx(1.0)


def test_the_front_has_what_no_other_beats_in_both():
    fast = figures("fast", 2, loss=0.03)
    middle = figures("middle", 4, loss=0.01)
    beaten = figures("beaten", 5, loss=0.02)
    exact, slower = figures("exact", 8), figures("slower", 9)
    failed = figures("failed", 1, error="no")
    found = pareto([slower, beaten, exact, failed, fast, middle])
    assert [one.pipeline for one in found] == ["fast", "middle", "exact"]


def test_figures_survive_json():
    import json

    one = figures("a", 2, loss=0.03, places=("x", "y"))
    assert Figures.of(json.loads(json.dumps(one.record()))) == one
