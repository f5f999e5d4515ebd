"""The zoo: every family is what its line in the table says, and no path of it is asleep."""

import re

import onnx
import pytest
import torch
from torch import nn

from models import zoo
from models.errors import ModelError
from models.zoo import FAMILIES, Family

NETWORKS = [family for family in FAMILIES if family.exporters != ("skl2onnx",)]
# Parameters that the exported function does not use: masks of pre-training, poolers for other
# tasks, the bias of keys (a Softmax does not see what is equal for all keys).
UNUSED = re.compile(
    r"mask_token|pooler|\bk_proj\.bias|\bkey\.bias"
    r"|fusion_stage\.layers\.0\.residual_layer1"
    r"|backbone\.layernorm"  # DPT reads the layers as they are
    r"|module\.post_layernorm"  # of CLIP's pooled output
    # DETR's decoder begins with zeros: all values of its first self attention are equal.
    r"|decoder\.layers\.0\.self_attn\.[qkv]_proj"
)
# Swin takes 100 from what is masked, others more.
MASKED = -50.0


def name(family: Family) -> str:
    return family.name


def test_names_are_unique():
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)


@pytest.mark.parametrize("family", NETWORKS, ids=name)
def test_every_weight_moves_the_output(family):
    example = family.build()
    module = example.module.requires_grad_(True)
    result = module(*example.inputs.values())
    first = result[0] if isinstance(result, tuple) else result
    assert first.isfinite().all()
    assert first.std() > 0.05
    # Against random directions: the sum of squares of normalized features never moves.
    generator = torch.Generator().manual_seed(1)
    (first * torch.randn(first.shape, generator=generator)).sum().backward()
    still = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().max()]
    assert [n for n in still if not UNUSED.search(n)] == []


@pytest.mark.parametrize("name", ["depth-anything-v1", "dpt-dinov2-relative", "dpt-dinov2-nyu"])
@torch.no_grad()
def test_no_depth_is_cut_off_by_the_last_relu(name):
    (family,) = (family for family in FAMILIES if family.name == name)
    example = family.build()
    assert example.module(*example.inputs.values()).min() > 0


def spread(logits: torch.Tensor) -> float:
    """The standard deviation along the keys that are not masked."""
    shown = logits.double().masked_fill(logits < MASKED, torch.nan)
    return (shown - shown.nanmean(-1, keepdim=True)).square().nanmean().sqrt().item()


@pytest.mark.parametrize("family", NETWORKS, ids=name)
@torch.no_grad()
def test_the_logits_are_spread_and_the_heads_counted(family, monkeypatch):
    example = family.build()
    zoo.set_attention(example.module, "eager")
    logits = []
    softmax, fused = nn.functional.softmax, nn.functional.scaled_dot_product_attention

    def spy(scores, *args, **options):
        logits.append(scores)
        return softmax(scores, *args, **options)

    def spy_fused(query, key, value, attn_mask):  # SAM's, whose mask is its relative position
        logits.append(query @ key.mT / query.shape[-1] ** 0.5 + attn_mask)
        return fused(query, key, value, attn_mask)

    monkeypatch.setattr(nn.functional, "softmax", spy)
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", spy_fused)
    example.module(*example.inputs.values())
    assert all(0.5 < spread(scores) < 6.0 for scores in logits), [*map(spread, logits)]
    heads = [scores.shape[1] for scores in logits]
    assert heads.count(1) == family.one_head
    constant = 1 if family.name == "detr" else 0  # of no input: see the table
    assert len(heads) - heads.count(1) == family.attentions + constant


def test_an_export_is_silent_and_has_the_names_of_the_table(tmp_path, capfd):
    (family,) = (family for family in FAMILIES if family.name == "llama-cache")
    for exporter in family.exporters:
        model = onnx.load(zoo.write(family, tmp_path, exporter))
        past = [f"past_{layer}_{what}" for layer in (0, 1) for what in ("key", "value")]
        assert [i.name for i in model.graph.input] == ["input_ids", "attention_mask", *past]
        present = [name.replace("past", "present") for name in past]
        assert [o.name for o in model.graph.output] == ["output", *present]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("attention", "opset", "ops"), [("eager", 18, {"Softmax"}), ("sdpa", 23, {"Attention"})]
)
def test_attention_is_exported_as_asked(tmp_path, attention, opset, ops):
    (vit,) = (family for family in FAMILIES if family.name == "vit")
    path = zoo.write(vit, tmp_path, "dynamo", opset=opset, attention=attention)
    model = onnx.load(path, load_external_data=False)
    assert {n.op_type for n in model.graph.node} & {"Softmax", "Attention"} == ops
    assert model.opset_import[0].version == opset


def test_an_opset_that_the_exporter_does_not_write_is_refused(tmp_path):
    with pytest.raises(ModelError, match="writes opsets 17 to 20, not 22"):
        zoo.write(FAMILIES[0], tmp_path, "torchscript", opset=22)


def test_the_same_twin_every_time():
    (vit,) = (family for family in FAMILIES if family.name == "vit")
    first, again = vit.build().module.state_dict(), vit.build().module.state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)


UNSUPPORTED = [(f, exporter) for f in FAMILIES for exporter in f.unsupported]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "exporter"), UNSUPPORTED, ids=lambda v: getattr(v, "name", v))
def test_what_pytorch_is_said_not_to_export_it_does_not(family, exporter, tmp_path):
    with pytest.raises(torch.onnx.errors.UnsupportedOperatorError):
        zoo.write(family, tmp_path, exporter)
