"""The report as a file: one page without a network, the same each time, of every build."""

import json
import re

import numpy as np
import onnx
import pytest

import compiler
from compiler.cli import main
from compiler.errors import UserError
from compiler.report import REPORT_NAME, write_report

PLAIN = "g (float[2,3,4] x) => (float[2,3,4] y) <float[4,4] w> { q = MatMul(x, w) y = Relu(q) }"


def page_of(folder) -> str:
    return (folder / REPORT_NAME).read_text("utf-8")


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def built_from(model, folder, passes="split_heads"):
    onnx.save(model, folder / "model.onnx")
    compiler.build(str(folder / "model.onnx"), passes, output=folder / "built", allow_noop=True)
    write_report(folder / "built")
    return folder / "built"


def test_a_page_fetches_nothing(built):
    page = page_of(built)
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", page)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|importScripts", page)
    assert "default-src 'none'" in page
    assert page.count("</script>") == 3


def test_every_pass_has_a_row_and_a_section_with_its_numbers(built):
    page, record = page_of(built), json.loads((built / "build.json").read_text())
    for stage in record["stages"][1:]:
        assert f'id="{stage["stage"]}"' in page
        assert f"{stage['nodes_before']} → {stage['nodes_after']}" in page
    split = record["stages"][4]
    assert f"{split['float64']['error']:.1e}" in page
    assert f"{split['float32']['bound']:.1e}" in page
    for name, digest in record["files"].items():
        assert name in page
        assert digest in page
    assert f"onnxruntime <b>{record['versions']['onnxruntime']}</b>" in page


def test_a_kind_tells_its_count_and_its_worst_error(built, tmp_path):
    """Four attentions, of which the third has the largest error now."""
    for path in built.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    record = json.loads((built / "rewrites.json").read_text("utf-8"))
    for rewrite, error in zip(record["stages"]["04_split_heads"], (1, 2, 7, 3), strict=True):
        rewrite["float64"] |= {"error": error * 1e-14}
    (tmp_path / "rewrites.json").write_text(json.dumps(record), "utf-8")
    page = page_of(write_report(tmp_path).parent).partition('id="04_split_heads"')[2]
    (summary,) = re.findall(r"<summary>(.*?)</summary>", page.partition("</article>")[0])
    assert summary.startswith("<b>4 ×</b>")
    assert "float64 7.0e-14" in summary


def test_the_tiles_add_up_and_tell_what_came_closest_to_its_bound(model_of, tmp_path):
    built = built_from(model_of(PLAIN), tmp_path)
    record = json.loads((built / "build.json").read_text())
    refusal = {"place": "there", "reason": "so"}
    for stage, error, bound in zip(record["stages"], (0, 1e-14, 9e-14), (1, 1e-13, 1e-10),
                                   strict=True):  # fmt: skip
        stage["float64"] = {"status": "pass", "error": error, "bound": bound, "detail": ""}
        stage |= {"refusals": [refusal, refusal], "rewrites": 5}
    (built / "build.json").write_text(json.dumps(record))
    page = page_of(write_report(built).parent)
    assert "<dd>15 <small>6 refused</small></dd>" in page
    assert "<dd>1.0e-14 <small>≤ 1.0e-13</small></dd>" in page


def test_refusals_are_there_with_their_reasons(model_of, tmp_path):
    built = built_from(model_of(PLAIN), tmp_path)
    (refusal,) = json.loads((built / "build.json").read_text())["stages"][2]["refusals"]
    assert "nothing to split" in refusal["reason"]
    assert refusal["reason"] in page_of(built)


def test_the_data_holds_every_stage_and_no_weights(built):
    data = data_of(page_of(built))
    assert [len(stage["nodes"]) for stage in data["stages"]] == [227, 227, 230, 229, 425, 854]
    # Nodes that stages share are there once, in far less room than the models take.
    assert len(data["nodes"]) < 1400
    assert len(page_of(built).partition('id="depth"')[0]) < 1_000_000


def test_two_reports_of_one_build_are_equal(built):
    before = (built / REPORT_NAME).read_bytes()
    write_report(built)
    assert (built / REPORT_NAME).read_bytes() == before


def test_reports_of_two_builds_differ_in_times_alone(model_of, tmp_path):
    pages = [page_of(built_from(model_of(PLAIN), tmp_path, "canonicalize")) for _ in range(2)]
    first, second = (re.sub(r"\b\d+\.\d\b", "seconds", page) for page in pages)
    assert first == second


def test_the_depth_is_shown_with_the_errors(built):
    page = page_of(built)
    pictures = [name for name in ("depth.png", "depth_error.png") if (built / name).exists()]
    assert page.count('<img src="data:image/png;base64,') == len(pictures) > 0
    assert 'id="depth"' in page


def test_a_model_that_is_no_image_to_map_has_no_depth(model_of, tmp_path):
    page = page_of(built_from(model_of(PLAIN), tmp_path))
    assert 'id="depth"' not in page
    assert '"#depth"' not in page


def test_names_that_look_like_html_are_names(model_of, tmp_path):
    model = model_of(PLAIN)
    model.graph.node[1].name = "</script><b>node"
    page = page_of(built_from(model, tmp_path, "canonicalize"))
    assert "</script><b>node" not in page
    assert any(row[0] == "</script><b>node" for row in data_of(page)["nodes"])


def test_values_that_json_does_not_have_are_no_traceback(model_of, tmp_path):
    model = model_of("g (float[2] x) => (float[2] y) <float lowest> { y = Max(x, lowest) }")
    lowest = np.array(-np.inf, np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(lowest, "lowest"))
    data = data_of(page_of(built_from(model, tmp_path, "canonicalize")))
    assert ["lowest", "float[]", "-inf"] in data["tensors"]


def test_estimates_and_what_is_unverified_are_told(model_of, tmp_path):
    built = built_from(model_of(PLAIN), tmp_path, "canonicalize")
    record = json.loads((built / "build.json").read_text())
    for latency, stage in zip((5.25, 4.0, 4.5), record["stages"], strict=True):
        stage["estimate"] = {"chip": "iq-9075", "latency_ms": latency}
    blind = {"status": "UNVERIFIED", "error": None, "bound": 1e-5, "detail": "a constant <map>"}
    record["stages"][1]["float32"] = blind
    (built / "build.json").write_text(json.dumps(record))
    page = page_of(write_report(built).parent)
    assert "<dd>5.25 → 4.50 <small>ms</small></dd>" in page
    assert "4.00 <small>-1.25</small>" in page
    assert '<dd class="UNVERIFIED">UNVERIFIED</dd>' in page
    assert 'title="a constant &lt;map&gt;">UNVERIFIED' in page


def test_a_folder_that_is_no_build_is_refused(tmp_path):
    with pytest.raises(UserError, match="not the folder of a build"):
        write_report(tmp_path)


def test_the_command_writes_the_page(built, monkeypatch, capsys):
    before = page_of(built)
    (built / REPORT_NAME).unlink()
    monkeypatch.setattr("sys.argv", ["compiler", "report", str(built)])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    assert str(built / REPORT_NAME) in capsys.readouterr().out
    assert page_of(built) == before
