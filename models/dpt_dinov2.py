"""What Meta's eight `facebook/dpt-dinov2-*` are, so that their twins need no network.

From transformers' `convert_dinov2_depth_to_hf.py`, which made them: one network a size, trained on
NYU (indoors) or KITTI (streets). The depth is in metres, cut off below zero; images are padded to
multiples of 14 and not resized.
"""

from typing import Any

from models.depth_anything import MEAN, STD
from models.variants import ENCODERS, PATCH, TABLE_SIDE

_NECKS = {
    "small": (48, 96, 192, 384),
    "base": (96, 192, 384, 768),
    "large": (128, 256, 512, 1024),
    "giant": (192, 384, 768, 1536),
}


def published_files(hub_id: str) -> dict[str, dict[str, Any]] | None:
    """The contents of an id's JSON files by name; None for what is not of this family."""
    for encoder in ENCODERS:
        if hub_id in (f"facebook/dpt-dinov2-{encoder.size}-{data}" for data in ("nyu", "kitti")):
            break
    else:
        return None
    backbone = {
        "model_type": "dinov2", "image_size": TABLE_SIDE * PATCH, "patch_size": PATCH,
        "hidden_size": encoder.width, "num_hidden_layers": encoder.layers,
        "num_attention_heads": encoder.heads, "use_swiglu_ffn": encoder.swiglu,
        "out_indices": list(encoder.taps), "apply_layernorm": False,
        "reshape_hidden_states": False,
    }  # fmt: skip
    config = {
        "architectures": ["DPTForDepthEstimation"], "model_type": "dpt",
        "backbone_config": backbone, "neck_hidden_sizes": list(_NECKS[encoder.size]),
        "use_bias_in_fusion_residual": False, "add_projection": True,
    }  # fmt: skip
    processor = {
        "do_resize": False, "do_rescale": False, "do_normalize": True,
        "image_mean": list(MEAN), "image_std": list(STD),
    }  # fmt: skip
    return {"config.json": config, "preprocessor_config.json": processor}
