"""Weights in Hugging Face form, without a network: folders, and an id that cannot be had."""

import json
import os
import re
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import ModelError
from models.depth_anything import empty_network
from models.hugging_face import is_available, load_network, looks_like_id, snapshot
from models.twin import twin_state_dict
from models.variants import Head, Variant
from tests.models.tiny import METRIC_INDOOR, TINY, tiny_variant


def saved(folder, variant: Variant) -> dict[str, torch.Tensor]:
    """Write a folder as `save_pretrained` does, and return the weights."""
    network = empty_network(variant)
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    state = twin_state_dict(shapes, 0)
    network.load_state_dict(state, assign=True)
    network.save_pretrained(folder)
    return state


def edit(folder, change) -> None:
    """Apply `change` to the saved tensors in place."""
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


@pytest.mark.parametrize("swiglu", [False, True], ids=["mlp", "swiglu"])
@pytest.mark.parametrize(
    "head", [Head("", None, "", ""), METRIC_INDOOR], ids=["relative", "metric"]
)
def test_a_folder_comes_back_as_saved(tmp_path, swiglu, head):
    variant = tiny_variant(swiglu, head)
    state = saved(tmp_path, variant)
    loaded = load_network(tmp_path, variant).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_the_published_files_names_are_understood(tmp_path):
    # The public repositories were written before transformers renamed q, k, v and o.
    state = saved(tmp_path, tiny_variant())

    def as_published(tensors):
        old = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
        for name in [*tensors]:
            renamed = name.replace("attention.o_proj", "attention.output.dense")
            for new, before in old.items():
                renamed = renamed.replace(f"attention.{new}", f"attention.{before}")
            tensors[renamed] = tensors.pop(name)
        tensors["backbone.embeddings.mask_token"] = torch.zeros(1, TINY.width)

    edit(tmp_path, as_published)
    loaded = load_network(tmp_path, tiny_variant()).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_missing_unknown_and_misshapen_weights_are_named(tmp_path):
    saved(tmp_path, tiny_variant())

    def spoil(tensors):
        tensors["stray"] = tensors.pop("head.conv1.bias")
        tensors["head.conv2.bias"] = torch.zeros(5)

    edit(tmp_path, spoil)
    with pytest.raises(ModelError) as error:
        load_network(tmp_path, tiny_variant())
    for part in ("missing head.conv1.bias", "unknown stray", "misshapen head.conv2.bias"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("depth_estimation_type", "metric", "depth_estimation_type is metric, not relative"),
        ("model_type", "dpt", "model_type is dpt"),
        (
            "backbone_config",
            {"hidden_size": 384, "out_indices": [1, 2, 3, 4]},
            "hidden_size is 384",
        ),
        # Depth Anything V1 reads the last four layers, with the same shapes.
        ("backbone_config", {"hidden_size": 32, "out_indices": [9, 10, 11, 12]}, "out_indices is"),
        ("backbone_config", None, "has another form"),
    ],
)
def test_another_model_is_refused(tmp_path, key, value, part):
    saved(tmp_path, tiny_variant())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ModelError, match=re.escape(part)):
        load_network(tmp_path, tiny_variant())


def test_another_range_of_depth_is_refused(tmp_path):
    saved(tmp_path, tiny_variant(head=METRIC_INDOOR))
    outdoor = Variant(TINY, Head("-metric-outdoor", 80, "vkitti", "Metric-Outdoor"))
    with pytest.raises(ModelError, match="max_depth is 20, not 80"):
        load_network(tmp_path, outdoor)


def test_an_empty_folder_and_damaged_weights_are_told(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        load_network(tmp_path, tiny_variant())
    saved(tmp_path, tiny_variant())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot read the weights in"):
        load_network(tmp_path, tiny_variant())
    weights.unlink()
    with pytest.raises(ModelError, match="cannot read the weights in"):
        load_network(tmp_path, tiny_variant())


@pytest.mark.parametrize(
    ("text", "answer"), [("a/b", True), ("a/b/c", False), ("a", False), ("a b/c", False)]
)
def test_the_form_of_an_id(text, answer):
    assert looks_like_id(text) is answer


def test_an_id_that_cannot_be_had_is_told(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as error:
        snapshot("nobody/nothing-at-all")
    assert "cannot get 'nobody/nothing-at-all'" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_cached_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--some--model" / "snapshots" / "0123abc"
    refs = tmp_path / "models--some--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("0123abc")
    saved(folder, tiny_variant())
    assert is_available("some/model")
    assert snapshot("some/model") == folder
    (folder / "model.safetensors").unlink()
    assert not is_available("some/model"), "half a model is none"


DEAD_SERVER = """
import time, models
from models.hugging_face import snapshot
start = time.monotonic()
print(models.resolve("dav2-small").weights)
try:
    snapshot("nobody/nothing")
except models.ModelError as error:
    print(error)
print(time.monotonic() - start)
"""


def test_a_dead_server_is_not_waited_for(tmp_path):
    # Connections succeed and nothing is ever answered, as behind some firewalls.
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        environment = kept | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path)}
        for offline in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            environment.pop(offline, None)
        done = subprocess.run(
            [sys.executable, "-c", DEAD_SERVER],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
    weights, refused, seconds = done.stdout.splitlines()
    assert weights == "twin:0"
    assert refused.startswith("cannot get 'nobody/nothing' from Hugging Face")
    assert float(seconds) < 20
