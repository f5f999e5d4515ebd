"""A graph-rewriting ONNX compiler for mobile NPUs that proves every rewrite in float64."""

from compiler.api import build
from compiler.errors import UserError, VerificationError

__all__ = ["UserError", "VerificationError", "build"]
