"""Builds and diffs show themselves: HTML in a notebook, a table in a terminal."""

import copy
import json
import pickle
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from compiler.notebook import BuildRecord, lines_html


def stage(name: str, **changes) -> dict:
    passed = {"status": "pass", "error": 1.5e-15, "bound": 1e-12, "detail": ""}
    return {
        "name": name, "contract": "exact", "rewrites": 12, "refusals": [], "nodes_before": 509,
        "nodes_after": 1097, "seconds": 0.25, "verify_seconds": 6.0, "float64": passed,
        "float32": {**passed, "error": 1.4e-6, "bound": 3e-5}, "notes": [], **changes,
    }  # fmt: skip


SOURCE = stage("source", contract="", rewrites=0, nodes_after=509, float64=None, float32=None)
REFUSED = [{"place": "<scores>", "reason": "heads are dynamic"}]


def record(folder: Path, *stages: dict) -> BuildRecord:
    return BuildRecord({"stages": [SOURCE, *stages]}, folder)


class Cells(HTMLParser):
    """The rows of a table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_a_build_is_a_table_in_a_terminal(tmp_path):
    text = str(record(tmp_path, stage("split_heads", refusals=REFUSED)))
    head, source, split, remark, place = text.splitlines()
    assert head.split() == ["pass", "rewrites", "refused", "nodes", "seconds", "float64",
                            "float32", "≤", "bound"]  # fmt: skip
    assert source.split() == ["source", "509", "0.2", "+", "6.0", "–", "–"]
    assert split.split()[:6] == ["split_heads", "12", "1", "509", "→", "1097"]
    assert split.endswith("1.5e-15  1.4e-06 ≤ 3e-05")
    assert remark == "split_heads left <scores> alone: heads are dynamic"
    assert place == str(tmp_path / "model.onnx")
    assert len(head) == len(split)  # columns are aligned


def test_a_build_is_a_table_in_a_notebook(tmp_path):
    html = record(tmp_path, stage("split_heads", refusals=REFUSED))._repr_html_()
    rows = Cells(html).rows
    assert rows[0] == ["pass", "rewrites", "refused", "nodes", "seconds", "float64",
                       "float32 ≤ bound"]  # fmt: skip
    assert rows[2][:4] == ["split_heads", "12", "1", "509 → 1097"]
    assert "left &lt;scores&gt; alone" in html
    assert "<scores>" not in html
    assert "<img" not in html


def test_what_is_unverified_says_so(tmp_path):
    blind = {"status": "UNVERIFIED", "error": None, "bound": None, "detail": "a constant map"}
    shown = record(tmp_path, stage("split_heads", float64=blind, float32=blind))
    assert str(shown).splitlines()[2].split()[-2:] == ["UNVERIFIED", "UNVERIFIED"]
    assert shown._repr_html_().count("#b9770e") == 2


def test_the_depth_is_inside_the_notebook(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "depth.png")
    assert "src='data:image/png;base64,iVBOR" in record(tmp_path)._repr_html_()


def test_a_record_is_what_build_json_holds(tmp_path):
    kept = record(tmp_path, stage("split_heads"))
    assert kept == {"stages": [SOURCE, stage("split_heads")]}
    assert json.loads(json.dumps(kept)) == kept
    assert kept["stages"][-1]["rewrites"] == 12


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))]
)
def test_a_copy_shows_itself_too(tmp_path, copied):
    kept = record(tmp_path, stage("split_heads"))
    assert str(copied(kept)) == str(kept)


@dataclass
class Line:
    text: str
    style: str = "plain"


def test_a_diff_keeps_its_lines_and_colours():
    html = lines_html([Line("- MatMul <a>", "removed"), Line(""), Line("+ Softmax", "added")])
    assert [line.count("color:") for line in html.split("</div>")[:-1]] == [1, 0, 1]
    assert "- MatMul &lt;a&gt;" in html
    assert "+ Softmax" in html
