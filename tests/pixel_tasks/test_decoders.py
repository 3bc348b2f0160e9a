import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.models import resnet18

from mmcd.data.turns import turn_samples
from mmcd.losses.land_cover import soft_dice_classes, weighted_cross_entropy
from mmcd.models.decoders import DecodedTrunk, DoubleConvDecoder, stage_maps
from mmcd.models.trunk_features import TrunkFeatures
from mmcd.training.land_cover_task import PastisConfig


def trunk(bands: int = 3, frozen: bool = True, name="resnet18") -> TrunkFeatures:
    torch.manual_seed(0)
    made = TrunkFeatures(name, tuple(f"B{number}" for number in range(1, bands + 1)))
    return made.freeze() if frozen else made


def test_maps_are_those_of_torchvision_and_the_stem_is_the_bare_convolution():
    own, other, image = trunk(), resnet18().eval(), torch.randn(2, 3, 64, 96)
    own.load(other.state_dict())
    with torch.no_grad():
        stem = other.conv1(image)
        features = other.maxpool(other.relu(other.bn1(stem)))
        expected = [stem]
        for name in ("layer1", "layer2", "layer3", "layer4"):
            features = getattr(other, name)(features)
            expected.append(features)
    found = stage_maps(own, image)
    assert [each.shape[1] for each in found] == [64, 64, 128, 256, 512] and found[0].min() < 0
    for each, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(each, wanted)


@pytest.mark.parametrize(
    ("decoder", "name"),
    [("unet", "resnet18"), ("double_conv", "resnet18"), ("joined_conv", "resnet18"), ("unet", "swin_t")],
)
def test_logits_have_the_size_of_the_images(decoder, name):
    model = DecodedTrunk(trunk(4, name=name), 5, decoder).eval()
    with torch.inference_mode():
        assert model(torch.rand(2, 4, 32, 32)).shape == (2, 5, 32, 32)
        assert model(torch.rand(1, 4, 50, 70), torch.rand(1, 4, 50, 70)).shape == (1, 5, 50, 70)


def test_two_images_are_compared_by_the_absolute_difference_of_their_maps():
    model = DecodedTrunk(trunk(), 1).eval()
    before, after = torch.rand(2, 1, 3, 64, 64)
    torch.testing.assert_close(model(before, after), model(after, before))
    same = model(before, before)
    torch.testing.assert_close(same, model(after, after))
    assert (model(before, after) - same).abs().max() > 1e-4


def test_a_frozen_trunk_is_no_state_learns_nothing_and_keeps_its_statistics():
    frozen, tuned = DecodedTrunk(trunk(), 1), DecodedTrunk(trunk(frozen=False), 1)
    assert all(name.startswith("decoder.") for name in frozen.state_dict())
    assert any(name.startswith("trunk.body.7") for name in tuned.state_dict())
    for model, moves in ((frozen.train(), False), (tuned.train(), True)):
        body = (model._fixed[0] if model._fixed else model.trunk).body
        kernel, mean = body[0].weight.clone(), body[1].running_mean.clone()
        optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
        model(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)).square().mean().backward()
        optimiser.step()
        assert (not torch.equal(kernel, body[0].weight)) == moves
        assert (not torch.equal(mean, body[1].running_mean)) == moves
    assert frozen.double()._fixed[0].body[0].weight.dtype == torch.float64


def test_images_are_standardised_before_the_trunk():
    mean, std, image = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7]), torch.rand(1, 3, 32, 32)
    torch.manual_seed(1)
    plain = DecodedTrunk(trunk(), 2).eval()
    torch.manual_seed(1)
    scaled = DecodedTrunk(trunk(), 2, mean=mean[:, None, None], std=std[:, None, None]).eval()
    scaled.load_state_dict(plain.state_dict())
    prepared = (image - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(scaled(image), plain(prepared))


def test_names_and_widths_of_the_decoder_of_saco():
    with torch.device("meta"):
        state = DoubleConvDecoder((64, 256, 512, 1024, 2048), 1).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    outputs = [shapes[f"{number}.double_conv.0.weight"][:2] for number in range(4)]
    assert outputs == [(1024, 4096), (512, 2048), (256, 1024), (128, 512)]
    assert shapes["4.weight"] == (1, 128, 1, 1) and shapes["3.double_conv.3.weight"] == (128, 128, 3, 3)


def test_the_decoder_of_pastis_sees_a_level_again_before_its_second_convolution():
    with torch.device("meta"):
        model = DecodedTrunk(trunk(10), 20, "joined_conv")
    shapes = {name: tuple(value.shape) for name, value in model.decoder.state_dict().items()}
    kernels = [[shapes[f"{number}.conv_{each}.0.weight"][:2] for each in (1, 2)] for number in range(4)]
    assert kernels == [
        [(256, 1024), (256, 1280)],
        [(128, 512), (128, 640)],
        [(64, 256), (64, 320)],
        [(32, 128), (32, 160)],
    ]
    assert shapes["4.weight"] == (20, 32, 1, 1) and PastisConfig.model_fields["model"].default.decoder == "joined_conv"


def test_every_way_a_square_can_lie_and_all_layers_alike():
    square = torch.arange(9.0).reshape(3, 3)
    batch = {
        "image": square.expand(400, 2, 3, 3),
        "target": square.long().expand(400, 3, 3),
        "index": torch.arange(400),
    }
    turned = turn_samples(batch, ("image", "target"), torch.Generator().manual_seed(0))
    assert torch.equal(turned["image"][:, 1].long(), turned["target"])
    assert torch.equal(turned["index"], batch["index"])
    assert len({tuple(each.flatten().tolist()) for each in turned["target"]}) == 8
    wide = turn_samples({"image": torch.rand(50, 1, 2, 4)}, ("image",), torch.Generator().manual_seed(0))
    assert wide["image"].shape == (50, 1, 2, 4)
    mirrored = turn_samples(batch, ("target",), torch.Generator().manual_seed(0), quarters=False)
    assert len({tuple(each.flatten().tolist()) for each in mirrored["target"]}) == 4


def test_weighted_cross_entropy_equals_torch_and_looks_at_valid_pixels_alone():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 4, 5, 6), torch.randint(0, 4, (2, 5, 6))
    valid, weights = torch.rand(2, 5, 6) > 0.3, torch.tensor([0.5, 1.0, 2.0, 0.0])
    marked = target.masked_fill(~valid, -1)
    for weight in (None, weights):
        expected = F.cross_entropy(logits, marked, weight=weight, ignore_index=-1)
        torch.testing.assert_close(weighted_cross_entropy(logits, marked, valid, weight), expected)
    assert weighted_cross_entropy(logits, marked, torch.zeros_like(valid)) == 0


def test_dice_of_classes_equals_a_loop_over_them():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 5, 4, 4), torch.randint(0, 4, (2, 4, 4))  # nothing is of the last class
    valid = torch.rand(2, 4, 4) > 0.3
    probability, losses = logits.softmax(1).numpy(), []
    for number in range(4):
        own = [
            (probability[n, number, y, x], float(target[n, y, x] == number)) for n, y, x in np.argwhere(valid.numpy())
        ]
        overlap, total = sum(p * t for p, t in own), sum(p + t for p, t in own)
        losses.append(1 - (2 * overlap + 1) / (total + 1))
    found = soft_dice_classes(logits, target.masked_fill(~valid, -1), valid)
    torch.testing.assert_close(float(found), float(np.mean(losses)), rtol=1e-5, atol=1e-6)
    assert soft_dice_classes(logits, target, torch.zeros_like(valid)) == 0
