"""Image operations of torchvision v2 with parameters of its own for every image of a batch.

torchvision changes all images of a batch alike; pretraining needs a crop and a colour of its own for each, without a
loop over them. Every function gives what its namesake in `torchvision.transforms.v2.functional` gives image by image.
N is the number of images, C of bands; images are float32 in [0, 1] and stay on their device.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from mmcd.errors import DataError


def crop_boxes(
    count: int,
    shape: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
    tries: int = 10,
) -> Tensor:
    """Draw boxes as ``RandomResizedCrop`` does: a share of the area and a ratio of sides, until one fits.

    Args:
        count: How many.
        shape: Height and width of the images.
        scale: Least and greatest share of the area.
        ratio: Least and greatest width over height.
        generator: Source of all randomness, on the CPU.
        tries: Draws before the largest box in the middle is taken.

    Returns:
        Top, left, height and width in whole pixels, shape (N, 4), int64.
    """
    height, width = shape
    area = height * width * (scale[0] + (scale[1] - scale[0]) * torch.rand(count, tries, generator=generator))
    logs = math.log(ratio[0]), math.log(ratio[1])
    aspect = (logs[0] + (logs[1] - logs[0]) * torch.rand(count, tries, generator=generator)).exp()
    wide, high = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    sides = torch.cat([high.gather(1, first), wide.gather(1, first)], dim=1)
    room = torch.tensor([height, width]) - sides + 1
    start = (torch.rand(count, 2, generator=generator) * room).long().minimum(room - 1)
    kept = torch.tensor([min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))])
    middle = (torch.tensor([height, width]) - kept) // 2
    return torch.where(fits.any(dim=1, keepdim=True), torch.cat([start, sides], 1), torch.cat([middle, kept]))


def resized_crop(images: Tensor, boxes: Tensor, size: int, mirrored: Tensor | None = None) -> Tensor:
    """Cut a box out of every image and resize it, bilinearly with antialiasing, by one matrix for each axis.

    Args:
        images: Shape (N, C, H, W).
        boxes: Top, left, height and width, shape (N, 4).
        size: Height and width of the result.
        mirrored: Which results are mirrored from left to right, shape (N,), bool; None mirrors none.

    Returns:
        Shape (N, C, size, size).
    """
    rows = _resampling(boxes[:, 0], boxes[:, 2], size, images.shape[2])
    columns = _resampling(boxes[:, 1], boxes[:, 3], size, images.shape[3])
    if mirrored is not None:
        columns = torch.where(mirrored.cpu()[:, None, None], columns.flip(1), columns)
    rows, columns = rows.to(images), columns.to(images)
    return rows[:, None] @ images @ columns[:, None].mT


def _resampling(start: Tensor, length: Tensor, size: int, full: int) -> Tensor:
    """Return the weight of each of ``full`` pixels in each of ``size`` new ones, shape (N, size, full), float32."""
    start, length = start[:, None, None].cpu().double(), length[:, None, None].cpu().double()
    step = length / size
    middle = start + step * (torch.arange(size, dtype=torch.float64)[:, None] + 0.5)
    pixel = torch.arange(full, dtype=torch.float64) + 0.5
    weight = (1 - (pixel - middle).abs() / step.clamp(min=1)).clamp(min=0)
    weight = weight * ((pixel > start) & (pixel < start + length))
    return (weight / weight.sum(dim=2, keepdim=True)).float()


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply every image by its factor.

    Args:
        images: Shape (N, C, H, W).
        factors: Shape (N,), or (N, C) for a factor for each band.
    """
    return (images * _spread(factors, images)).clamp(0, 1)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Blend every image with the mean of its grey image.

    Args:
        images: Shape (N, 3, H, W).
        factors: 0 leaves the mean, 1 the image, shape (N,).
    """
    return _blend(images, _grey(images).mean(dim=(1, 2, 3), keepdim=True), _spread(factors, images))


def adjust_band_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Blend every band, as an image of its own, with its mean.

    Args:
        images: Shape (N, C, H, W).
        factors: Shape (N, C).
    """
    return _blend(images, images.mean(dim=(2, 3), keepdim=True), _spread(factors, images))


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Blend every image with its grey image.

    Args:
        images: Shape (N, 3, H, W).
        factors: 0 leaves the grey image, 1 the image, shape (N,).
    """
    return _blend(images, _grey(images), _spread(factors, images))


def adjust_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of every image.

    Args:
        images: Shape (N, 3, H, W).
        turns: Parts of the full circle, shape (N,).
    """
    value, place = images.max(dim=1)
    spread = value - images.amin(dim=1)
    divisor = torch.where(spread > 0, spread, 1)
    red, green, blue = images.unbind(dim=1)
    sector = torch.stack([(green - blue) / divisor, 2 + (blue - red) / divisor, 4 + (red - green) / divisor])
    hue = sector.gather(0, place[None])[0] + 6 * _spread(turns, images)[:, 0]
    bands = []
    for offset in (5, 3, 1):  # red, green and blue as functions of the hue
        angle = (offset + hue) % 6
        bands.append(value - spread * torch.minimum(angle, 4 - angle).clamp(0, 1))
    return torch.stack(bands, dim=1)


def grayscale(images: Tensor, chosen: Tensor) -> Tensor:
    """Take the colour from the chosen images.

    Args:
        images: Shape (N, 3, H, W).
        chosen: Shape (N,), bool.
    """
    return torch.where(_spread(chosen, images), _grey(images).expand_as(images), images)


def gaussian_blur(images: Tensor, sigmas: Tensor, radius: int) -> Tensor:
    """Blur every image by its own Gaussian.

    Args:
        images: Shape (N, C, H, W).
        sigmas: Standard deviations in pixels, shape (N,).
        radius: Pixels to each side that a kernel reaches.

    Raises:
        DataError: The images are not larger than the radius.
    """
    count, bands, height, width = images.shape
    if radius >= min(height, width):
        raise DataError(
            f"Images of {width} × {height} px are too small for a blur that reaches {radius} px.",
            "Give larger images, or a smaller blur.",
        )
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = (-0.5 * (offset / sigmas.cpu().double()[:, None]) ** 2).exp()
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(bands, 0).to(images)
    planes = F.pad(images, (radius,) * 4, mode="reflect").flatten(0, 1)[None]
    across = F.conv2d(planes, kernel[:, None, None, :], groups=count * bands)
    return F.conv2d(across, kernel[:, None, :, None], groups=count * bands).reshape(images.shape)


def rotate(images: Tensor, angles: Tensor) -> Tensor:
    """Turn every image about its middle, bilinearly; what comes from beyond its edge is 0.

    Args:
        images: Shape (N, C, H, W).
        angles: Radians, counter-clockwise, shape (N,).
    """
    height, width = images.shape[-2:]
    cos, sin, nought = angles.cos(), angles.sin(), torch.zeros_like(angles)
    rows = torch.stack([cos, -sin * (height / width), nought], 1), torch.stack([sin * (width / height), cos, nought], 1)
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False).to(images)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _blend(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    return (factors * images + (1 - factors) * others).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    grey: Tensor = TF.rgb_to_grayscale(images)
    return grey


def _spread(values: Tensor, images: Tensor) -> Tensor:
    """Return values of shape (N,) or (N, C) ready to broadcast over images, on their device."""
    return values.reshape(len(values), -1, 1, 1).to(images.device)
