"""Takes settings, gives paper 1's network in PyTorch: a plain loop over studies and positions.

Written from the paper and from the names and shapes of the public code's tensors, attention . g
transposed as figure 8 and X-Net have it. It is what the Keras model is held to.
"""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    """Convolution 'same', batch normalisation, ReLU."""

    def __init__(self, channels, filters, size):
        super().__init__()
        self.layer = nn.Sequential(
            nn.Conv2d(channels, filters, size, padding=size // 2),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
        )

    def forward(self, maps):
        return self.layer(maps)


class SimilarityModule(nn.Module):
    """Figure 8 without a softmax, or with one."""

    def __init__(self, channels, attention):
        super().__init__()
        self.attention = attention
        reduced = max(channels // 3, 4)
        projected = max(reduced // 2, 2)
        self.for_x = Block(channels, reduced, 3)
        self.for_theta = Block(reduced, projected, 1)
        self.for_phi = Block(reduced, projected, 1)
        self.for_g = Block(reduced, projected, 1)
        self.y_conv = Block(projected, reduced, 1)
        self.last_conv = Block(reduced, channels, 3)

    def forward(self, maps):
        x = self.for_x(maps)
        theta, phi, g = (
            branch(x).flatten(2) for branch in (self.for_theta, self.for_phi, self.for_g)
        )
        weights = torch.einsum("nci,ncj->nij", theta, phi)
        if self.attention == "softmax":
            weights = weights.softmax(dim=-1)
        elif self.attention == "scaled":
            weights = weights / weights.shape[-1]
        y = torch.einsum("nij,ncj->nci", weights, g).unflatten(2, x.shape[2:])
        return self.last_conv(self.y_conv(y) + x) + maps


class PositionConvolutions(nn.Module):
    """One convolution a position, one batch normalisation for all."""

    def __init__(self, channels, filters, kernel, stride, padding, positions):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, filters, kernel, stride, padding) for _ in range(positions)
        )
        self.bn = nn.BatchNorm2d(filters)


class PositionModules(nn.Module):
    """One similarity module a position."""

    def __init__(self, channels, positions, attention):
        super().__init__()
        self.fsms = nn.ModuleList(SimilarityModule(channels, attention) for _ in range(positions))


class Network(nn.Module):
    """15 slices of 64 x 64 to one logit, by default; every size is an argument."""

    def __init__(
        self,
        positions=15,
        size=64,
        filters=(16, 32, 48),
        kernels=(11, 5, 5),
        strides=(2, 2, 2),
        paddings=(0, 1, 0),
        units=64,
        hidden=32,
        layers=3,
        attention="none",
    ):
        super().__init__()
        stages, channels = [], 1
        stage_settings = zip(filters, kernels, strides, paddings, strict=True)
        for count, kernel, stride, padding in stage_settings:
            stages.append(PositionConvolutions(channels, count, kernel, stride, padding, positions))
            channels, size = count, (size + 2 * padding - kernel) // stride + 1
        self.sequence_convolutions = nn.Sequential(*stages)
        self.fsms = PositionModules(channels, positions, attention)
        self.lstm = nn.LSTM(
            channels * size * size, units, layers, batch_first=True, bidirectional=True
        )
        self.dense = nn.Sequential(
            nn.Linear(units, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 1)
        )

    def encode(self, slices):
        """`(batch, positions, 1, height, width)` to `(batch, positions, channels, h, w)`."""
        features = []
        for study in slices:
            for position, image in enumerate(study):
                maps = image[None]
                for stage in self.sequence_convolutions:
                    maps = stage.bn(stage.convs[position](maps)).relu()
                features.append(self.fsms.fsms[position](maps)[0])
        return torch.stack(features).unflatten(0, slices.shape[:2])

    def forward(self, slices):
        """`(batch, positions, 1, height, width)` to `(batch, 1)`."""
        final_states = self.lstm(self.encode(slices).flatten(2))[1][0]
        return self.dense(final_states[-1])


def randomize(network, seed=0):
    """Draw every tensor so widely that each of them shows in the logits."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, scale):
        tensor.data = torch.randn(tensor.shape, generator=generator) * scale

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data = torch.rand(tensor.shape, generator=generator) + 0.5
            normal(module.bias, 0.3)
            normal(module.running_mean, 0.3)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            normal(module.weight, 1.5 / module.weight[0].numel() ** 0.5)
            normal(module.bias, 0.3)
        elif isinstance(module, nn.LSTM):
            for tensor in module.parameters():
                normal(tensor, 1.5 / tensor.shape[-1] ** 0.5 if tensor.ndim == 2 else 0.3)
    return network.eval()
