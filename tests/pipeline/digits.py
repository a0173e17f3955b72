"""Handwritten digits, and a convolution network that learns them in seconds.

`digits.npz`: images uint8 [1797, 8, 8] of 0 to 16, labels uint8 [1797]. E. Alpaydin and C. Kaynak, Optical Recognition
of Handwritten Digits (1998), UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0; the part that
scikit-learn distributes as `load_digits`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import ModuleExample

TRAINED = 1000
"""Images that are learned, and calibrated on; the others are held out."""
EPOCHS = 12


class Network(nn.Module):
    """A chain of convolutions, a residual sum, pools, a linear head; logits of 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.branch = nn.Conv2d(32, 32, 3, padding=1)
        self.back = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """images float32 [batch, 1, 8, 8]."""
        x = torch.relu(self.stem(images))
        x = nn.functional.max_pool2d(torch.relu(self.norm(self.second(x))), 2)
        x = torch.relu(x + self.back(torch.relu(self.branch(x))))
        return self.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images float32 [1797, 1, 8, 8] of 0 to 1, and labels int64 [1797]."""
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        return file["images"][:, None].astype(np.float32) / 16, file["labels"].astype(np.int64)


def train(path: Path) -> None:
    """Trains the network and writes its parameters to `path`."""
    torch.manual_seed(0)
    network = Network()
    images, labels = (torch.from_numpy(array[:TRAINED]) for array in digits())
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(TRAINED).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    torch.save(network.state_dict(), path)


def network() -> Network:
    """The trained network, from `digits.pt` in the current folder."""
    made = Network()
    made.load_state_dict(torch.load("digits.pt", weights_only=True))
    return made.eval()


def classifier() -> ModuleExample:
    """The batch is dynamic."""
    return ModuleExample(
        network(),
        {"images": torch.from_numpy(digits()[0][:3])},
        dynamic={"images": {0: "batch"}},
        limits={"batch": (1, 64)},
    )
