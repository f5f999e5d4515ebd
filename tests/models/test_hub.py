"""`hf:` models: folders and cached snapshots as transformers saves them, without a network."""

import http.server
import json
import shutil
import threading

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from torch import nn

import compiler
from models import ModelError, resolve
from models.hub import RAW_PIXELS, TWIN_WEIGHTS, normalization_of
from models.network import Network, Normalization, main_outputs

SIZES = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
TEXT = {"vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 2, **SIZES}
IMAGE = {"image_size": 32, "patch_size": 8, **SIZES}
EXPORTERS = ["dynamo", "torchscript"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def saved(folder, kind, processor=None, **config):
    """A folder as `save_pretrained` writes it, and its model: the same weights each time."""
    torch.manual_seed(0)
    model = getattr(transformers, kind)
    model = model(model.config_class(**config))
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model.eval()


def vit(folder, processor=None):
    processor = processor or transformers.ViTImageProcessor().to_dict()
    return saved(folder, "ViTForImageClassification", processor, **IMAGE)


def refusal(model, **options) -> str:
    with pytest.raises(ModelError) as error:
        resolve(model, **options)
    (line,) = str(error.value).splitlines()
    return line


def cached(cache, monkeypatch, hub_id):
    """A snapshot's folder in an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    root = cache / f"models--{hub_id.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0123abc")
    return root / "snapshots" / "0123abc"


# -- what cannot be had ----------------------------------------------------------------------------


def test_what_is_neither_cached_nor_in_reach(tmp_path, monkeypatch):
    cached(tmp_path, monkeypatch, "a/b")
    line = refusal("hf:google-bert/bert-base-uncased")
    assert line.startswith(
        "cannot get 'google-bert/bert-base-uncased' from Hugging Face: it is not"
    )


class Refusing(http.server.BaseHTTPRequestHandler):
    """A Hugging Face that has nothing for anyone, and says why in its way."""

    why = ""

    def do_HEAD(self):
        self.send_response(404 if self.why == "EntryNotFound" else 401)
        self.send_header("X-Error-Code", self.why)
        self.end_headers()

    def log_message(self, *_arguments):
        pass


@pytest.mark.parametrize(
    ("why", "words"),
    [
        ("GatedRepo", "cannot get 'a/b' from Hugging Face: it is gated: accept its terms"),
        ("RepoNotFound", "there is no such model, or it is private: log in"),
        ("EntryNotFound", "a/b holds no config.json"),
    ],
)
def test_what_hugging_face_refuses(why, words, tmp_path, monkeypatch):
    cached(tmp_path, monkeypatch, "c/d")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(Refusing, "why", why)
    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        line = refusal("hf:a/b")
        server.shutdown()
    assert words in line


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("hf:no-slash", {}, "hf:no-slash is neither a folder nor an id: write hf:OWNER/NAME"),
        ("hf:a/b", {"weights": "c/d"}, "hf:a/b holds its own weights: drop --weights c/d"),
        ("hf:a/b", {"weights": "twin:x"}, "cannot read the weights 'twin:x'"),
    ],
)
def test_what_is_typed_wrong(model, options, words):
    assert words in refusal(model, **options)


CONFIGS = {
    "none": (None, "holds no config.json"),
    "damaged": ("{", "config.json is damaged"),
    "a list": ("[]", "config.json is damaged"),
    "a type of nobody": ('{"model_type": "nobody"}', "is a 'nobody', which transformers"),
    "no type": ("{}", "is a None, which transformers"),
    "settings that contradict": (
        '{"model_type": "vit", "hidden_size": "wide"}', "bad config.json:",
    ),
    "a class of nobody": ('{"model_type": "vit", "architectures": ["ViTFor"]}', "names ViTFor;"),
    "sound as samples": ('{"model_type": "wav2vec2"}', "takes input_values; inputs are known"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_is_no_model(case, tmp_path):
    text, words = CONFIGS[case]
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert words in refusal(f"hf:{tmp_path}")


def test_weights_that_are_missing_or_do_not_fit(tmp_path):
    saved(tmp_path, "BertModel", **TEXT)
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "kept")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot read the weights"):
        resolve(f"hf:{tmp_path}").write(tmp_path)
    shutil.move(tmp_path / "kept", tmp_path / "model.safetensors")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 65}))
    with pytest.raises(ModelError, match="do not fit this model: misshapen encoder"):
        resolve(f"hf:{tmp_path}").write(tmp_path)


def test_a_size_that_the_network_refuses_is_told_with_its_class(tmp_path):
    vit(tmp_path)
    with pytest.raises(ModelError, match=r"ViTForImageClassification fails on the inputs .*48"):
        resolve(f"hf:{tmp_path}", size="48").write(tmp_path)


# -- what is exported ------------------------------------------------------------------------------


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_an_image_is_normalized_inside_as_its_processor_says(exporter, tmp_path):
    mean, std = [0.3, 0.4, 0.5], [0.2, 0.3, 0.4]
    processor = transformers.ViTImageProcessor(
        do_resize=False, image_mean=mean, image_std=std
    ).to_dict()
    network = vit(tmp_path, processor)
    source = resolve(f"hf:{tmp_path}", exporter=exporter)
    assert source.notices == ()
    session = onnxruntime.InferenceSession(str(source.write(tmp_path)))
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32)).astype(np.float32)
    pixels = transformers.ViTImageProcessor(do_resize=False, image_mean=mean, image_std=std)(
        image[0].transpose(1, 2, 0).astype(np.uint8), return_tensors="pt"
    )
    expected = network(**pixels).logits.detach().numpy()
    (actual,) = session.run(["logits"], {"image": image})
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_without_a_processor_pixel_values_stay_what_they_are(tmp_path):
    network = saved(tmp_path, "ViTModel", **IMAGE)
    source = resolve(f"hf:{tmp_path}", exporter="torchscript")
    assert source.notices == (RAW_PIXELS,)
    session = onnxruntime.InferenceSession(str(source.write(tmp_path)))
    pixels = torch.rand(1, 3, 32, 32)
    (actual,) = session.run(["last_hidden_state"], {"pixel_values": pixels.numpy()})
    expected = network(pixels).last_hidden_state.detach().numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


NORMALIZATIONS = {
    "ImageNet": ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}, (127.5, 63.75, False)),
    "from 0 to 255": (
        {"do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0] * 3}, (120, 60, False),
    ),
    "rescaled alone": ({"do_normalize": False, "image_mean": [0.5] * 3}, (0, 255, False)),
    "blue first": ({"do_flip_channel_order": True}, (0, 255, True)),
}  # fmt: skip


@pytest.mark.parametrize("case", NORMALIZATIONS)
def test_normalizations(case):
    processor, (mean, std, is_bgr) = NORMALIZATIONS[case]
    found = normalization_of(processor)
    assert found is not None
    assert (*found.mean, *found.std) == pytest.approx((mean,) * 3 + (std,) * 3)
    assert found.is_bgr == is_bgr


class Seen(nn.Module):
    def forward(self, pixel_values, return_dict):
        return {"seen": pixel_values}


def test_blue_first():
    normalization = Normalization([1.0, 2.0, 3.0], [1.0, 1.0, 2.0], is_bgr=True)
    network = Network(Seen(), ["pixel_values"], normalization=normalization)
    image = torch.tensor([5.0, 5.0, 5.0]).reshape(1, 3, 1, 1)
    assert network(image)["seen"].flatten().tolist() == [1.0, 3.0, 4.0]


def test_a_processor_of_images_among_others(tmp_path):
    vit(tmp_path)
    inside = {"do_rescale": False, "image_mean": [1.0] * 3, "image_std": [2.0] * 3}
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inside}))
    found = resolve(f"hf:{tmp_path}")._write.keywords["model"].normalization
    assert (found.mean, found.std) == ([1.0] * 3, [2.0] * 3)


@pytest.mark.parametrize(
    "processor",
    [{}, {"rescale_offset": True}, {"image_mean": [0.5], "image_std": [0.5]}, {"image_mean": 0.5}],
    ids=["none", "an offset", "grey", "one number"],
)
def test_normalizations_that_are_not_known(processor):
    assert normalization_of(processor) is None


SHAPES = {
    "cropped": ({"do_center_crop": True, "crop_size": {"height": 24, "width": 16},
                 "size": {"shortest_edge": 28}}, (24, 16)),
    "resized": ({"size": {"height": 24, "width": 40}}, (24, 40)),
    "one number": ({"size": 24}, (24, 24)),
    "of the network": ({"size": {"shortest_edge": 99}}, (32, 32)),
    "not resized": ({"do_resize": False, "size": 24}, (32, 32)),
}  # fmt: skip


@pytest.mark.parametrize("case", SHAPES)
def test_the_size_of_the_image(case, tmp_path):
    processor, shape = SHAPES[case]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "image_size": 32}))
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "X", **processor})
    )
    inputs = resolve(f"hf:{tmp_path}")._write.keywords["model"].inputs
    assert inputs["pixel_values"].shape == (1, 3, *shape)
    inputs = resolve(f"hf:{tmp_path}", size="64x48")._write.keywords["model"].inputs
    assert inputs["pixel_values"].shape == (1, 3, 64, 48)


def test_any_size_has_to_be_given(tmp_path):
    config = {"model_type": "segformer", "architectures": ["SegformerModel"], "image_size": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "give one with --size, as 480x640" in refusal(f"hf:{tmp_path}")


def test_a_text_has_a_number_of_tokens(tmp_path):
    saved(tmp_path, "BertForMaskedLM", **TEXT)
    source = resolve(f"hf:{tmp_path}", size="7", exporter="torchscript")
    model = onnx.load(source.write(tmp_path))
    shapes = {
        i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input
    }
    assert shapes == {"input_ids": [1, 7], "attention_mask": [1, 7]}
    assert [output.name for output in model.graph.output] == ["logits"]
    assert "size 7x8: a text has a number of tokens" in refusal(f"hf:{tmp_path}", size="7x8")


def test_two_towers_and_their_tables_of_positions(tmp_path):
    vision = {"image_size": 32, "patch_size": 8, **SIZES}
    saved(tmp_path, "CLIPModel", text_config=TEXT, vision_config=vision)
    inputs = resolve(f"hf:{tmp_path}")._write.keywords["model"].inputs
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    assert shapes == {
        "pixel_values": (1, 3, 32, 32), "input_ids": (1, 16), "attention_mask": (1, 16),
    }  # fmt: skip


def test_main_outputs():
    one = torch.zeros(1)
    detected = {"logits": one, "pred_boxes": one, "last_hidden_state": one, "extra": None}
    assert list(main_outputs(detected)) == ["logits", "pred_boxes"]
    assert list(main_outputs({"last_hidden_state": one, "pooler_output": one})) == [
        "last_hidden_state"
    ]


def test_more_weights_than_the_class_needs_are_left_alone(tmp_path):
    # As bert-base-uncased is: the file has the head of pre-training too.
    saved(tmp_path, "BertForPreTraining", **TEXT)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"architectures": ["BertForMaskedLM"]}))
    resolve(f"hf:{tmp_path}", size="5", exporter="torchscript").write(tmp_path)
    path.write_text(json.dumps(settings | {"architectures": ["BertForTokenClassification"]}))
    with pytest.raises(ModelError, match=r"do not fit this model: missing classifier\.bias"):
        resolve(f"hf:{tmp_path}", size="5", exporter="torchscript").write(tmp_path)


# -- Hugging Face's cache --------------------------------------------------------------------------


def test_a_cached_id_is_built_without_a_network(tmp_path, monkeypatch):
    folder = cached(tmp_path / "cache", monkeypatch, "some/vit")
    vit(folder)
    record = compiler.build(
        "hf:some/vit", "split_heads", exporter="torchscript", size="32", output=tmp_path / "out"
    )
    assert (record["model"]["name"], record["model"]["weights"]) == ("vit", "some/vit")
    assert record["inputs"] == {"image": "float[1×3×32×32]"}
    assert record["stages"][-1]["rewrites"] == 2
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="its structure alone: --weights twin:0"):
        resolve("hf:some/vit", exporter="torchscript").write(tmp_path)


def test_shards_are_found_and_missed(tmp_path, monkeypatch):
    folder = cached(tmp_path / "cache", monkeypatch, "some/bert")
    saved(folder, "BertModel", **TEXT).save_pretrained(folder, max_shard_size="40KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    assert len(shards) > 1
    resolve("hf:some/bert", size="5", exporter="torchscript").write(tmp_path)
    shards[-1].unlink()
    with pytest.raises(ModelError, match="the network does not answer"):
        resolve("hf:some/bert", exporter="torchscript").write(tmp_path)


def test_a_twin_needs_the_config_alone(tmp_path, monkeypatch):
    folder = cached(tmp_path / "cache", monkeypatch, "some/vit")
    vit(folder)
    (folder / "model.safetensors").unlink()
    source = resolve("hf:some/vit", weights="twin:3", size="32", exporter="torchscript")
    assert (source.weights, source.notices) == ("twin:3", (TWIN_WEIGHTS,))
    first = source.write(tmp_path).with_suffix(".onnx.data").read_bytes()
    assert source.write(tmp_path).with_suffix(".onnx.data").read_bytes() == first


def test_depth_anything_v2_keeps_its_own_export(monkeypatch):
    hub_id = "depth-anything/Depth-Anything-V2-Small-hf"
    source = resolve(f"hf:{hub_id}", size="70")
    assert (source.name, source.weights) == ("dav2-small", hub_id)
    assert resolve(f"hf:{hub_id}", weights="twin:1").weights == "twin:1"


@pytest.mark.parametrize("size", ["small", "base", "large", "giant"])
def test_the_published_dpt_dinov2_need_no_network_for_a_twin(size, tmp_path, monkeypatch):
    cached(tmp_path, monkeypatch, "a/b")
    found = resolve(f"hf:facebook/dpt-dinov2-{size}-kitti", weights="twin:0")
    model = found._write.keywords["model"]
    assert found.notices == (TWIN_WEIGHTS,)
    assert model.inputs["pixel_values"].shape == (1, 3, 518, 518)
    assert model.normalization.mean == pytest.approx([123.675, 116.28, 103.53])
    with torch.device("meta"):
        network = model.kind(model.config)
    names = dict(network.named_parameters())
    width = model.config.backbone_config.hidden_size
    assert names["head.projection.weight"].shape == (256, 256, 3, 3)
    assert names["neck.reassemble_stage.readout_projects.3.0.weight"].shape == (width, 2 * width)
    assert "neck.fusion_stage.layers.1.residual_layer1.convolution1.bias" not in names
    with pytest.raises(ModelError, match="its structure alone: --weights twin:0"):
        resolve(f"hf:facebook/dpt-dinov2-{size}-kitti").write(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_every_head_of_dpt_dinov2_small_is_split(exporter, tmp_path, monkeypatch):
    cached(tmp_path / "cache", monkeypatch, "a/b")
    record = compiler.build(
        "hf:facebook/dpt-dinov2-small-nyu", "split_heads", weights="twin:0", size="98x126",
        exporter=exporter, output=tmp_path / "out",
    )  # fmt: skip
    split = record["stages"][-1]
    assert (split["rewrites"], split["slices_left"]) == (12, 0)
    assert (split["float64"]["status"], split["float32"]["status"]) == ("pass", "pass")
