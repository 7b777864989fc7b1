"""The network: 28×28 pixels in, a log-probability for each class out; with ten classes, 9,798 parameters."""

import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """Three scales of 3×3 convolutions, then global average pooling.

    ``dropout``, in [0, 1), is the probability that an activation is dropped in training.
    The attributes have the names of the original notebook, so its saved weights can be loaded.
    The weights are initialised as PyTorch does by default, from the global random generator.
    """

    def __init__(self, dropout: float = 0.05, num_classes: int = 10) -> None:
        super().__init__()
        #                                               output    receptive field: side in pixels
        self.conv1 = nn.Conv2d(1, 10, 3, padding=1)  #  10×28×28   3
        self.bn1 = nn.BatchNorm2d(10)
        self.dropout1 = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(10, 16, 3, padding=1)  # 16×28×28   5
        self.bn2 = nn.BatchNorm2d(16)
        self.dropout2 = nn.Dropout(dropout)

        self.pool1 = nn.MaxPool2d(2)  #                 16×14×14   6
        self.conv1x1_1 = nn.Conv2d(16, 10, 1)  #        10×14×14   6
        self.conv3 = nn.Conv2d(10, 16, 3, padding=1)  # 16×14×14  10
        self.bn3 = nn.BatchNorm2d(16)
        self.dropout3 = nn.Dropout(dropout)
        self.conv4 = nn.Conv2d(16, 16, 3, padding=1)  # 16×14×14  14
        self.bn4 = nn.BatchNorm2d(16)
        self.dropout4 = nn.Dropout(dropout)

        self.pool2 = nn.MaxPool2d(2)  #                 16×7×7    16
        self.conv1x1_2 = nn.Conv2d(16, 10, 1)  #        10×7×7    16
        self.conv5 = nn.Conv2d(10, 16, 3, padding=1)  # 16×7×7    24
        self.bn5 = nn.BatchNorm2d(16)
        self.dropout5 = nn.Dropout(dropout)
        self.conv6 = nn.Conv2d(16, 16, 3, padding=1)  # 16×7×7    32
        self.bn6 = nn.BatchNorm2d(16)
        self.dropout6 = nn.Dropout(dropout)

        self.conv7 = nn.Conv2d(16, num_classes, 1)  #   10×7×7    32
        self.gap = nn.AdaptiveAvgPool2d(1)  #           10×1×1    the whole image

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images, (N, 1, 28, 28) or smaller, to log-probabilities, (N, num_classes)."""
        # ReLU is a function here, so it has no row in the summary table, as in the original.
        x = self.dropout1(self.bn1(F.relu(self.conv1(x), inplace=True)))
        x = self.dropout2(self.bn2(F.relu(self.conv2(x), inplace=True)))

        x = F.relu(self.conv1x1_1(self.pool1(x)), inplace=True)
        x = self.dropout3(self.bn3(F.relu(self.conv3(x), inplace=True)))
        x = self.dropout4(self.bn4(F.relu(self.conv4(x), inplace=True)))

        x = F.relu(self.conv1x1_2(self.pool2(x)), inplace=True)
        x = self.dropout5(self.bn5(F.relu(self.conv5(x), inplace=True)))
        x = self.dropout6(self.bn6(F.relu(self.conv6(x), inplace=True)))

        x = self.gap(self.conv7(x))
        return F.log_softmax(x.flatten(start_dim=1), dim=1)


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """Count the parameters of ``model``, all of them or only the trainable ones."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)
