"""Weights in Hugging Face form: a local folder, or an id that is cached or downloaded."""

import json
import re
from pathlib import Path
from typing import Any

from models.errors import ModelError
from models.variants import Variant

FILES = ("config.json", "model.safetensors")
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Where an image's normalization is written; the second since transformers 5, for some."""
INDEX = "model.safetensors.index.json"

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
        _ask_for(hub_id, FILES[-1])
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
            _ask_for(hub_id, FILES[-1])  # fails at once where a download tries for minutes
            paths = [hf_hub_download(hub_id, file) for file in FILES]
            folder = Path(paths[0]).parent
    except (OSError, httpx.HTTPError, HFValidationError) as error:
        raise ModelError(
            f"cannot get '{hub_id}' from Hugging Face ({type(error).__name__}); check the id and "
            "the network, or give --weights a .pth file, a local folder or twin:0"
        ) from None
    return folder


def settings(origin: str) -> dict[str, dict[str, Any]]:
    """The contents of `config.json` and of the processors' files, by name: those that there are.

    `origin` is a local folder, or an id that is cached or in reach. Raises ModelError.
    """
    names = (FILES[0], *PROCESSORS)
    if Path(origin).is_dir():
        paths = {name: Path(origin) / name for name in names if (Path(origin) / name).is_file()}
    elif looks_like_id(origin):
        found = {name: _small_file(origin, name) for name in names}
        paths = {name: path for name, path in found.items() if path is not None}
    else:
        raise ModelError(f"hf:{origin} is neither a folder nor an id: write hf:OWNER/NAME")
    if FILES[0] not in paths:
        raise ModelError(f"{origin} holds no {FILES[0]}: it is no transformers model")
    return {name: _read_json(path) for name, path in paths.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} is damaged: it holds no settings")
    return content


def _small_file(hub_id: str, name: str) -> Path | None:
    """A file of an id; None if it has none of that name, or if it is optional and out of reach."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    known = try_to_load_from_cache(hub_id, name)
    if known is not None:
        return Path(known) if isinstance(known, str) else None
    try:
        _ask_for(hub_id, name)
        return Path(hf_hub_download(hub_id, name))
    except (OSError, httpx.HTTPError) as error:
        # What is not in the cache either, with no network, may well exist.
        is_absent = isinstance(error, EntryNotFoundError)
        is_absent = is_absent and not isinstance(error, LocalEntryNotFoundError)
        if is_absent or name != FILES[0]:
            return None
        raise ModelError(_out_of_reach(hub_id, error)) from None


def _out_of_reach(hub_id: str, error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        why = "it is gated: accept its terms on huggingface.co and log in with `hf auth login`"
    elif isinstance(error, RepositoryNotFoundError):
        why = "there is no such model, or it is private: log in with `hf auth login`"
    else:
        why = f"it is not in the cache, and the network does not answer ({type(error).__name__})"
    return f"cannot get '{hub_id}' from Hugging Face: {why}"


def folder_with_weights(origin: str) -> Path:
    """The local folder of a model's `config.json` and weights: cached, or downloaded.

    Raises ModelError.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    if Path(origin).is_dir():
        return Path(origin)
    config = try_to_load_from_cache(origin, FILES[0])
    if isinstance(config, str) and _has_weights(Path(config).parent):
        return Path(config).parent
    try:
        _ask_for(origin, FILES[0])
        patterns = [FILES[0], FILES[1], INDEX, "model-*-of-*.safetensors"]
        return Path(snapshot_download(origin, allow_patterns=patterns))
    except (OSError, httpx.HTTPError) as error:
        reason = _out_of_reach(origin, error)
        raise ModelError(f"{reason}; its structure alone: --weights twin:0") from None


def _has_weights(folder: Path) -> bool:
    """Whether all weights are there, in one file or in the shards that the index lists."""
    index = folder / INDEX
    if index.is_file():
        shards = set(_read_json(index).get("weight_map", {}).values())
        return all((folder / shard).is_file() for shard in shards)
    return (folder / FILES[1]).is_file()


def _cached(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(hub_id, file) for file in FILES]
    paths = [Path(path) for path in found if isinstance(path, str)]
    return paths[0].parent if len(paths) == len(FILES) else None


def _ask_for(hub_id: str, file: str) -> None:
    """Ask the server for a file's size; raises OSError or httpx.HTTPError."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    get_hf_file_metadata(hf_hub_url(hub_id, file), timeout=REACH_TIMEOUT_S)


def load_network(folder: Path, variant: Variant) -> Any:
    """Load a folder as `variant` in float32; anything missing, unknown or misshapen is an error."""
    from transformers import DepthAnythingForDepthEstimation

    from models.depth_anything import config

    check_config(folder, variant)
    network, report = load(folder, DepthAnythingForDepthEstimation, config(variant))
    # The token for masked patches is in the published files and used in pre-training alone.
    unknown = [key for key in report["unexpected_keys"] if not key.endswith("mask_token")]
    check_fit({**report, "unexpected_keys": unknown}, folder)
    return network


def load(folder: Path, kind: Any, config: Any) -> tuple[Any, dict[str, Any]]:
    """A folder's weights in float32 as a transformers class, and what did not fit: see `check_fit`.

    Raises ModelError if the weights can't be read.
    """
    import torch
    from safetensors import SafetensorError

    from models.quiet import quiet

    try:
        with quiet():
            network, report = kind.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # reported, in one line
                output_loading_info=True,
            )
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"cannot read the weights in {folder} ({str(error).splitlines()[0]}); "
            f"it must hold {' and '.join(FILES)}"
        ) from None
    return network.eval(), report


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


def check_fit(report: dict[str, Any], folder: Path) -> None:
    """Refuse weights that are missing, unknown or misshapen."""
    problems = {
        "missing": sorted(report["missing_keys"]),
        "unknown": sorted(report["unexpected_keys"]),
        "misshapen": sorted(str(entry[0]) for entry in report["mismatched_keys"]),
    }
    found = [f"{what} {keys[0]} ({len(keys)} in all)" for what, keys in problems.items() if keys]
    if found:
        raise ModelError(f"the weights in {folder} do not fit this model: {'; '.join(found)}")
