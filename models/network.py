"""A transformers model as a function of tensors, with an image's normalization inside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.depth_anything import MEAN, STD
from models.modules import ByName

# What else comes out beside the result of a head.
_BESIDE = ("hidden_state", "pooler_output")


@dataclass(frozen=True)
class Normalization:
    """How an RGB image in [0, 255] becomes pixel values: (image − mean) / std, a channel each."""

    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD
    is_bgr: bool = False
    """Whether the network reads blue first."""


class Network(ByName):
    """A transformers model; its images have ImageNet's normalization unless told otherwise.

    The result is the tensor called `output`, or, without one, its main outputs by name.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[str],
        output: str | None = None,
        normalization: Normalization | None = Normalization(),
    ) -> None:
        super().__init__(model, list(inputs))
        self.output = output
        self.normalization = normalization
        if normalization is not None:
            self.register_buffer("mean", torch.tensor(normalization.mean).reshape(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(normalization.std).reshape(1, 3, 1, 1))

    def forward(self, *tensors: Tensor) -> Any:
        """Pass the inputs on by name, images normalized."""
        inputs = dict(zip(self.names, tensors, strict=True))
        if "pixel_values" in inputs and self.normalization is not None:
            pixels = (inputs["pixel_values"] - self.mean) / self.std
            inputs["pixel_values"] = pixels.flip(1) if self.normalization.is_bgr else pixels
        result = self.module(**inputs, return_dict=True)
        return main_outputs(result) if self.output is None else result[self.output]


def main_outputs(result: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a model is for: the tensors that are no hidden state, or the first if all are."""
    tensors = {name: value for name, value in result.items() if isinstance(value, Tensor)}
    main = {n: t for n, t in tensors.items() if not any(word in n for word in _BESIDE)}
    return main or dict(list(tensors.items())[:1])
