"""The network: 9,798 parameters, one digit in, ten log-probabilities out."""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Sequential):
    """Convolution 3×3, ReLU, batch norm, dropout: (N, in, H, W) to (N, out, H, W)."""

    # A Sequential, as torchsummary lists the parts of one and not the whole;
    # ReLU is a function here because the original's table has no row for it.

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, dropout = self
        out: Tensor = dropout(norm(F.relu(conv(x), inplace=True)))
        return out


class Shrink(nn.Sequential):
    """Max pool 2×2, convolution 1×1, ReLU: (N, in, H, W) to (N, out, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.MaxPool2d(2), nn.Conv2d(in_channels, out_channels, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        pool, conv = self
        return F.relu(conv(pool(x)), inplace=True)


class Net(nn.Module):
    """Three scales of 3×3 convolutions, then an average over the picture for each digit.

    ``dropout``, in [0, 1), is the share of activations that each block drops in training.
    The initialisation is PyTorch's default, drawn from the global generator.
    """

    def __init__(self, dropout: float = 0.05) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Block(1, 10, dropout),
            Block(10, 16, dropout),
            Shrink(16, 10),
            Block(10, 16, dropout),
            Block(16, 16, dropout),
            Shrink(16, 10),
            Block(10, 16, dropout),
            Block(16, 16, dropout),
            nn.Conv2d(16, 10, kernel_size=1),
            nn.AdaptiveAvgPool2d(1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 1, 28, 28), float32 and normalised, to log-probabilities (N, 10)."""
        logits = self.layers(x).flatten(start_dim=1)
        return F.log_softmax(logits, dim=1)
