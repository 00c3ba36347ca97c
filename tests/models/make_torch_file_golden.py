"""Takes nothing, gives torch_file_golden.pth and .npz: tensors as PyTorch's older format has them.

Run with PyTorch installed, from the root of the repository:

    python tests/models/make_torch_file_golden.py
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch


def main():
    """Write the files beside this script."""
    torch.manual_seed(0)
    whole = torch.randn(4, 3, 2, 5)
    state = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3)).state_dict()
    state = OrderedDict(
        state,
        turned=torch.randn(5, 7).T,
        channels_last=torch.randn(2, 3, 4, 5).permute(0, 2, 3, 1),
        part=whole[1:3, :, 1, ::2],
        whole=whole,
        again=whole,
        number=torch.tensor(-7),
        numbers=torch.arange(6).reshape(2, 3),
    )
    folder = Path(__file__).parent
    torch.save(state, folder / "torch_file_golden.pth", _use_new_zipfile_serialization=False)
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    np.savez_compressed(folder / "torch_file_golden.npz", **arrays)


if __name__ == "__main__":
    main()
