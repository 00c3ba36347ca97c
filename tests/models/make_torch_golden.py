"""Takes nothing, gives torch_golden.npz: a small PyTorch network, slices, features and logits.

Run with PyTorch installed, from the root of the repository:

    python tests/models/make_torch_golden.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch_reference import Network, randomize

SETTINGS = {"positions": 3, "filters": (4, 6, 8), "units": 5, "hidden": 4}
ATTENTIONS = ("none", "softmax", "scaled")


def main():
    """Write the file beside this script."""
    torch.manual_seed(0)
    network = randomize(Network(**SETTINGS))
    slices = torch.randn(4, SETTINGS["positions"], 1, 64, 64)
    arrays = {f"tensor.{name}": tensor.numpy() for name, tensor in network.state_dict().items()}
    arrays["slices"] = slices.numpy().astype(np.float16)
    for attention in ATTENTIONS:
        for module in network.fsms.fsms:
            module.attention = attention
        with torch.no_grad():
            inputs = torch.from_numpy(arrays["slices"].astype(np.float32))
            arrays[f"features.{attention}"] = network.encode(inputs).numpy()
            arrays[f"logits.{attention}"] = network(inputs).numpy()
    np.savez_compressed(Path(__file__).with_name("torch_golden.npz"), **arrays)


if __name__ == "__main__":
    main()
