"""Attentions in all words of their language, and mutated exports, through the splitting passes.

A few dozen, always the same, in the default run; thousands of new ones with

    pytest tests/test_fuzzing.py --hypothesis-profile=long

Whatever is in a model: no crash, no other function, no invalid model, nothing left for a second
run; and each attention of several heads is split, or refused for a reason that is in the model.
"""

import onnx
import pytest
from fuzzing.attention import Network, network, networks
from fuzzing.language import Form, Sizes
from fuzzing.mutations import mutated
from fuzzing.net import Net, Style
from fuzzing.oracle import check_same_function
from fuzzing.verdict import check_mutant, check_network, pipelines
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import passes.split_heads
from compiler.slicing import RULES
from models import zoo

IS_LONG = settings.get_current_profile_name() == "long"
FAMILIES = ("bert", "llama") if not IS_LONG else (
    "bert", "llama", "vit", "swin", "t5", "sam", "gpt2", "segformer", "beit", "whisper", "detr",
)  # fmt: skip


def budget(examples: int) -> settings:
    """So many examples, always the same; in the long profile as many as it says, all new."""
    calm = settings(suppress_health_check=list(HealthCheck))
    if IS_LONG:
        return calm
    # What fails is shrunk by hand in the long profile: shrinking takes minutes.
    return settings(calm, max_examples=examples, derandomize=True, phases=[Phase.generate])


@pytest.fixture(scope="session")
def exports(tmp_path_factory) -> dict[str, tuple[onnx.ModelProto, int]]:
    """Tiny real models and how many attentions of several heads each has."""
    folder = tmp_path_factory.mktemp("exports")
    return {
        family.name: (onnx.load(zoo.write(family, folder, "torchscript")), family.attentions)
        for family in zoo.FAMILIES
        if family.name in FAMILIES
    }


@budget(20)
@given(network=networks(), pipeline=pipelines())
def test_attentions_in_other_words(network: Network, pipeline: str):
    check_network(network, pipeline)


@budget(3)
@given(data=st.data())
def test_mutated_exports(exports, data):
    family = data.draw(st.sampled_from(FAMILIES))
    model, attentions = exports[family]
    model, _names = data.draw(mutated(model))
    check_mutant(model, attentions, data.draw(pipelines()))


# -- the oracles can say no ------------------------------------------------------------------------


def written(form: Form) -> Network:
    """Four heads, in a batch of one."""
    net = Net(Style(), 0)
    y, made = network(net, [(form, Sizes(), "a")], residual=True)
    net.output(y)
    return Network(net.model(), made, set(), is_dynamic=False)


def test_an_attention_that_is_not_found_is_missed(monkeypatch):
    check_network(written(Form()), "split_heads")
    monkeypatch.setattr(passes.split_heads, "heads_of", lambda _graph: iter(()))
    with pytest.raises(AssertionError, match="nothing to split"):
        check_network(written(Form()), "split_heads")


def test_slices_of_projections_are_seen(monkeypatch):
    check_network(written(Form(bias="behind")), "split_heads")
    monkeypatch.delitem(RULES, "Add")
    with pytest.raises(AssertionError, match="12 slices left"):
        check_network(written(Form(bias="behind")), "split_heads")


def test_another_function_is_seen():
    model, other = written(Form()).model, written(Form()).model
    check_same_function(model, other)
    weights = next(t for t in other.graph.initializer if list(t.dims) == [12, 12])
    values = 1.01 * onnx.numpy_helper.to_array(weights)
    weights.CopyFrom(onnx.numpy_helper.from_array(values.astype("float32"), weights.name))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_same_function(model, other)
