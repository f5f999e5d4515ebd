"""Imports point one way, and the command line starts without the heavy ones."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "onnx", "onnxruntime", "onnxsim", "onnx_graphsurgeon", "transformers"}
OURS = {"compiler", "models", "passes", "tools", "tests"}
# What a pass may know: the graph and how to rewrite it.
GRAPH_LAYER = {
    "compiler.attention",
    "compiler.batching",
    "compiler.dimensions",
    "compiler.exported",
    "compiler.folding",
    "compiler.graph",
    "compiler.heads",
    "compiler.interpolation",
    "compiler.mirroring",
    "compiler.network",
    "compiler.opsets",
    "compiler.quantize.approximating",
    "compiler.quantize.attending",
    "compiler.quantize.evidence",
    "compiler.quantize.halving",
    "compiler.quantize.indexed",
    "compiler.quantize.layers",
    "compiler.quantize.qdq",
    "compiler.quantize.search",
    "compiler.randomness",
    "compiler.region",
    "compiler.reshapes",
    "compiler.rewrite",
    "compiler.rows",
    "compiler.shapes",
    "compiler.scaling",
    "compiler.slicing",
    "compiler.slicing_compute",
    "compiler.slicing_moves",
    "compiler.slicing_rule",
    "compiler.take",
    "compiler.weights",
}


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """The modules that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they point"
            assert node.module is not None
            is_package = (ROOT / node.module.replace(".", "/")).is_dir()
            names = [f"{node.module}.{alias.name}" for alias in node.names if is_package]
            found |= {name for name in names if exists(name)} or {node.module}
    return found


def exists(module: str) -> bool:
    return (ROOT / (module.replace(".", "/") + ".py")).is_file()


def of_ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.partition(".")[0] in OURS}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", files("passes"), ids=name)
def test_a_pass_knows_the_graph_and_nothing_else(path):
    assert of_ours(path) <= GRAPH_LAYER


@pytest.mark.parametrize("module", sorted(GRAPH_LAYER))
def test_the_graph_layer_knows_itself(module):
    """Neither the verifier, which judges its rewrites, nor any pass."""
    path = ROOT / (module.replace(".", "/") + ".py")
    assert of_ours(path) <= GRAPH_LAYER | {"compiler.errors"}


@pytest.mark.parametrize("path", files("models"), ids=name)
def test_models_know_neither_compiler_nor_passes(path):
    assert {used.partition(".")[0] for used in of_ours(path)} <= {"models"}


@pytest.mark.parametrize("path", files("compiler"), ids=name)
def test_the_compiler_loads_passes_by_name(path):
    assert not {used for used in of_ours(path) if used.startswith(("passes.", "tools", "tests"))}


@pytest.mark.parametrize("path", files("compiler/verify"), ids=name)
def test_the_verifier_is_independent_of_how_rewrites_are_made(path):
    """It sees regions; the mechanisms that made them would share their mistakes with it."""
    assert not of_ours(path) & {"compiler.slicing", "compiler.folding", "compiler.batching"}


@pytest.mark.parametrize("path", [*files("compiler"), *files("passes"), *files("models")], ids=name)
def test_nothing_imports_tools_or_tests(path):
    assert not {used for used in of_ours(path) if used.partition(".")[0] in ("tools", "tests")}


LOADED = "import sys; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
RUN = "import runpy; sys.argv[1:] = {}; runpy.run_module('compiler', run_name='__main__')"
STARTS = {
    "compiler": "import compiler",
    "models": "import models",
    "passes": "import passes",
    "cli": "import compiler.cli",
    "--help": RUN.format(["--help"]),
    "build --help": RUN.format(["build", "--help"]),
    "passes --help": RUN.format(["passes", "--help"]),
}


@pytest.mark.parametrize("start", STARTS)
def test_a_start_is_light(start):
    guarded = f"import sys\ntry:\n    {STARTS[start]}\nexcept SystemExit:\n    pass\n{LOADED}"
    done = subprocess.run(
        [sys.executable, "-c", guarded],
        cwd=ROOT, check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert not HEAVY & set(done.stdout.splitlines()[-1].split())
