"""onnxruntime's editable model, with indices: its own looks through every node for every tensor.

That is quadratic: of 16 seconds for Depth Anything V2 Small, split by heads, 11 went there. The
result is the same, byte for byte.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import onnx
from onnxruntime.quantization.onnx_model import ONNXModel


class IndexedModel(ONNXModel):  # type: ignore[misc]
    """Knows who reads and makes each tensor, and the initializers by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(model)
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self._makers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            self._note(node)

    def _note(self, node: onnx.NodeProto) -> None:
        for name in node.input:
            self._readers[name].append(node)
        for name in node.output:
            self._makers[name].append(node)

    def add_node(self, node: onnx.NodeProto) -> None:
        """Appends a copy of a node."""
        self.model.graph.node.append(self._check_node(node))
        self._note(self.model.graph.node[-1])

    def get_initializer(self, name: str) -> onnx.TensorProto | None:
        """The initializer of a name."""
        return self._constants.get(name)

    def add_initializer(self, tensor: onnx.TensorProto) -> None:
        """Appends a copy of an initializer, unless there is one of its name."""
        if tensor.name not in self._constants:
            self.model.graph.initializer.append(self._check_init(tensor))
            self._constants[tensor.name] = self.model.graph.initializer[-1]

    def initializer_extend(self, inits: Collection[onnx.TensorProto]) -> None:
        """Appends copies of initializers."""
        for tensor in inits:
            self.model.graph.initializer.append(self._check_init(tensor))
            self._constants.setdefault(tensor.name, self.model.graph.initializer[-1])

    def replace_input_of_all_nodes(self, old_input_name: str, new_input_name: str) -> None:
        """Lets every reader of a tensor read another."""
        for node in self._readers.pop(old_input_name, []):
            ONNXModel.replace_node_input(node, old_input_name, new_input_name)
            self._readers[new_input_name].append(node)

    def replace_input_of_nodes(
        self, old_input_name: str, new_input_name: str, node_names_set: Collection[str]
    ) -> None:
        """Lets the readers of these names read another tensor."""
        for node in self._readers.pop(old_input_name, []):
            is_meant = node.name in node_names_set
            if is_meant:
                ONNXModel.replace_node_input(node, old_input_name, new_input_name)
            self._readers[new_input_name if is_meant else old_input_name].append(node)

    def replace_output_of_all_nodes(self, old_output_name: str, new_output_name: str) -> None:
        """Lets what makes a tensor make another."""
        for node in self._makers.pop(old_output_name, []):
            ONNXModel.replace_node_output(node, old_output_name, new_output_name)
            self._makers[new_output_name].append(node)
