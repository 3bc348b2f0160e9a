import pytest
import torch

from mmcd.models.encoders import Branch, Encoder, Span


@pytest.mark.parametrize(("channels", "trunk", "levels"), [(1, "resnet18", 3), (4, "resnet34", 4), (13, "resnet18", 4)])
def test_strides_and_channels(channels, trunk, levels):
    features = Encoder(channels, trunk, levels).eval()(torch.zeros(1, channels, 64, 64))
    widths = [64, 64, 128, 256, 512][: levels + 1]
    assert [tuple(level.shape[1:]) for level in features] == [
        (width, 32 >> depth, 32 >> depth) for depth, width in enumerate(widths)
    ]


def test_deep_stages_can_keep_stride_8():
    for deep in ("kept", "dilated"):
        features = Encoder(3, "resnet18", 4, deep).eval()(torch.zeros(1, 3, 64, 64))
        assert features[-1].shape == (1, 512, 8, 8)


def test_dilated_equals_halving_at_its_own_positions():
    halving, dilated = Encoder(2, "resnet18", 4), Encoder(2, "resnet18", 4, "dilated")
    dilated.load_state_dict(halving.state_dict())
    image = torch.randn(1, 2, 128, 128)
    coarse, fine = halving.eval()(image)[-1], dilated.eval()(image)[-1]
    torch.testing.assert_close(fine[..., ::4, ::4], coarse, atol=1e-4, rtol=1e-4)


def test_span_is_the_receptive_field_of_resnet18():
    encoder = Encoder(3, "resnet18", 3)
    assert encoder.span(0, Span(0, 0)) == Span(-3, 3)
    # 1 + 2 * 105: published receptive field of ResNet-18's layer3 is 211 px
    assert encoder.span(3, Span(0, 0)) == Span(-105, 105)
    assert encoder.span(3, Span(2, 2)) == Span(32 - 105, 32 + 105)


@pytest.mark.parametrize("dilated", [False, True])
def test_branch_span_equals_the_gradient(dilated):
    """With positive weights no ReLU closes; on a slope the pooling's maximum is the outermost pixel of one side."""
    branch = Branch(1, "resnet18", 8, dilated).eval()
    for parameter in branch.parameters():
        parameter.data.fill_(0.01)
    slope = torch.linspace(1, 2, 512).expand(1, 1, 16, 512)
    ends = []
    for image in (slope.clone().requires_grad_(), slope.flip(3).requires_grad_()):
        branch(image).pyramid[0, :, :, 33].sum().backward()
        ends += image.grad[0, 0].abs().sum(dim=0).nonzero().flatten().tolist()
    assert branch.span(Span(33, 33)) == Span(min(ends), max(ends))
