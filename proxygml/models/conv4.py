"""Conv4: four convolution blocks, the small backbone that few-shot papers use for drawn and printed characters.

It trains from random weights on a laptop. Source: Vinyals et al., "Matching Networks for One Shot Learning",
NeurIPS 2016; the widths are ours.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

WIDTHS = (64, 128, 192, 256)
SMALL_WIDTHS = (32, 64, 128, 256)
"""Half the time: all blocks then cost about the same."""


class Conv4(nn.Module):
    """Four blocks of 3 x 3 convolution, batch norm, ReLU and 2 x 2 max pooling.

    Args:
        widths: the output channels of each block.

    Attributes:
        num_features: channels of the feature map, those of the last block.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.num_features = widths[-1]
        self.blocks = nn.Sequential(*(_block(*pair) for pair in pairwise((3, *widths))))

    def forward_features(self, images: Tensor) -> Tensor:
        """(M, 3, H, W) normalised images -> (M, num_features, H // 16, W // 16); H and W at least 16."""
        features: Tensor = self.blocks(images)
        return features


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )
