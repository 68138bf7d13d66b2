"""ResNet50 and DenseNet169 as ``keras.applications`` has them, from Keras' weights, in PyTorch.

Normalization stays as it was pretrained, so it is folded into the convolutions before it. With the
same weights the logits agree with those of Keras to 1e-5 in float32.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

FROZEN = ("conv1", "conv2", "pool2")
"""Stages that are not trained: those before conv3."""
_EPSILON = 1.001e-5
_CAFFE = (103.939, 116.779, 123.68)
_TORCH_MEAN, _TORCH_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Network:
    """A classifier as a function of its weights.

    Args:
        backbone: ``"resnet50"`` or ``"densenet169"``.
        size: (height, width) of its images.
        weights: By ``layer__weight``, as Keras stores them.
        device: Where to compute.
        dtype: In which to compute; weights and logits are float32.
    """

    def __init__(
        self,
        backbone: str,
        size: tuple[int, int],
        weights: Mapping[str, np.ndarray],
        device: torch.device,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.backbone, self.size, self._device, self._dtype = backbone, size, device, dtype
        self.values = {name: self._placed(value) for name, value in weights.items()}
        self._scales: dict[str, tuple[Tensor, Tensor]] = {}
        for name in [key.removesuffix("__gamma") for key in weights if key.endswith("__gamma")]:
            gamma, beta, mean, variance = (
                self.values[f"{name}__{part}"]
                for part in ("gamma", "beta", "moving_mean", "moving_variance")
            )
            scale = gamma / torch.sqrt(variance + _EPSILON)
            self._scales[name] = (scale, beta - mean * scale)
        self._affine = {
            name: tuple(part.to(dtype)[None, :, None, None] for part in parts)
            for name, parts in self._scales.items()
        }
        self._folded: dict[str, tuple[Tensor, Tensor | None]] = {}

    def _placed(self, value: np.ndarray) -> Tensor:
        tensor = torch.tensor(np.asarray(value, np.float32))
        if tensor.ndim == 4:
            tensor = tensor.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
        return tensor.to(self._device)

    @property
    def trained(self) -> list[str]:
        """Names of the weights that training changes."""
        kinds = ("__kernel", "__bias")
        return [
            name for name in self.values if name.endswith(kinds) and not name.startswith(FROZEN)
        ]

    def fold(self, trained: Sequence[str] = ()) -> None:
        """Fold normalization into all convolutions once, but for those that are trained."""
        layers = [
            name.removesuffix("__kernel")
            for name, value in self.values.items()
            if name.endswith("__kernel") and value.ndim == 4 and name not in trained
        ]
        with torch.no_grad():
            self._folded = {layer: self._fold(layer) for layer in layers}

    def stored(self, learned: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return all weights as Keras stores them, kernels in float16, learned ones replaced."""
        found = {}
        for name, value in self.values.items():
            value = learned.get(name, value).detach()
            array = (value.permute(2, 3, 1, 0) if value.ndim == 4 else value).cpu().numpy()
            found[name] = array.astype(np.float16) if array.ndim > 1 else array
        return found

    def __call__(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return logits, float32 (N, C), of images, float32 (N, 3, H, W), 0..255.

        ``keep``, float32 (N, features), is what dropout multiplies features by.
        """
        features = self._resnet(images) if self.backbone == "resnet50" else self._densenet(images)
        pooled = features.float().mean((2, 3))
        if keep is not None:
            pooled = pooled * keep
        return pooled @ self.values["logits__kernel"] + self.values["logits__bias"]

    def _fold(self, layer: str) -> tuple[Tensor, Tensor | None]:
        kernel, bias = self.values[f"{layer}__kernel"], self.values.get(f"{layer}__bias")
        follows = self.backbone == "resnet50" or layer == "conv1_conv" or layer.endswith("_1_conv")
        if follows:
            scale, shift = self._scales[layer.removesuffix("conv") + "bn"]
            kernel = kernel * scale[:, None, None, None]
            bias = shift if bias is None else bias * scale + shift
        kernel = kernel.to(self._dtype, memory_format=torch.channels_last)
        return kernel, None if bias is None else bias.to(self._dtype)

    def _convolved(self, x: Tensor, layer: str, stride: int = 1, padding: int = 0) -> Tensor:
        folded = self._folded.get(layer)
        kernel, bias = self._fold(layer) if folded is None else folded
        return functional.conv2d(x, kernel, bias, stride, padding)

    def _stem(self, x: Tensor) -> Tensor:
        x = x.to(self._dtype).contiguous(memory_format=torch.channels_last)
        x = functional.relu(self._convolved(x, "conv1_conv", 2, 3))
        return functional.max_pool2d(functional.pad(x, [1, 1, 1, 1]), 3, 2)

    def _row(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=self._device)[None, :, None, None]

    def _resnet(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            x = self._stem(images.flip(1) - self._row(_CAFFE))
            x = self._residual(x, "conv2", 3, 1)
        for stage, blocks in (("conv3", 4), ("conv4", 6), ("conv5", 3)):
            x = self._residual(x, stage, blocks, 2)
        return x

    def _residual(self, x: Tensor, stage: str, blocks: int, stride: int) -> Tensor:
        relu = functional.relu
        for number in range(1, blocks + 1):
            name, step = f"{stage}_block{number}", stride if number == 1 else 1
            short = self._convolved(x, f"{name}_0_conv", step) if number == 1 else x
            y = relu(self._convolved(x, f"{name}_1_conv", step))
            y = relu(self._convolved(y, f"{name}_2_conv", 1, 1))
            x = relu(self._convolved(y, f"{name}_3_conv") + short)
        return x

    def _densenet(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            x = (images / 255 - self._row(_TORCH_MEAN)) / self._row(_TORCH_DEVIATION)
            x = self._transition(self._dense(self._stem(x), "conv2", 6), "pool2")
        x = self._transition(self._dense(x, "conv3", 12), "pool3")
        x = self._transition(self._dense(x, "conv4", 32), "pool4")
        return self._normalized(self._dense(x, "conv5", 32), "bn")

    def _dense(self, x: Tensor, stage: str, blocks: int) -> Tensor:
        for number in range(1, blocks + 1):
            name = f"{stage}_block{number}"
            y = self._convolved(self._normalized(x, f"{name}_0_bn"), f"{name}_1_conv")
            y = self._convolved(functional.relu(y), f"{name}_2_conv", 1, 1)
            x = torch.cat([x, y], 1)
        return x

    def _transition(self, x: Tensor, name: str) -> Tensor:
        x = self._convolved(self._normalized(x, f"{name}_bn"), f"{name}_conv")
        return functional.avg_pool2d(x, 2, 2)

    def _normalized(self, x: Tensor, name: str) -> Tensor:
        scale, shift = self._affine[name]
        return torch.addcmul(shift, x, scale).relu_()
