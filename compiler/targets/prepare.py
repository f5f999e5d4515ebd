"""One preparation of a model for an NPU, in a process of its own.

The provider registers once a process, prints from C, and takes a gigabyte: a child keeps all of
that away from the caller. Run by `compiler.targets.htp`, with a JSON object as its only argument.
"""

from __future__ import annotations

import json
import sys

import onnxruntime as ort
import onnxruntime_qnn

PROVIDER = "QNNExecutionProvider"


def main(job: dict[str, str]) -> None:
    """Writes the context binary `job["context"]`, and the profile `job["profile"]` beside it."""
    ort.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    device = next(device for device in ort.get_ep_devices() if device.ep_name == PROVIDER)
    session = ort.SessionOptions()
    session.add_session_config_entry("ep.context_enable", "1")
    session.add_session_config_entry("ep.context_file_path", job["context"])
    session.add_session_config_entry("ep.context_embed_mode", "0")
    options = {
        "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
        "soc_model": job["soc_model"],  # without it weights stay float32
        "htp_arch": job["htp_arch"],
        "enable_htp_fp16_precision": "1",
        "htp_graph_finalization_optimization_mode": "3",
        "profiling_level": "detailed",
        "profiling_file_path": job["profile"],
    }
    if job["vtcm_mb"]:
        options["vtcm_mb"] = job["vtcm_mb"]
    session.add_provider_for_devices([device], options)
    ort.InferenceSession(job["model"], session)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
