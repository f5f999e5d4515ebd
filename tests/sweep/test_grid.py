"""Descriptions of sweeps: the product of axes, and one line for each fault of a file."""

import pytest

from compiler.errors import UserError
from compiler.sweep.grid import read_grid

AXES = """
title = "Two by two"
model = "net.onnx"
passes = "canonicalize"
passes_last = "range_output"
[[axes.core]]
label = "plain"
[[axes.core]]
label = "heads"
passes = "split_heads"
passes_last = "fold_norm"
[[axes.mirror]]
[[axes.mirror]]
label = "flip"
passes = "flip_average"
[published]
source = "a paper"
[published.ms]
plain = 3
heads-flip = 1.5
"""


def write(folder, text, name="grid.toml"):
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_a_variant_takes_one_choice_of_each_axis(tmp_path):
    grid = read_grid(str(write(tmp_path, AXES)))
    assert (grid.title, grid.published, grid.path.stem) == ("Two by two", "a paper", "grid")
    assert {variant.label: variant.passes for variant in grid.variants} == {
        "plain": "canonicalize,range_output",
        "plain-flip": "canonicalize,flip_average,range_output",
        "heads": "canonicalize,split_heads,range_output,fold_norm",
        "heads-flip": "canonicalize,split_heads,flip_average,range_output,fold_norm",
    }
    assert [v.label for v in grid.variants] == ["plain", "plain-flip", "heads", "heads-flip"]


def test_a_published_figure_belongs_to_one_row(tmp_path):
    figures = {v.label: v.published_ms for v in read_grid(str(write(tmp_path, AXES))).variants}
    assert figures == {"plain": 3.0, "plain-flip": None, "heads": None, "heads-flip": 1.5}


def test_a_choice_goes_over_the_file(tmp_path):
    text = """
    model = "dav2-small"
    size = 518
    weights = "twin:1"
    exporter = "torchscript"
    canonicalize = false
    [[axes.size]]
    label = "whole"
    [[axes.size]]
    label = "low"
    size = "392x518"
    opset = 17
    weights = "vits.pth"
    """
    whole, low = read_grid(str(write(tmp_path, text))).variants
    assert (whole.size, whole.weights, whole.opset) == ("518", "twin:1", None)
    assert (low.size, low.weights, low.opset) == ("392x518", str(tmp_path / "vits.pth"), 17)
    assert {(v.model, v.exporter, v.canonicalize) for v in (whole, low)} == {
        ("dav2-small", "torchscript", False)
    }


def test_files_are_looked_for_beside_the_description(tmp_path, monkeypatch):
    (tmp_path / "grids").mkdir()
    write(tmp_path / "grids", AXES.replace("net.onnx", "../net.onnx"))
    monkeypatch.chdir(tmp_path)
    models = {variant.model for variant in read_grid("grids/grid.toml").variants}
    assert models == {"grids/../net.onnx"}


AXIS = '[[axes.a]]\nlabel = "x"\n'
MODEL = 'model = "net.onnx"\n'
FAULTS = {
    "no TOML": ("\nmodel = net", "not TOML (Invalid value (at line 2, column 9))"),
    "no axes": (MODEL, "add choices, each as [[axes.NAME]]"),
    "axis is no list": (MODEL + "[axes]\na = 1", "axes.a: must be choices, each as [[axes.a]]"),
    "no model": (AXIS, "variant 'x' has no model; give model ="),
    "unknown key": (MODEL + "sise = 350\n" + AXIS, "no key 'sise', did you mean 'size'?"),
    "unknown key of a choice": (
        MODEL + AXIS + "pases = ''", "axes.a, choice 1: no key 'pases', did you mean 'passes'?"
    ),
    "label of the file": (MODEL + "label = 'x'\n" + AXIS, "no key 'label'"),
    "size is a fraction": (MODEL + AXIS + "size = 3.5", "size = 3.5: must be a whole number or"),
    "size is true": (MODEL + AXIS + "size = true", "size = True: must be a whole number or text"),
    "opset is text": (MODEL + AXIS + "opset = '17'", "opset = '17': must be a whole number"),
    "unknown exporter": (MODEL + AXIS + "exporter = 'tf'", "must be one of dynamo, torchscript"),
    "unknown pass": (MODEL + AXIS + "passes = 'split_head'", "did you mean 'split_heads'?"),
    "no label": (MODEL + "[[axes.a]]\n[[axes.b]]", "label '' of axes.a × axes.b: give each"),
    "label is a path": (MODEL + "[[axes.a]]\nlabel = '../x'", "label '../x' of axes.a: give each"),
    "label with a dot": (MODEL + "[[axes.a]]\nlabel = 'x.failure'", "give each variant one"),
    "two of one label": (MODEL + AXIS + AXIS, "2 variants, of which several are 'x'"),
    "set by two axes": (
        MODEL + AXIS + "size = 350\n[[axes.b]]\nsize = 518", "axes.a and axes.b both set size"
    ),
    "published for none": (
        MODEL + AXIS + "[published.ms]\ny = 1.0", "published.ms: no variant 'y' (known: x)"
    ),
    "published below 0": (MODEL + AXIS + "[published.ms]\nx = -1", "must be milliseconds above 0"),
    "published nan": (MODEL + AXIS + "[published.ms]\nx = nan", "must be milliseconds above 0"),
    "published is text": (MODEL + AXIS + "[published.ms]\nx = '1'", "must be milliseconds above"),
    "unknown key of published": (MODEL + AXIS + "[published]\nmss = 1", "published: no key 'mss'"),
    "no UTF-8": (b"\xff\xfe", "not TOML ('utf-8' codec can't decode"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_one_line_with_its_name_and_key(tmp_path, fault):
    text, expected = FAULTS[fault]
    path = tmp_path / "grid.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_grid(str(path))
    assert str(error.value).startswith(f"{path}: ")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"can't read .*none\.toml: No such file"):
        read_grid(str(tmp_path / "none.toml"))


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(UserError, match=r"no sweep 'lpcv', did you mean 'lpcv2025'\?; or give"):
        read_grid("lpcv")


def test_the_competition_is_its_five_entries_each_with_and_without_flip():
    grid = read_grid("lpcv2025")
    resize, flip = "insert_resize:height=480:width=640", "flip_average"
    assert [(v.label, v.size, v.passes, v.published_ms) for v in grid.variants] == [
        ("518-sample", "518", f"{resize},range_output", 241.8),
        ("518-sample-flip", "518", f"{resize},{flip},range_output", None),
        ("518-heads-bn", "518", f"{resize},fold_norm,split_heads", None),
        ("518-heads-bn-flip", "518", f"{resize},fold_norm,split_heads,{flip}", 88.9),
        ("350-batched-bn", "350", f"{resize},fold_norm", None),
        ("350-batched-bn-flip", "350", f"{resize},fold_norm,{flip}", 56.5),
        ("350-heads", "350", f"{resize},split_heads", None),
        ("350-heads-flip", "350", f"{resize},split_heads,{flip}", 29.4),
        ("350-heads-bn", "350", f"{resize},fold_norm,split_heads", None),
        ("350-heads-bn-flip", "350", f"{resize},fold_norm,split_heads,{flip}", 28.6),
    ]
    models = [variant.model for variant in grid.variants]
    assert models == ["dav2-small"] * 2 + ["dav2-small-metric-indoor"] * 8
