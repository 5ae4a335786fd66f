"""Conv4: four convolution blocks, the small backbone that few-shot papers use for drawn and printed characters.

It trains from random weights on a laptop. Source: Vinyals et al., "Matching Networks for One Shot Learning",
NeurIPS 2016; the widths are ours.
"""

from itertools import pairwise

from torch import Tensor, nn


class Conv4(nn.Module):
    """Four blocks of 3 x 3 convolution, batch norm, ReLU and 2 x 2 max pooling.

    Attributes:
        num_features: channels of the feature map.
    """

    num_features = 256

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 64, 128, 192, self.num_features)
        self.blocks = nn.Sequential(*(_block(*pair) for pair in pairwise(widths)))

    def forward_features(self, images: Tensor) -> Tensor:
        """(M, 3, H, W) normalised images -> (M, 256, H // 16, W // 16); H and W at least 16."""
        features: Tensor = self.blocks(images)
        return features


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )
