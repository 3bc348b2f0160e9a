"""The plain baseline: both images stacked into one U-Net."""

import torch
from torch import Tensor, nn

from mmcd.models.encoders import STAGE_CHANNELS, Encoder, TrunkName, conv_block, nearest

_DECODER_CHANNELS = (256, 128, 64, 32, 16)


class EarlyFusionUNet(nn.Module):
    """A U-Net with a ResNet trunk over the stacked bands of both images (Ronneberger et al. 2015).

    It is the baseline that every result is shown beside: no branches, no embeddings, no bounded reach.

    Args:
        pre_channels: Bands of the image before.
        post_channels: Bands of the image after.
        trunk: ResNet-18 or ResNet-34.
    """

    def __init__(self, pre_channels: int, post_channels: int, trunk: TrunkName = "resnet18") -> None:
        super().__init__()
        self.encoder = Encoder(pre_channels + post_channels, trunk, levels=4)
        skips = (*STAGE_CHANNELS[-2::-1], 0)
        inputs = (STAGE_CHANNELS[-1], *_DECODER_CHANNELS)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv_block(below + skip, out, kernel_size=3), conv_block(out, out, kernel_size=3))
            for below, skip, out in zip(inputs, skips, _DECODER_CHANNELS, strict=False)
        )
        self.logit = nn.Conv2d(_DECODER_CHANNELS[-1], 1, kernel_size=1)

    def forward(self, pre: Tensor, post: Tensor) -> Tensor:
        """Return the logit of change, shape (B, 1, H, W), float32; H and W are multiples of 32."""
        *skips, features = self.encoder(torch.cat([pre, post], dim=1))
        for block in self.blocks:
            features = nearest(features)
            if skips:
                features = torch.cat([features, skips.pop()], dim=1)
            features = block(features)
        return self.logit(features).float()  # type: ignore[no-any-return]
