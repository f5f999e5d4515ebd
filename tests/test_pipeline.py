"""Pipelines as text: every fault is named at once, and the text can be read back."""

from dataclasses import fields

import pytest

from compiler.errors import UserError
from compiler.pipeline import nearest, parse_pipeline, pass_class, pass_names, pipeline_text
from compiler.rewrite import Pass


def refused(text: str) -> str:
    with pytest.raises(UserError) as error:
        parse_pipeline(text)
    (line,) = str(error.value).splitlines()
    return line


FAULTS = {
    "unknown pass": ("split_head", "no pass 'split_head', did you mean 'split_heads'?"),
    "unlike any pass": ("xyzzy", "no pass 'xyzzy' (known: broadcast_as_matmul, canonicalize, "),
    "unknown option": ("split_heads:gruop=2", "no option 'gruop', did you mean 'group'?"),
    "no options": ("canonicalize:fast=1", "no option 'fast' (known: none)"),
    "not a choice": ("split_heads:merge=mean", "merge=mean: must be one of concat, sum"),
    "not a number": ("split_heads:group=two", "group=two: must be a whole number above 0"),
    "zero": ("split_heads:group=0", "group=0: must be a whole number above 0"),
    "negative": ("split_heads:group=-1", "group=-1: must be a whole number above 0"),
    "without a value": ("split_heads:group", "group=: must be a whole number above 0"),
    "missing option": ("insert_resize", "insert_resize: needs height=… and width=…"),
    "missing one option": ("insert_resize:width=640", "insert_resize: needs height=…"),
    "a value that is not a choice": ("for_target:qnn", "target=qnn: must be one of aihub"),
    "a name without its value": ("fold_norm:into", "into=: must be one of"),
    "two options, so no name to spare": ("insert_resize:480", "no option '480'"),
    "a module that is no pass": ("__init__", "no pass '__init__'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault):
    text, words = FAULTS[fault]
    line = refused(text)
    assert words in line
    assert line.startswith(f"--passes {text!r}: ")


def test_all_faults_are_named_at_once():
    line = refused("split_head,split_heads:gruop=2:merge=mean,fold_norm,flip_averag")
    for words in ("'split_heads'?", "'group'?", "merge=mean", "'flip_average'?"):
        assert words in line


@pytest.mark.parametrize(
    "text",
    [
        "",
        "split_heads",
        "split_heads:merge=sum:group=2",
        "insert_resize:height=480:width=640,fold_norm,split_heads,flip_average",
        "canonicalize,split_heads,canonicalize",
    ],
)
def test_text_round_trips(text):
    passes = parse_pipeline(text)
    assert pipeline_text(passes) == text
    assert parse_pipeline(pipeline_text(passes)) == passes


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("for_target:aihub", "for_target:target=aihub"),
        ("fold_norm:conv", "fold_norm:into=conv"),
        ("flip_average:batch:input=x", "flip_average:mode=batch:input=x"),
        ("split_heads:sum:group=2", "split_heads:merge=sum:group=2"),
    ],
)
def test_a_single_option_and_a_choice_need_no_name(short, long):
    assert parse_pipeline(short) == parse_pipeline(long)


def test_spaces_and_empty_parts_do_not_matter():
    assert pipeline_text(parse_pipeline(" split_heads , fold_norm,")) == "split_heads,fold_norm"


def test_defaults_are_not_in_the_text():
    assert pipeline_text(parse_pipeline("split_heads:merge=concat:group=1")) == "split_heads"


@pytest.mark.parametrize("name", pass_names())
def test_every_pass(name):
    """A file is a pass: one class, frozen, with a contract, named after the file."""
    kind = pass_class(name)
    assert issubclass(kind, Pass)
    assert kind.__dataclass_params__.frozen
    needed = {
        option.name: 14 for option in fields(kind) if option.default is option.default_factory
    }
    pass_ = kind(**needed)
    assert pass_.name == name
    assert pass_.contract in ("exact", "algebraic", "declared", "approximate")


def test_the_nearest_name():
    assert nearest("grup", ["group", "merge"]) == ", did you mean 'group'?"
    assert nearest("zzz", ["group", "merge"]) == " (known: group, merge)"
