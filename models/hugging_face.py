"""Weights in Hugging Face form: a local folder, or an id that is cached or downloaded."""

import json
import re
from pathlib import Path
from typing import Any

from models.errors import ModelError
from models.variants import Variant

FILES = ("config.json", "model.safetensors")

REACH_TIMEOUT_S = 2.0
"""How long to wait for a sign of life from huggingface.co (huggingface_hub waits twice)."""


def looks_like_id(text: str) -> bool:
    """Tell whether `text` has the form OWNER/NAME of a Hugging Face id."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None


def is_available(hub_id: str) -> bool:
    """Tell whether the weights are in the cache, or can be had from the network right now."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    if _cached(hub_id) is not None:
        return True
    try:
        _ask_for(hub_id)
    except (OSError, httpx.HTTPError):  # offline mode and HTTP statuses are OSErrors
        return False
    return True


def snapshot(hub_id: str) -> Path:
    """Return the local folder of an id's files: cached, or downloaded with a progress bar."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    try:
        folder = _cached(hub_id)
        if folder is None:
            _ask_for(hub_id)  # fails at once where a download would try again for minutes
            paths = [hf_hub_download(hub_id, file) for file in FILES]
            folder = Path(paths[0]).parent
    except (OSError, httpx.HTTPError, HFValidationError) as error:
        raise ModelError(
            f"cannot get '{hub_id}' from Hugging Face ({type(error).__name__}); check the id and "
            "the network, or give --weights a .pth file, a local folder or twin:0"
        ) from None
    return folder


def _cached(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(hub_id, file) for file in FILES]
    paths = [Path(path) for path in found if isinstance(path, str)]
    return paths[0].parent if len(paths) == len(FILES) else None


def _ask_for(hub_id: str) -> None:
    """Ask the server for the weights' size; raises OSError or httpx.HTTPError."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    get_hf_file_metadata(hf_hub_url(hub_id, FILES[-1]), timeout=REACH_TIMEOUT_S)


def load_network(folder: Path, variant: Variant) -> Any:
    """Load a folder as `variant` in float32; anything missing, unknown or misshapen is an error."""
    import torch
    from safetensors import SafetensorError
    from transformers import DepthAnythingForDepthEstimation

    from models.depth_anything import config
    from models.quiet import quiet

    check_config(folder, variant)
    try:
        with quiet():
            network, report = DepthAnythingForDepthEstimation.from_pretrained(
                folder,
                config=config(variant),
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # reported below, in one line
                output_loading_info=True,
            )
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"cannot read the weights in {folder} ({str(error).splitlines()[0]}); "
            f"it must hold {' and '.join(FILES)}"
        ) from None
    _check_report(report, folder)
    return network.eval()


def check_config(folder: Path, variant: Variant) -> None:
    """Refuse a folder of another variant: widths would fail anyway, heads and taps would not."""
    path = folder / FILES[0]
    try:
        found = json.loads(path.read_text())
        backbone = found["backbone_config"]
        actual = {
            "model_type": found["model_type"],
            "hidden_size": backbone["hidden_size"],
            "out_indices": backbone["out_indices"],
            "depth_estimation_type": found.get("depth_estimation_type", "relative"),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder} is no Hugging Face folder of Depth Anything V2: its {FILES[0]} is missing "
            f"or has another form ({type(error).__name__}: {error})"
        ) from None
    expected = {
        "model_type": "depth_anything",
        "hidden_size": variant.encoder.width,
        "out_indices": list(variant.encoder.taps),
        "depth_estimation_type": "relative" if variant.head.max_depth_m is None else "metric",
    }
    if variant.head.max_depth_m is not None:
        actual["max_depth"] = found.get("max_depth", 1)
        expected["max_depth"] = variant.head.max_depth_m
    wrong = [key for key in expected if actual[key] != expected[key]]
    if wrong:
        raise ModelError(
            f"{path} is not {variant.name}: {wrong[0]} is {actual[wrong[0]]}, "
            f"not {expected[wrong[0]]}"
        )


def _check_report(report: dict[str, Any], folder: Path) -> None:
    # The token for masked patches is in the published files and used in pre-training alone.
    unknown = [key for key in report["unexpected_keys"] if not key.endswith("mask_token")]
    problems = {
        "missing": sorted(report["missing_keys"]),
        "unknown": sorted(unknown),
        "misshapen": sorted(str(entry[0]) for entry in report["mismatched_keys"]),
    }
    found = [f"{what} {keys[0]} ({len(keys)} in all)" for what, keys in problems.items() if keys]
    if found:
        raise ModelError(f"the weights in {folder} do not fit this model: {'; '.join(found)}")
