"""Where models come from: Depth Anything V2, any ONNX file, Hugging Face ids; and sample inputs.

Importing this package is cheap: torch and transformers are loaded when a model is written.
"""

from models.errors import ModelError
from models.images import load_image, sample_image
from models.sources import Source, resolve, resolve_module

__all__ = ["ModelError", "Source", "load_image", "resolve", "resolve_module", "sample_image"]
