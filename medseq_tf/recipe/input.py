"""The model's input: how slices are scaled, which of a study's are shown, how they are varied."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field, PositiveInt, field_validator

from medseq_tf.recipe.settings import Count, Fraction, Probability, Range, Settings, Slices, ordered

Per = Literal["slice", "sequence"]


class Input(Settings):
    """How a stored slice becomes the model's input, `(size, size, channels)` float32.

    8-bit photographs are scaled to [0, 1], all of 0..255 or a `grey_window` of it; 16-bit
    intensities (HU, MRI) first pass `windows` (one channel each) or, for MRI, the percentiles of
    their study. Then `(x - mean) / std`.
    """

    size: Annotated[int, Field(ge=8, le=1024)] = 64
    mean: float = 0.5
    std: Annotated[float, Field(gt=0)] = 0.3
    windows: (
        Annotated[list[tuple[float, Annotated[float, Field(gt=0)]]], Field(max_length=16)] | None
    ) = None
    """CT windows as (centre, width) in HU, one channel each; null for 8-bit slices."""
    grey_window: tuple[float, Annotated[float, Field(gt=0)]] | None = None
    """(centre, width) in grey levels 0..255, for 8-bit slices; null takes all of them."""
    percentiles: tuple[Probability, Probability] = (0.01, 0.99)
    """The quantiles of an MRI study's intensities that become 0 and 1."""
    neighbours: Annotated[int, Field(ge=0, le=4)] = 0
    """Slices of the study before and after each slice that join it as channels (1: 2.5-D, three
    channels); at the ends of the study the last slice is repeated."""

    @property
    def channels(self) -> int:
        """Channels of the model's input: each slice shown at once has all its windows."""
        return (2 * self.neighbours + 1) * (len(self.windows) if self.windows else 1)

    def slice_shape(self, channels: int = 1) -> tuple[int, int, int]:
        """Return the shape of the model's input for slices that are stored with some channels."""
        return (self.size, self.size, self.channels * channels)


class Evaluation(Settings):
    """Which slices of a study stand for it when a model is evaluated."""

    policy: Literal["paper", "all", "even"] = "even"
    """`paper`: every sequence of the paper's sampler, their probabilities averaged; `even`: slices
    spread evenly; `all`: every slice, in studies of more than `length` (where it is set) thinned
    evenly. Every study gets a prediction, in scan order."""
    length: Slices | None = None
    """Number of slices; null: as in training, for `all` no limit."""
    mirrored: bool = False
    """Whether each sequence is also shown mirrored left-right; the probabilities are averaged."""


class Sequence(Settings):
    """Which slices of a study make a sequence, and in what order.

    Policies, for a study of L slices and `length` n:
      paper   the paper's sampler: L < n gives n sequences of n sorted draws with replacement, L = n
              the study, L > n the L - n windows of n consecutive slices from 0 .. L-n-1
      all     every slice; a study of more than n is left out, or thinned evenly (`over`)
      window  `per_study` random windows of n neighbouring slices an epoch
      random  `per_study` random draws of n slices without replacement, sorted, an epoch
      even    n slices spread evenly over the study
    A study shorter than n is taken whole by `window`, `random` and `even`, unless `fill` is set:
    then slices are repeated, in order, until there are n.
    """

    policy: Literal["paper", "all", "window", "random", "even"] = "paper"
    length: Slices = 15
    over: Literal["leave_out", "thin"] = "thin"
    per_study: Count = 1
    fill: bool = False
    order: Literal["scan", "shuffled"] = "scan"
    """`shuffled`: a new random order of the slices every epoch of training (paper 2)."""
    evaluation: Evaluation = Evaluation()


class Rotation(Settings):
    """Rotation about the centre (paper 1: up to 180 degrees, a whole sequence; paper 2: 10)."""

    degrees: Annotated[float, Field(ge=0, le=180)] = 10.0
    p: Probability = 1.0
    per: Per = "sequence"


class ResizedCrop(Settings):
    """A random crop, brought back to full size (paper 2: zoom in up to 60%).

    `scale` is the share of the side that is kept: (0.4, 1.0) zooms in by up to 60%.
    """

    scale: Annotated[tuple[Probability, Probability], pydantic.AfterValidator(ordered)] = (
        0.4,
        1.0,
    )
    p: Probability = 1.0
    per: Per = "sequence"

    @field_validator("scale")
    @classmethod
    def _positive(cls, scale):
        if scale[0] <= 0:
            raise ValueError("the smallest share of the side must be above 0")
        return scale


class Flip(Settings):
    """Left-right mirroring."""

    p: Probability = 0.5
    per: Per = "sequence"


class GaussianNoise(Settings):
    """Gaussian noise, its variance drawn from a range on the 0..255 scale (paper 1: 1 to 7)."""

    variance: Range = (1.0, 7.0)
    p: Probability = 0.5
    per: Per = "slice"

    @field_validator("variance")
    @classmethod
    def _not_negative(cls, variance):
        if variance[0] < 0:
            raise ValueError("a variance is not negative")
        return variance


class GaussianBlur(Settings):
    """Gaussian blur, an odd kernel size drawn from a range (paper 1: 1 to 5; OpenCV's sigma)."""

    kernel: tuple[PositiveInt, PositiveInt] = (1, 5)
    p: Probability = 0.5
    per: Per = "slice"

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel):
        if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
            raise ValueError("kernel sizes are odd")
        if kernel[1] > 31:
            raise ValueError("the largest kernel is 31")
        return ordered(kernel)


class GridDistortion(Settings):
    """Cells of a `steps` x `steps` grid, stretched by up to `limit` (paper 1: 3 steps, p 0.3)."""

    steps: Annotated[int, Field(ge=1, le=16)] = 3
    limit: Fraction = 0.3
    p: Probability = 0.3
    per: Per = "slice"


class OpticalDistortion(Settings):
    """Barrel or pincushion distortion with a coefficient in ±`limit` (paper 1: p 0.4)."""

    limit: Fraction = 0.05
    p: Probability = 0.4
    per: Per = "slice"


class CoarseDropout(Settings):
    """Square holes filled with 0, after normalisation (paper 1's final choice) or before."""

    holes: Count = 8
    size: Annotated[int, Field(gt=0, le=1024)] = 8
    after_normalisation: bool = True
    p: Probability = 0.5
    per: Per = "slice"


class Augment(Settings):
    """Random changes in training, applied in the order of these fields; null leaves one off."""

    rotation: Rotation | None = None
    resized_crop: ResizedCrop | None = None
    flip: Flip | None = None
    gaussian_noise: GaussianNoise | None = None
    gaussian_blur: GaussianBlur | None = None
    grid_distortion: GridDistortion | None = None
    optical_distortion: OpticalDistortion | None = None
    coarse_dropout: CoarseDropout | None = None
