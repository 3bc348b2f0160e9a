import torch

from mmcd.models.unet import EarlyFusionUNet


def test_logit_for_every_pixel():
    model = EarlyFusionUNet(3, 2).eval()
    assert model(torch.randn(1, 3, 64, 96), torch.randn(1, 2, 64, 96)).shape == (1, 1, 64, 96)


def test_both_images_matter():
    torch.manual_seed(0)
    model = EarlyFusionUNet(3, 1).eval()
    pre, post = torch.randn(1, 3, 64, 64), torch.randn(1, 1, 64, 64)
    base = model(pre, post)
    assert not torch.allclose(base, model(pre.flip(3), post))
    assert not torch.allclose(base, model(pre, post.flip(3)))
