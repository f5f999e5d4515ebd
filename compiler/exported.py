"""What torch's exporter notes about a node: the modules around it."""

from __future__ import annotations

import ast

# Outermost first, the node's own operator last: names, and the classes of the modules.
SCOPES_KEY = "pkg.torch.onnx.name_scopes"
CLASSES_KEY = "pkg.torch.onnx.class_hierarchy"


def listed(text: str) -> list[str]:
    """The list that a note is the text of; empty if it is none."""
    try:
        value = ast.literal_eval(text) if text else []
    except (ValueError, SyntaxError):
        return []
    return [str(one) for one in value] if isinstance(value, list) else []
