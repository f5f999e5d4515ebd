"""One session of Qualcomm's execution provider, in a process of its own.

The provider registers once a process, prints from C, and takes a gigabyte: a child keeps all of
that away from the caller. Run by `compiler.targets.htp`, with a JSON object as its only argument.
"""

from __future__ import annotations

import json
import sys
from typing import Any

PROVIDER = "QNNExecutionProvider"
# The exit code of a provider that does not load on this machine, whatever the model.
CANNOT_LOAD = 3


def main(job: dict[str, str]) -> None:
    """Writes the context binary `job["context"]`, or runs `job["inputs"]` into `job["outputs"]`.

    The folder `job["trace"]` gets the provider's word on every node, `job["profile"]` all that the
    simulation did. Inputs and outputs are `.npz` files, an array a tensor, in the model's order.
    """
    options = _session_options(job)
    if "context" in job:
        options.add_session_config_entry("ep.context_enable", "1")
        options.add_session_config_entry("ep.context_file_path", job["context"])
        options.add_session_config_entry("ep.context_embed_mode", "0")
    import onnxruntime as ort

    session = ort.InferenceSession(job["model"], options)
    if "inputs" in job:
        _run(session, job["inputs"], job["outputs"])


def _session_options(job: dict[str, str]) -> Any:
    try:
        import onnxruntime as ort
        import onnxruntime_qnn

        ort.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
        device = next(device for device in ort.get_ep_devices() if device.ep_name == PROVIDER)
        backend = onnxruntime_qnn.get_qnn_htp_path()
    except Exception as error:  # whatever stops it from loading is the same to the caller
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(CANNOT_LOAD) from None
    options = {
        "backend_path": backend,
        "soc_model": job["soc_model"],  # without it weights stay float32
        "htp_arch": job["htp_arch"],
        "enable_htp_fp16_precision": "1",
        "vtcm_mb": job["vtcm_mb"],
        "htp_graph_finalization_optimization_mode": "3",
    }
    if "trace" in job:
        options |= {"enable_framework_op_trace": "1", "framework_op_trace_dir": job["trace"]}
    if "profile" in job:
        options |= _profiling(job["profile"])
    session = ort.SessionOptions()
    session.add_provider_for_devices([device], options)
    return session


def _profiling(folder: str) -> dict[str, str]:
    return {
        "profiling_level": "optrace",
        "profiling_file_path": f"{folder}/profile.csv",
        "dump_json_qnn_graph": "1",
        "json_qnn_graph_dir": folder,
    }


def _run(session: Any, inputs: str, outputs: str) -> None:
    import numpy as np

    with np.load(inputs) as arrays:
        names = [tensor.name for tensor in session.get_inputs()]
        feeds = dict(zip(names, arrays.values(), strict=True))
    np.savez(outputs, *session.run(None, feeds))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
