"""Takes JPEG files of studies, gives PyTorch's and MONAI's batches of the paper's augmentations.

Every way does the same: 15 slices of a study, drawn and in order, 64 x 64, varied one by one
(Gaussian noise, blur, grid distortion, optical distortion, coarse dropout, as in the recipe
`fsm_bilstm_paper`), normalised, in batches. Where MONAI has no such transform (the optical
distortion) it calls OpenCV, as the others do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from monai import transforms
from monai.data import CacheDataset, DataLoader, PersistentDataset, set_track_meta
from torch.utils.data import Dataset

SIZE, LENGTH = 64, 15
MEAN, STD = 0.5, 0.3
P = {"noise": 0.5, "blur": 0.5, "grid": 0.3, "optical": 0.4, "dropout": 0.5}
VARIANCE, KERNELS, STEPS, LIMIT, BEND, HOLES, HOLE = (1, 7), (1, 3, 5), 3, 0.3, 0.05, 8, 8

Study = list[str]


# ----------------------------------------------------------------------------------------- OpenCV


def read(path: str) -> np.ndarray:
    """One slice, uint8 (64, 64)."""
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE)
    return cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def sample(count: int, rng: np.random.Generator) -> np.ndarray:
    """15 of so many slices, in order."""
    return np.sort(rng.choice(count, LENGTH, replace=count < LENGTH))


def bend(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Optical distortion of float32 (64, 64)."""
    k = rng.uniform(-BEND, BEND)
    camera = np.float32([[SIZE, 0, (SIZE - 1) / 2], [0, SIZE, (SIZE - 1) / 2], [0, 0, 1]])
    size = (SIZE, SIZE)
    coefficients = np.float32([k, k, 0, 0, 0])
    x, y = cv2.initUndistortRectifyMap(camera, coefficients, None, camera, size, cv2.CV_32FC1)
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def stretch(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grid distortion of float32 (64, 64)."""

    def coordinates() -> np.ndarray:
        extents = rng.uniform(1 - LIMIT, 1 + LIMIT, STEPS) * SIZE / STEPS
        edges = np.linspace(0, SIZE, STEPS + 1)
        return np.interp(np.arange(SIZE), edges, np.r_[0, np.cumsum(extents)]).astype(np.float32)

    x, y = np.meshgrid(coordinates(), coordinates())
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def vary(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Varies and normalises uint8 (64, 64)."""
    image = image.astype(np.float32) / 255
    if rng.random() < P["noise"]:
        std = np.sqrt(rng.uniform(*VARIANCE)) / 255
        noise = std * rng.standard_normal(image.shape, np.float32)
        image = np.clip(image + noise, 0, 1, dtype=np.float32)
    if rng.random() < P["blur"] and (kernel := int(rng.choice(KERNELS))) > 1:
        image = cv2.GaussianBlur(image, (kernel, kernel), 0)
    if rng.random() < P["grid"]:
        image = stretch(image, rng)
    if rng.random() < P["optical"]:
        image = bend(image, rng)
    image = (image - MEAN) / STD
    if rng.random() < P["dropout"]:
        for top, left in rng.integers(0, SIZE - HOLE + 1, (HOLES, 2)):
            image[top : top + HOLE, left : left + HOLE] = 0
    return image


class OpenCVDataset(Dataset):
    """Sequences of studies, decoded every time or, `cached`, once."""

    def __init__(self, studies: Sequence[Study], per_study: int, cached: bool):
        self.studies, self.per_study = studies, per_study
        self.images = [np.stack([read(p) for p in s]) for s in studies] if cached else None

    def __len__(self) -> int:
        return self.per_study * len(self.studies)

    def __getitem__(self, index: int) -> torch.Tensor:
        rng = np.random.default_rng(torch.randint(2**31, ()).item())
        study = index % len(self.studies)
        places = sample(len(self.studies[study]), rng)
        if self.images is None:
            slices = [read(self.studies[study][place]) for place in places]
        else:
            slices = self.images[study][places]
        return torch.from_numpy(np.stack([vary(image, rng) for image in slices])[..., None])


# ------------------------------------------------------------------------------------------ MONAI


class Read:
    """A study's slices by MONAI's reader, float32 (slices, 1, 64, 64) in [0, 1]."""

    def __init__(self):
        self.steps = transforms.Compose(
            [
                transforms.LoadImage(reader="PILReader", ensure_channel_first=True),
                transforms.Resize((SIZE, SIZE), mode="area"),
                transforms.ScaleIntensityRange(0, 255, 0, 1),
            ]
        )

    def __call__(self, study: Study) -> torch.Tensor:
        return torch.stack([torch.as_tensor(self.steps(path)) for path in study])


class Bend(transforms.RandomizableTransform):
    """`bend` as a MONAI transform."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        self.randomize(None)
        if not self._do_transform:
            return image
        rng = np.random.default_rng(self.R.randint(2**31))
        return torch.from_numpy(bend(image[0].numpy(), rng))[None]


class Draw(transforms.RandomizableTransform):
    """15 slices of a study, each varied by MONAI's transforms."""

    def __init__(self):
        super().__init__()
        noise = np.sqrt(VARIANCE[1]) / 255
        sigma = (0.3, 1.1)  # OpenCV's, of kernels of 1 to 5
        self.vary = transforms.Compose(
            [
                transforms.RandGaussianNoise(P["noise"], std=noise),
                transforms.RandGaussianSmooth(sigma, sigma, prob=P["blur"]),
                transforms.RandGridDistortion(
                    STEPS, P["grid"], (-LIMIT, LIMIT), padding_mode="reflection"
                ),
                Bend(P["optical"]),
                transforms.NormalizeIntensity(MEAN, STD),
                transforms.RandCoarseDropout(HOLES, HOLE, fill_value=0.0, prob=P["dropout"]),
            ]
        )

    def __call__(self, slices: torch.Tensor) -> torch.Tensor:
        rng = np.random.default_rng(self.R.randint(2**31))
        places = sample(len(slices), rng)
        varied = [torch.as_tensor(self.vary(slices[int(place)])) for place in places]
        return torch.stack(varied).permute(0, 2, 3, 1)


def loader(dataset: Dataset, batch_size: int, workers: int) -> DataLoader:
    """MONAI's DataLoader (PyTorch's, with a seed for each worker's transforms)."""
    several = {"multiprocessing_context": "spawn", "persistent_workers": True} if workers else {}
    return DataLoader(dataset, num_workers=workers, batch_size=batch_size, shuffle=True, **several)


def epochs(
    studies: Sequence[Study], per_study: int, batch_size: int, workers: int, cache: Path
) -> dict[str, Callable[[], int]]:
    """What passes once over all sequences and gives the number of slices, by name."""
    set_track_meta(False)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)  # as in a worker: on slices this small threads only wait
    steps = transforms.Compose([Read(), Draw()], map_items=False)
    repeated = [study for study in studies for _ in range(per_study)]
    datasets = {
        # One item a study; the sequences of a study are items that share its cache.
        "MONAI CacheDataset": CacheDataset(
            repeated, steps, progress=False, copy_cache=False, hash_as_key=True
        ),
        "MONAI PersistentDataset": PersistentDataset(repeated, steps, cache_dir=cache),
        "PyTorch, OpenCV": OpenCVDataset(studies, per_study, cached=False),
        "PyTorch, OpenCV, cached": OpenCVDataset(studies, per_study, cached=True),
    }
    loaders = {name: loader(data, batch_size, workers) for name, data in datasets.items()}

    def epoch(batches: DataLoader) -> int:
        return sum(batch.shape[0] * batch.shape[1] for batch in batches)

    return {name: lambda b=batches: epoch(b) for name, batches in loaders.items()}
