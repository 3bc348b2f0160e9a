"""Ways to make one feature map of two, at one scale of the fusion UNet."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcd.errors import ModelError

Fusion = Literal["concat", "absdiff", "cross_attention"]

_HEADS = 4
_ASKED = 16
"""Side of the grid that the asked image is pooled to: attention then costs the same a pixel at every scale."""


def build_fusion(fusion: Fusion, pre: int, post: int, outputs: int) -> nn.Module:
    """Return a module that takes features before and after, both (B, C, H, W), and returns (B, outputs, H, W).

    Args:
        fusion: Which way.
        pre: Channels before.
        post: Channels after.
        outputs: Channels of the result.

    Raises:
        ModelError: There is no such way.
    """
    if fusion == "concat":
        return ConcatFusion(pre + post, outputs, kernel_size=3, padding=1)
    if fusion == "absdiff":
        return DifferenceFusion(pre, post, outputs)
    if fusion == "cross_attention":
        return AttentionFusion(pre, post, outputs)
    raise ModelError(f"There is no fusion {fusion!r}.", "Choose from concat, absdiff, cross_attention.")


class ConcatFusion(nn.Conv2d):
    """Both feature maps side by side, one 3x3 convolution and ReLU: the reference's."""

    def forward(self, pre: Tensor, post: Tensor) -> Tensor:  # type: ignore[override]
        """Return the fused features."""
        return F.relu(super().forward(torch.cat([pre, post], dim=1)))


class DifferenceFusion(nn.Module):
    """The absolute difference, one 3x3 convolution and ReLU: blind to which image came first.

    Args:
        pre: Channels before.
        post: Channels after; brought to ``pre`` channels by a 1x1 convolution if they differ.
        outputs: Channels of the result.
    """

    def __init__(self, pre: int, post: int, outputs: int) -> None:
        super().__init__()
        self.align = nn.Identity() if pre == post else nn.Conv2d(post, pre, kernel_size=1)
        self.conv = nn.Conv2d(pre, outputs, kernel_size=3, padding=1)

    def forward(self, pre: Tensor, post: Tensor) -> Tensor:
        """Return the fused features."""
        return F.relu(self.conv((pre - self.align(post)).abs()))


class AttentionFusion(nn.Module):
    """Every place of one image asks the whole of the other, both ways with the same weights, then a 3x3 convolution.

    The asked image is pooled to a coarse grid (spatial reduction; Wang et al. 2021, PVT), so memory grows with the
    number of places and not with its square. Each image keeps its own features beside the answer: those are compared
    place by place.

    Args:
        pre: Channels before.
        post: Channels after.
        outputs: Channels of the result, a multiple of four.
    """

    def __init__(self, pre: int, post: int, outputs: int) -> None:
        super().__init__()
        self.reduce_pre = nn.Conv2d(pre, outputs, kernel_size=1)
        self.reduce_post = nn.Conv2d(post, outputs, kernel_size=1)
        self.norm = nn.GroupNorm(1, outputs)
        self.query = nn.Conv2d(outputs, outputs, kernel_size=1)
        self.key_value = nn.Conv2d(outputs, 2 * outputs, kernel_size=1)
        self.answer = nn.Conv2d(outputs, outputs, kernel_size=1)
        self.merge = nn.Conv2d(2 * outputs, outputs, kernel_size=3, padding=1)

    def forward(self, pre: Tensor, post: Tensor) -> Tensor:
        """Return the fused features."""
        pre, post = self.reduce_pre(pre), self.reduce_post(post)
        asked = [pre + self._ask(pre, post), post + self._ask(post, pre)]
        return F.relu(self.merge(torch.cat(asked, dim=1)))

    def _ask(self, asking: Tensor, asked: Tensor) -> Tensor:
        """Return what one image's places learn from the other, shape (B, C, H, W)."""
        grid = (min(asked.shape[-2], _ASKED), min(asked.shape[-1], _ASKED))
        query = _heads(self.query(self.norm(asking)))  # (B, heads, H W, C / heads)
        key, value = self.key_value(F.adaptive_avg_pool2d(self.norm(asked), grid)).chunk(2, dim=1)
        told = F.scaled_dot_product_attention(query, _heads(key), _heads(value))
        answer: Tensor = self.answer(told.transpose(2, 3).reshape(asking.shape))
        return answer


def _heads(features: Tensor) -> Tensor:
    """Return features of shape (B, C, H, W) as (B, heads, H W, C / heads)."""
    count, channels, height, width = features.shape
    return features.reshape(count, _HEADS, channels // _HEADS, height * width).transpose(2, 3)
