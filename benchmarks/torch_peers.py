"""Takes settings, gives paper 1's network in PyTorch: as its code is built, and as fast as can be.

`Looped` is a Python loop over studies and positions, each slice through convolutions of its
position, every normalisation seeing one image. `Folded` has no loop: with weights shared by the
positions, slices stand in the batch axis; with weights per position, positions are the groups of
grouped convolutions. `tests/models/torch_reference.py`, which the Keras model is held to, is the
former.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "models"))

from torch_reference import Network as Looped

POSITIONS = 15


class Block(nn.Module):
    """Convolution of each position, batch normalisation, ReLU."""

    def __init__(self, channels, filters, kernel, stride, padding, positions, shared_statistics):
        super().__init__()
        self.positions = positions
        self.shared = shared_statistics
        self.convolution = nn.Conv2d(
            positions * channels, positions * filters, kernel, stride, padding, groups=positions
        )
        self.bn = nn.BatchNorm2d(filters if shared_statistics else positions * filters)

    def forward(self, maps):
        maps = self.convolution(maps)
        if self.shared and self.positions > 1:
            maps = maps.unflatten(1, (self.positions, -1))
            batch = maps.shape[0]
            return self.bn(maps.flatten(0, 1)).relu_().unflatten(0, (batch, -1)).flatten(1, 2)
        return self.bn(maps).relu_()


class Similarity(nn.Module):
    """Figure 8 with a softmax or without; theta, phi and g in one convolution."""

    def __init__(self, channels, positions, attention):
        super().__init__()
        self.positions, self.attention = positions, attention
        reduced = max(channels // 3, 4)
        projected = max(reduced // 2, 2)
        self.x = Block(channels, reduced, 3, 1, 1, positions, False)
        self.project = Block(reduced, 3 * projected, 1, 1, 0, positions, False)
        self.restore = Block(projected, reduced, 1, 1, 0, positions, False)
        self.expand = Block(reduced, channels, 3, 1, 1, positions, False)

    def forward(self, maps):
        x = self.x(maps)
        sides = x.shape[2:]
        by_place = self.project(x).unflatten(1, (self.positions, 3, -1)).flatten(4)
        theta, phi, g = (part.flatten(0, 1) for part in by_place.unbind(2))
        weights = theta.transpose(1, 2) @ phi
        if self.attention == "softmax":
            weights = weights.softmax(dim=-1)
        y = g @ weights.transpose(1, 2)
        y = y.unflatten(0, (maps.shape[0], -1)).flatten(1, 2).unflatten(2, sides)
        return self.expand(self.restore(y) + x) + maps


class Folded(nn.Module):
    """15 slices of 64 x 64 to one logit, without a loop over slices."""

    def __init__(self, positions=1, attention="softmax"):
        super().__init__()
        self.positions = positions
        self.stages = nn.Sequential(
            Block(1, 16, 11, 2, 0, positions, True),
            Block(16, 32, 5, 2, 1, positions, True),
            Block(32, 48, 5, 2, 0, positions, True),
            Similarity(48, positions, attention),
        )
        self.lstm = nn.LSTM(1200, 64, 3, batch_first=True, dropout=0.3, bidirectional=True)
        self.dense = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 1))

    def encode(self, slices):
        """`(batch, positions, 1, height, width)` to `(batch, positions, channels, h, w)`."""
        batch = slices.shape[0]
        maps = slices.flatten(0, 1) if self.positions == 1 else slices.flatten(1, 2)
        maps = self.stages(maps)
        return maps.reshape(batch, slices.shape[1], 48, *maps.shape[2:])

    def forward(self, slices):
        """`(batch, positions, 1, height, width)` to `(batch, 1)`."""
        final_states = self.lstm(self.encode(slices).flatten(2))[1][0]
        return self.dense(final_states[-1])

    def load_looped(self, looped: Looped) -> None:
        """Takes over the weights of a network that loops."""
        stages = [*looped.sequence_convolutions]
        for block, stage in zip(self.stages, stages, strict=False):
            _join(block.convolution, stage.convs)
            block.bn.load_state_dict(stage.bn.state_dict())
        similarity, modules = self.stages[-1], looped.fsms.fsms
        parts = {
            "x": ["for_x"],
            "project": ["for_theta", "for_phi", "for_g"],
            "restore": ["y_conv"],
            "expand": ["last_conv"],
        }
        for name, sources in parts.items():
            layers = [getattr(module, source).layer for module in modules for source in sources]
            block = getattr(similarity, name)
            _join(block.convolution, [layer[0] for layer in layers])
            for key, tensor in block.bn.state_dict().items():
                if tensor.ndim:
                    tensor.copy_(torch.cat([layer[1].state_dict()[key] for layer in layers]))
        self.lstm.load_state_dict(looped.lstm.state_dict())
        self.dense.load_state_dict(looped.dense.state_dict())


def _join(grouped: nn.Conv2d, convolutions) -> None:
    for name, tensor in grouped.state_dict().items():
        tensor.copy_(torch.cat([c.state_dict()[name] for c in convolutions]))


def check(positions: int) -> None:
    """Raises AssertionError unless `Folded` computes what `Looped` does."""
    generator = torch.Generator().manual_seed(0)
    slices = torch.randn((2, POSITIONS if positions > 1 else 3, 1, 64, 64), generator=generator)
    looped = Looped(positions=positions, attention="softmax").eval()
    folded = Folded(positions).eval()
    folded.load_looped(looped)
    if positions == 1:  # the loop has weights of each position's own
        expected = torch.cat([looped.encode(slices[:, [t]]) for t in range(slices.shape[1])], 1)
    else:
        expected = looped.encode(slices)
    torch.testing.assert_close(folded.encode(slices), expected, rtol=1e-4, atol=1e-4)


def training_step(network: nn.Module, slices, labels) -> Callable[[], float]:
    """Gives what does one update by AdamW and returns the loss."""
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)

    def step() -> float:
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(network(slices), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
