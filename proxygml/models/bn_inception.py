"""BN-Inception, the paper's backbone, with the parameter names of the PyTorch port whose weights are commonly used.

It ends with the last feature map and has no classifier; pooling and the embedding layer are in head.py.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proxygml.errors import RecipeError, WeightsError


class InceptionBlock(NamedTuple):
    """Output channels of one inception block's convolutions.

    A block without `one` and `pool_proj` halves the resolution: its two branches have stride 2, and its pooled input is
    appended unchanged.
    """

    name: str
    one: int
    three_reduce: int
    three: int
    double_reduce: int
    double: int
    pool_proj: int
    pool: str

    @property
    def halves(self) -> bool:
        return self.one == 0


BLOCKS = (
    InceptionBlock("inception_3a", 64, 64, 64, 64, 96, 32, "avg"),
    InceptionBlock("inception_3b", 64, 64, 96, 64, 96, 64, "avg"),
    InceptionBlock("inception_3c", 0, 128, 160, 64, 96, 0, "max"),
    InceptionBlock("inception_4a", 224, 64, 96, 96, 128, 128, "avg"),
    InceptionBlock("inception_4b", 192, 96, 128, 96, 128, 128, "avg"),
    InceptionBlock("inception_4c", 160, 128, 160, 128, 160, 128, "avg"),
    InceptionBlock("inception_4d", 96, 128, 192, 160, 192, 128, "avg"),
    InceptionBlock("inception_4e", 0, 128, 192, 192, 256, 0, "max"),
    InceptionBlock("inception_5a", 352, 192, 320, 160, 224, 128, "avg"),
    InceptionBlock("inception_5b", 352, 192, 320, 192, 224, 128, "max"),
)


class BNInception(nn.Module):
    """BN-Inception without its classifier: 10,270,240 parameters.

    The architecture of Ioffe and Szegedy, "Batch Normalization", 2015, as in the Caffe model that the port's weights
    come from: each of the 69 convolutions has a bias and is followed by batch norm and ReLU.

    Attributes:
        num_features: channels of the feature map.
        mean, std: of the input, in the order R, G, B and for values in 0..1, as timm's configurations give them.
            For the network's own values in 0..255 they are (128, 117, 104) and 1.
        bgr: the network sees the channels in the order B, G, R.
    """

    num_features = 1024
    mean = (128 / 255, 117 / 255, 104 / 255)
    std = (1 / 255, 1 / 255, 1 / 255)
    bgr = True

    def __init__(self) -> None:
        super().__init__()
        self._add("conv1_7x7_s2", 3, 64, kernel=7, stride=2)
        self._add("conv2_3x3_reduce", 64, 64)
        self._add("conv2_3x3", 64, 192, kernel=3)
        channels = 192
        for block in BLOCKS:
            channels = self._add_block(block, channels)

    def _add(self, name: str, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        self.add_module(name, nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2))
        self.add_module(f"{name}_bn", nn.BatchNorm2d(outputs))

    def _add_block(self, block: InceptionBlock, inputs: int) -> int:
        """Add the block's layers, in the port's order, and return the number of its output channels."""
        name, stride = block.name, 2 if block.halves else 1
        if not block.halves:
            self._add(f"{name}_1x1", inputs, block.one)
        self._add(f"{name}_3x3_reduce", inputs, block.three_reduce)
        self._add(f"{name}_3x3", block.three_reduce, block.three, kernel=3, stride=stride)
        self._add(f"{name}_double_3x3_reduce", inputs, block.double_reduce)
        self._add(f"{name}_double_3x3_1", block.double_reduce, block.double, kernel=3)
        self._add(f"{name}_double_3x3_2", block.double, block.double, kernel=3, stride=stride)
        if not block.halves:
            self._add(f"{name}_pool_proj", inputs, block.pool_proj)
        return block.one + block.three + block.double + (inputs if block.halves else block.pool_proj)

    def forward(self, images: Tensor) -> Tensor:
        """The same as forward_features."""
        return self.forward_features(images)

    def forward_features(self, images: Tensor) -> Tensor:
        """Compute the last feature map.

        Args:
            images: float (M, 3, H, W) in the network's own input space: channels B, G, R, values in 0..255 less
                (104, 117, 128).

        Returns:
            (M, 1024, H / 32, W / 32): 7 x 7 for 224 x 224.

        Raises:
            RecipeError: the published network cannot take images of this size; multiples of 32 always fit.
        """
        features = self._convolve("conv1_7x7_s2", images)
        features = F.max_pool2d(features, 3, stride=2, ceil_mode=True)
        features = self._convolve("conv2_3x3_reduce", features)
        features = self._convolve("conv2_3x3", features)
        features = F.max_pool2d(features, 3, stride=2, ceil_mode=True)
        for block in BLOCKS:
            if block.halves and any(side % 2 for side in features.shape[-2:]):
                height, width = images.shape[-2:]
                raise RecipeError(
                    f"images of {height} x {width} pixels do not fit BN-Inception, whose {block.name} halves a feature "
                    f"map with sides {tuple(features.shape[-2:])}: make images.size (times "
                    "images.test_scale) a multiple of 32"
                )
            features = self._mix(block, features)
        return features

    def _convolve(self, name: str, features: Tensor) -> Tensor:
        features = self.get_submodule(name)(features)
        return F.relu(self.get_submodule(f"{name}_bn")(features), inplace=True)

    def _mix(self, block: InceptionBlock, features: Tensor) -> Tensor:
        name = block.name
        three = self._convolve(f"{name}_3x3", self._convolve(f"{name}_3x3_reduce", features))
        double = self._convolve(f"{name}_double_3x3_1", self._convolve(f"{name}_double_3x3_reduce", features))
        double = self._convolve(f"{name}_double_3x3_2", double)
        if block.halves:
            return torch.cat([three, double, F.max_pool2d(features, 3, stride=2, ceil_mode=True)], dim=1)
        pool = F.avg_pool2d if block.pool == "avg" else F.max_pool2d
        pooled = self._convolve(f"{name}_pool_proj", pool(features, 3, stride=1, padding=1))
        return torch.cat([self._convolve(f"{name}_1x1", features), three, double, pooled], dim=1)

    def load_port_weights(self, state: Mapping[str, Tensor]) -> None:
        """Load a state dict of the port, all of it or nothing.

        The classifier (`last_linear` or `fc`) is left out. Files from before PyTorch 0.4 have no `num_batches_tracked`
        and keep the vectors of the batch-norm layers as (1, C): both are taken.

        Raises:
            WeightsError: names are missing or unexpected, or shapes differ; the message gives them.
        """
        expected = self.state_dict()
        given = {name: tensor for name, tensor in state.items() if not name.startswith(("last_linear.", "fc."))}
        given = {name: tensor.squeeze(0) if _is_row(tensor) else tensor for name, tensor in given.items()}
        missing = [name for name in expected if name not in given and not name.endswith(".num_batches_tracked")]
        unexpected = [name for name in given if name not in expected]
        misshapen = [
            f"{name} is {tuple(given[name].shape)}, expected {tuple(expected[name].shape)}"
            for name in expected
            if name in given and given[name].shape != expected[name].shape
        ]
        kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
        problems = [f"{len(names)} {kind} ({_shortened(names)})" for kind, names in kinds.items() if names]
        if problems:
            raise WeightsError(
                f"the weights are not BN-Inception's: of its tensors, {'; '.join(problems)}. Expected "
                "the state dict of the PyTorch port (bn_inception-52deb4733.pth)"
            )
        self.load_state_dict({**expected, **given})


def _is_row(tensor: Tensor) -> bool:
    return tensor.dim() == 2 and tensor.shape[0] == 1


def _shortened(names: list[str], shown: int = 4) -> str:
    return ", ".join(names[:shown]) + (f", and {len(names) - shown} more" if len(names) > shown else "")
