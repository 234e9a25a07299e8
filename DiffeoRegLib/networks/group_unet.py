"""A U-Net for sets of images: each sees itself and what the group has in common, at every level.

One encoder and decoder serve every image.  After every level an image's features f_k are joined with the
group's centre c and the spread about it,
    c = mean_k f_k, or f_p where the image p is fixed;  s = sqrt(mean_k (f_k - c)^2 + 1e-5),
and mixed by a convolution of one voxel; the images themselves are level 0.  So any number of images goes, and
images in another order give the same features in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from DiffeoRegLib.errors import SettingsError, ShapeError
from DiffeoRegLib.networks.unet import UNet, UNetConfig, UNetOptions, convolution

Common = tuple[Tensor, Tensor]
"""Centre and spread of a group at one level, (1, C, *grid) each."""
LEAST_SPREAD = 1e-5
COMMON_CHANNELS = 2
"""Channels of the input beside the image's own: centre and spread of the images."""

SLAB_VOXELS = 1 << 21
"""Of the finest level, computed at one time where nothing is remembered for a gradient."""


class SetUNet(UNet):
    """The layers of a `UNet` and a mixing layer per level of the encoder.

    config.channels_in: the image and its flags, and COMMON_CHANNELS.
    Raises SettingsError for a decoder of a single level.
    """

    def __init__(self, config: UNetConfig, options: UNetOptions | None = None) -> None:
        if len(config.decoder) < 2:
            raise SettingsError("A U-Net for sets needs two decoder levels or more.")
        super().__init__(config, options)
        self.mix = nn.ModuleList(
            nn.Sequential(convolution(config.dim)(3 * c, c, 1), nn.LeakyReLU(config.slope))
            for c in config.encoder
        )

    def forward(self, images: Tensor, fixed: int | None = None) -> Tensor:
        """(K, own channels, *shape) to (K, channels_out, *shape / stride), the first channel the image.

        fixed: the image that all others are compared with; None = with their mean.
        Raises ShapeError for another number of channels or axes, or axes the levels do not divide.
        """
        self._check(images)
        with self._autocast(images):
            own = images
            skips: list[Tensor] = []
            for level in range(len(self.down) + 1):
                if level:
                    own = self._run(self.down[level - 1], skips[-1])
                skips.append(self._joined(level, own, _common(_shared(level, own), fixed)))
            return self._decoded(skips).to(images.dtype)

    @torch.no_grad()
    def each(
        self,
        images: Sequence[Tensor],
        fixed: int | None,
        head: Callable[[Tensor], Tensor],
        wanted: Sequence[int] | None = None,
    ) -> Iterator[Tensor]:
        """What `head` makes of each image's features, (1, C, *grid), without the others in memory.

        images: K of (1, own channels, *shape), asked for several times.  The encoder runs again for every
        level, which costs next to nothing beside the decoder's finest level; that one is made in slabs.
        head: sees one voxel to either side.  wanted: indices of images, None = all.
        Raises ShapeError as `forward`.
        """
        commons: list[Common] = []
        order = sorted(range(len(images)), key=lambda k: k != fixed)
        for level in range(len(self.down) + 1):
            running = _Running(centred=fixed is None)
            for k in order:
                self._check(images[k])
                running.add(_shared(level, self._alone(images[k], commons, level)[-1]))
            commons.append(running.common())
        for k in range(len(images)) if wanted is None else wanted:
            with self._autocast(images[k]):
                skips = self._alone(images[k], commons, len(commons))
                made = self._in_slabs(skips, head)
            yield made.to(images[k].dtype)

    def _check(self, images: Tensor) -> None:
        wanted, multiple = self.config.channels_in - COMMON_CHANNELS, self.config.coarsest
        shape = images.shape[2:]
        if len(shape) != self.config.dim or images.shape[1] != wanted or any(n % multiple for n in shape):
            raise ShapeError(
                f"This network takes (K, {wanted}, *{self.config.dim}D shape), axes that are multiples of "
                f"{multiple}, not {tuple(images.shape)}."
            )

    def _autocast(self, images: Tensor) -> torch.autocast:
        half = self.options.precision == "bfloat16"
        return torch.autocast(images.device.type, torch.bfloat16, enabled=half)

    def _alone(self, image: Tensor, commons: Sequence[Common], level: int) -> list[Tensor]:
        """Joined features of one image at the levels whose commons are known, then its own at `level`."""
        with self._autocast(image):
            own = image
            held: list[Tensor] = []
            for step, common in enumerate(commons):
                if step:
                    own = self.down[step - 1](held[-1])
                held.append(self._joined(step, own, common))
            if level < len(self.down) + 1:
                held.append(self.down[level - 1](held[-1]) if level else own)
        return held

    def _joined(self, level: int, own: Tensor, common: Common) -> Tensor:
        both = [part.to(own.dtype).expand(len(own), *part.shape[1:]) for part in common]
        together = torch.cat([own, *both], 1)
        return self._run(self.mix[level - 1], together) if level else together

    def _in_slabs(self, skips: list[Tensor], head: Callable[[Tensor], Tensor]) -> Tensor:
        """The decoder of one image and its head; the finest level in slabs that overlap by what they see."""
        x = skips.pop()
        for level, block in enumerate(self.up[:-1]):
            x = self._run(block, x) if level == 0 else self._run(block, x, skips.pop())
        skip = skips.pop()
        seen = len(self.final) + 2
        rows, plane = skip.shape[2], skip[0, 0, 0].numel()
        step = max(2 * seen, SLAB_VOXELS // plane)
        parts = []
        for first in range(0, rows, step):
            last = min(first + step, rows)
            low, high = max(first - seen, 0) // 2, -(-min(last + seen, rows) // 2)
            enlarged = functional.interpolate(x[:, :, low:high], scale_factor=2, mode="nearest")
            part = self.up[-1](torch.cat([enlarged, skip[:, :, 2 * low : 2 * high].to(x.dtype)], 1))
            for block in self.final:
                part = block(part)
            parts.append(head(part)[:, :, first - 2 * low : last - 2 * low])
        return torch.cat(parts, 2)


class _Running:
    """Centre and spread of features that come one after the other; the fixed image's come first.

    centred: the centre is the mean.  Source of the mean's update: Welford, Technometrics 1962.
    """

    def __init__(self, centred: bool) -> None:
        self.centred, self.count = centred, 0
        self.centre = self.squares = torch.zeros(())

    def add(self, features: Tensor) -> None:
        """Those of one more image."""
        features = features.float() if features.dtype == torch.bfloat16 else features
        self.count += 1
        if self.count == 1:
            self.centre, self.squares = features, torch.zeros_like(features)
            return
        apart = features - self.centre
        if self.centred:
            self.centre = self.centre + apart / self.count
            self.squares = self.squares.addcmul(apart, features - self.centre)
        else:
            self.squares = self.squares.addcmul(apart, apart)

    def common(self) -> Common:
        """Of all that were added."""
        return self.centre, (self.squares / self.count + LEAST_SPREAD).sqrt()


def _shared(level: int, own: Tensor) -> Tensor:
    """What a group compares: all features of a level, but the images without their flags."""
    return own if level else own[:, :1]


def _common(features: Tensor, fixed: int | None) -> Common:
    # Sums over the group keep their digits: half precision would lose the smaller spreads.
    features = features.float() if features.dtype == torch.bfloat16 else features
    centre = features.mean(0, keepdim=True) if fixed is None else features[fixed : fixed + 1]
    spread = (features - centre).square().mean(0, keepdim=True)
    return centre, (spread + LEAST_SPREAD).sqrt()
