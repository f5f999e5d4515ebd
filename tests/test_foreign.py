"""Passes from elsewhere: found, named, and refused in one line; nothing else differs from ours."""

import hashlib
import inspect
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compiler import foreign
from compiler.building import run_pass
from compiler.catalogue import entries, entry
from compiler.cli import app
from compiler.errors import UserError
from compiler.pipeline import parse_pipeline, pass_class, pipeline_text
from compiler.sweep.grid import Variant
from compiler.sweep.state import fingerprint

HEAD = '''"""A pass of a test.

Contract: exact.
"""
from dataclasses import dataclass
from typing import Literal
from compiler.rewrite import Builder, GraphPass, LocalPass, Pass

'''
BODY = """
    contract = "exact"
    def match(self, graph): return []
    def guard(self, graph, match): return None
    def rewrite(self, graph, match): raise NotImplementedError
"""
MINE = f"""@dataclass(frozen=True)
class Mine(LocalPass):
    factor: float = 1.5
    name_of: str = ""
    how: Literal["up", "down"] = "up"
{BODY}"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_pass.py").write_text(HEAD + MINE)
    return tmp_path


def refused(text: str) -> str:
    with pytest.raises(UserError) as error:
        parse_pipeline(text)
    (line,) = str(error.value).splitlines()
    return line


# -- refusals -------------------------------------------------------------------------------------

FAULTS = {
    "a syntax error": ("x = 1\ny = = 2\n", "SyntaxError: invalid syntax ({path}:2)"),
    "an import that fails": ("\nimport nonesuch", "No module named 'nonesuch' ({path}:2)"),
    "an error in a function": (
        "def f():\n    return 1 / 0\nf()",
        "./a_pass.py can't be imported: ZeroDivisionError: division by zero ({path}:2)",
    ),
    "an error of two lines": ("raise ValueError('a\\nb')", "ValueError: a b ({path}:1)"),
    "an exit": ("import sys\nsys.exit(3)", "SystemExit: 3 ({path}:2)"),
    "no pass": (HEAD, "./a_pass.py defines no passes: it must define one class derived from"),
    "only imported passes": (
        "from passes.fold_norm import FoldNorm",
        "./a_pass.py defines no passes",
    ),
    "two passes": (
        HEAD + MINE + MINE.replace("Mine", "Yours"),
        "./a_pass.py defines 2 passes (Mine and Yours): it must define one",
    ),
    "a part that is missing": (
        HEAD + MINE.replace("guard", "gaurd"),
        "./a_pass.py: Mine has no guard",
    ),
    "nothing but a Pass": (
        HEAD + MINE.replace("LocalPass", "Pass"),
        "Mine derives from Pass alone: take LocalPass, DeclaredPass or GraphPass",
    ),
    "no dataclass": (HEAD + f"class Mine(LocalPass):{BODY}", "Mine is no frozen dataclass: write"),
    "a dataclass that is not frozen": (
        HEAD + MINE.replace("(frozen=True)", ""),
        "Mine is no frozen dataclass: write @dataclass(frozen=True) above it",
    ),
    "an option of another type": (
        HEAD + MINE.replace("factor: float = 1.5", "axes: list = None"),
        "Mine has the option 'axes', which must be an int, float, str or Literal",
    ),
    "an option of no type": (
        HEAD + MINE.replace("factor: float", "factor: 'Nonesuch'"),
        "Mine has an option of unknown type: name 'Nonesuch' is not defined",
    ),
    "a contract without a proof": (
        HEAD + MINE.replace('= "exact"', '= "rough"'),
        "contract 'rough' must be one of exact, algebraic, declared",
    ),
    "an option's value that it refuses": (
        HEAD + MINE + "    def __post_init__(self): raise ValueError('factor is odd')",
        "./a_pass.py: factor is odd",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_file(fault, here):
    code, words = FAULTS[fault]
    path = here / "a_pass.py"
    path.write_text(code)
    before = {name for name in sys.modules if name.startswith("file_")}
    assert words.format(path=path) in refused("./a_pass.py")
    if "can't be imported" in refused("./a_pass.py"):
        assert {name for name in sys.modules if name.startswith("file_")} == before


def test_no_such_file(here):
    (here / "folder").mkdir()
    for text in ("./nonesuch.py", "folder/", "./my_pass", "nonesuch.py"):
        line = refused(text)
        assert f"no file {text} (a pass's file ends in .py; paths start at {here})" in line


def test_names_that_are_taken_or_no_names(here):
    for name in ("split_heads", "my-pass"):
        (here / f"{name}.py").write_text(HEAD + MINE)
    line = refused("./split_heads.py")
    assert "./split_heads.py has the name of this project's split_heads: rename the file" in line
    assert "a pass is named like its file, and 'my-pass' is no name" in refused("./my-pass.py")


def test_two_files_of_one_name(here):
    (here / "more").mkdir()
    (here / "more" / "my_pass.py").write_text(HEAD + MINE)
    assert "two passes are called 'my_pass'" in refused("./my_pass.py,more/my_pass.py")


def test_options_are_checked_as_ours_are(here):
    line = refused("./my_pass.py:facto=2:how=left,split_head,./my_pass.py:factor=much")
    for words in ("no option 'facto', did you mean 'factor'?", "how=left: must be one of up, down",
                  "'split_heads'?", "factor=much: must be a number"):  # fmt: skip
        assert words in line


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "./my_pass.py",
        "./my_pass.py:factor=0.25:how=down,split_heads:group=2",
        "./my_pass.py,fold_norm,./my_pass.py",
    ],
)
def test_text_round_trips(text, here):
    passes = parse_pipeline(text)
    assert pipeline_text(passes) == text
    assert parse_pipeline(pipeline_text(passes)) == passes


def test_a_path_means_the_same_file_from_anywhere(here, monkeypatch, tmp_path_factory):
    (kind,) = {pass_class(text) for text in ("./my_pass.py", "my_pass.py", f"{here}/my_pass.py")}
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    text = pipeline_text([kind()])
    assert text == f"{here}/my_pass.py"
    assert parse_pipeline(text) == [kind()]


def test_the_class_is_named_after_its_file_and_found_in_it(here):
    kind = pass_class("./my_pass.py")
    assert (kind().name, Path(inspect.getfile(kind))) == ("my_pass", here / "my_pass.py")


def test_a_changed_file_is_another_pass(here):
    before = pass_class("./my_pass.py")
    (here / "my_pass.py").write_text(HEAD + MINE.replace("1.5", "2.5"))
    after = pass_class("./my_pass.py")
    assert (before().factor, after().factor) == (1.5, 2.5)
    assert foreign.origin_of(before).sha256 != foreign.origin_of(after).sha256


def test_a_sweep_builds_anew_after_a_change(here):
    variant = Variant("a", model="dav2-small", passes="./my_pass.py")
    before = fingerprint(variant)
    assert fingerprint(variant) == before
    (here / "my_pass.py").write_text(HEAD + MINE + "# changed")
    assert fingerprint(variant) != before


def test_only_foreign_passes_are_recorded(here):
    assert foreign.origins(parse_pipeline("split_heads,fold_norm")) == {}
    path = here / "my_pass.py"
    assert foreign.origins(parse_pipeline("./my_pass.py,split_heads")) == {
        "foreign_passes": {
            "my_pass": {
                "path": str(path),
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "package": "",
            }
        }
    }


def test_the_catalogue_shows_a_file(here):
    shown = entry("./my_pass.py")
    assert shown["does"] == "A pass of a test. (from ./my_pass.py)"
    assert (shown["contract"], shown["options"]["factor"]) == (
        "exact.", {"default": 1.5, "values": "float"}
    )  # fmt: skip
    done = CliRunner().invoke(app, ["passes", "./my_pass.py"])
    assert done.exit_code == 0
    assert "A pass of a test." in done.stdout


# -- packages -------------------------------------------------------------------------------------


def install(folder: Path, name: str, points: str, package: str = "acme-passes") -> None:
    """What an installer leaves of a package that is one module."""
    info = folder / f"{package.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{foreign.GROUP}]\n{points}\n")
    (folder / f"{name}.py").write_text(HEAD + MINE)


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("acme_up", None)


@pytest.mark.parametrize("target", ["acme_up", "acme_up:Mine"])
def test_a_package_offers_a_pass(site, target):
    install(site, "acme_up", f"acme_up = {target}")
    (pass_,) = passes = parse_pipeline("acme_up:how=down")
    assert (pass_.name, pipeline_text(passes)) == ("acme_up", "acme_up:how=down")
    origin = foreign.origins(passes)["foreign_passes"]["acme_up"]
    assert (origin["package"], origin["path"]) == ("acme-passes 1.2", str(site / "acme_up.py"))
    shown = {e["name"]: e["does"] for e in entries()}
    assert shown["acme_up"] == "A pass of a test. (from acme-passes 1.2)"
    assert "(from " not in shown["split_heads"]
    assert "did you mean 'acme_up'" in refused("acme_upp")


def test_a_package_that_is_broken_stays_in_the_list(site):
    install(site, "acme_up", "acme_up = acme_up")
    (site / "acme_up.py").write_text("import nonesuch")
    shown = {e["name"]: e["does"] for e in entries()}
    words = "acme_up of acme-passes 1.2 (acme_up) can't be imported: ModuleNotFoundError: No module"
    assert shown["acme_up"].startswith(f"unusable: {words}")
    assert f"({site / 'acme_up.py'}:1)" in refused("acme_up")
    assert parse_pipeline("split_heads")


def test_an_entry_point_has_its_modules_name(site):
    install(site, "acme_up", "up = acme_up")
    assert "so the entry point must be called 'acme_up'" in refused("up")


def test_an_entry_point_to_nothing(site):
    install(site, "acme_up", "acme_up = acme_up:Yours")
    assert "has no attribute 'Yours'" in refused("acme_up")


def test_a_package_can_not_stand_in_for_ours(site):
    install(site, "split_heads", "split_heads = split_heads")
    words = "this project and acme-passes 1.2 have a pass 'split_heads' each: uninstall what"
    assert words in refused("split_heads")


def test_two_packages_with_one_name(site):
    install(site, "acme_up", "acme_up = acme_up")
    install(site, "acme_up", "acme_up = acme_up", "bcme-passes")
    assert "acme-passes 1.2 and bcme-passes 1.2 have a pass 'acme_up' each" in refused("acme_up")


def test_the_command_lists_them(site):
    install(site, "acme_up", "acme_up = acme_up")
    done = CliRunner().invoke(app, ["passes", "--json"])
    listed = {e["name"]: e for e in json.loads(done.stdout)}
    assert listed["acme_up"]["does"].endswith("(from acme-passes 1.2)")
    assert "split_heads" in listed


# -- what goes wrong while it runs ----------------------------------------------------------------

LOCAL = """@dataclass(frozen=True)
class Mine(LocalPass):
    contract = "exact"
    def match(self, graph): {match}
    def guard(self, graph, match): {guard}
    def rewrite(self, graph, match): {rewrite}
"""
WHOLE = """@dataclass(frozen=True)
class Mine(GraphPass):
    def simplified(self, graph): {simplified}
"""
PLACE = "return [type('Place', (), {'place': 'y'})()]"
FAILING = {
    "match": (LOCAL.format(match="return graph.nope", guard="return None", rewrite="return None"),
              "AttributeError: 'Graph' object has no attribute 'nope' ({path}:12)"),
    "guard": (LOCAL.format(match=PLACE, guard="return 1 / 0", rewrite="return None"),
              "ZeroDivisionError: division by zero ({path}:13)"),
    "rewrite": (LOCAL.format(match=PLACE, guard="return None", rewrite="raise KeyError('b')"),
                "KeyError: 'b' ({path}:14)"),
    "simplified": (WHOLE.format(simplified="raise SystemExit(3)"), "SystemExit: 3 ({path}:11)"),
    "no graph": (WHOLE.format(simplified="return None"),
                 "TypeError: simplified() returned NoneType, not a Graph ({path}:1)"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILING)
def test_what_a_pass_raises_is_one_line_with_its_place(here, graph_of, case):
    code, message = FAILING[case]
    (here / "my_pass.py").write_text(HEAD + code)
    (pass_,) = parse_pipeline("./my_pass.py")
    with pytest.raises(UserError) as error:
        run_pass(graph_of("g (float[3] x) => (float[3] y) { y = Relu(x) }"), pass_)
    expected = message.format(path=here / "my_pass.py")
    assert str(error.value) == f"pass 'my_pass' (./my_pass.py) fails: {expected}"


def test_what_a_pass_of_ours_raises_is_our_bug(graph_of, monkeypatch):
    def broken(self, graph):
        raise KeyError("b")

    (pass_,) = parse_pipeline("split_heads")
    monkeypatch.setattr(type(pass_), "match", broken)
    with pytest.raises(KeyError):
        run_pass(graph_of("g (float[3] x) => (float[3] y) { y = Relu(x) }"), pass_)
