"""Random pictures of a label map: other contrast, bias, blur, noise and slices every time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.space.field import downsample_image, upsample_image
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.training.draws import log_uniform, normal, number, uniform, whole
from DiffeoRegLib.training.shapes import smooth_noise


@dataclass(frozen=True)
class ContrastOptions:
    """Largest sizes of what is drawn per image; intensities are in units of the image's range.

    texture: standard deviation within a label.  blur_vox: sigma.  bias: standard deviation of the logarithm
    of the smooth gain, bias_scale_vox its size.  noise: standard deviation.  gamma: power.
    thickest_slice: voxels averaged along one random axis, as in thick slices (partial volumes).
    same_probability: of both images of a pair having one contrast.
    dark_probability: of a background that is exactly black, as after removal of the skull.
    """

    texture: float = 0.08
    blur_vox: float = 1.0
    bias: float = 0.3
    bias_scale_vox: int = 40
    noise: float = 0.05
    gamma: float = 1.5
    thickest_slice: int = 3
    same_probability: float = 0.2
    dark_probability: float = 0.7

    def __post_init__(self) -> None:
        sizes = (self.texture, self.blur_vox, self.bias, self.noise)
        if min(sizes) < 0 or self.gamma < 1 or self.thickest_slice < 1 or self.bias_scale_vox < 2:
            raise SettingsError(
                "Sizes of contrasts are 0 or more, gamma and slices from 1, bias_scale_vox from 2."
            )
        if not all(0 <= chance <= 1 for chance in (self.same_probability, self.dark_probability)):
            raise SettingsError("Probabilities lie between 0 and 1.")


@dataclass(frozen=True, eq=False)
class Palette:
    """Mean and spread of every label, (labels,) each; dark: label 0 is exactly black at the end."""

    means: Tensor
    spreads: Tensor
    dark: bool


def palette(
    generator: torch.Generator, count: int, options: ContrastOptions, *, on_background: bool
) -> Palette:
    """Random intensities for the labels 0 ... count - 1."""
    means = uniform(generator, 0, 1, (count,))
    spreads = uniform(generator, 0, options.texture, (count,))
    dark = number(generator, 0, 1) < options.dark_probability and on_background
    if dark:
        means[0] = spreads[0] = 0.0
    return Palette(means, spreads, dark)


def picture(labels: Tensor, colours: Palette, generator: torch.Generator, options: ContrastOptions) -> Tensor:
    """An image (1, 1, *shape) in [0, 1] of a label map (1, 1, *shape) with a palette."""
    device, shape = labels.device, tuple(labels.shape[2:])
    image = colours.means.to(device)[labels]
    image = image + colours.spreads.to(device)[labels] * normal(generator, labels.shape).to(device)
    image = gaussian_smooth(image, number(generator, 0, options.blur_vox))
    image = _thick_slices(image, generator, options.thickest_slice)
    bias = number(generator, 0, options.bias) * smooth_noise(
        generator, 1, shape, options.bias_scale_vox, device
    )
    image = image * bias.exp()
    noise = number(generator, 0, options.noise)
    image = image + noise * normal(generator, labels.shape).to(device)
    image = _in_range(image) ** float(log_uniform(generator, options.gamma, (1,)))
    return image * (labels != 0) if colours.dark else image


def _thick_slices(image: Tensor, generator: torch.Generator, thickest: int) -> Tensor:
    """The image averaged over slices of a random axis and thickness, on its old grid."""
    shape = tuple(image.shape[2:])
    axis, thickness = whole(generator, 0, len(shape) - 1), whole(generator, 1, thickest)
    strides: Sequence[int] = [thickness if a == axis else 1 for a in range(len(shape))]
    return image if thickness == 1 else upsample_image(downsample_image(image, strides), strides, shape)


def _in_range(image: Tensor) -> Tensor:
    low, high = image.aminmax()
    return (image - low) / (high - low).clamp(min=1e-6)
