import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from mmcd.errors import ModelError
from mmcd.losses.overlap import combined_iou
from mmcd.models import zoo
from mmcd.models.fusion_unet import FusionUNet, load_reference, refuse_random_trunk
from mmcd.models.trunks import FEATURE_TRUNKS, build_stages, scales_of, trunk_of

META = torch.device("meta")
FUSIONS = ("concat", "absdiff", "cross_attention")
REFERENCE_SHAPES = {
    "encoder1.0.weight": (64, 3, 7, 7),
    "encoder2.0.conv1.weight": (64, 64, 1, 1),
    "encoder5.2.conv3.weight": (2048, 512, 1, 1),
    "fuse1.weight": (64, 128, 3, 3),
    "fuse2.weight": (128, 512, 3, 3),
    "fuse3.weight": (256, 1024, 3, 3),
    "fuse4.weight": (512, 2048, 3, 3),
    "fuse5.weight": (512, 4096, 3, 3),
    "decoder5.weight": (512, 512, 2, 2),
    "decoder4.weight": (1024, 256, 2, 2),
    "decoder3.weight": (512, 128, 2, 2),
    "decoder2.weight": (64, 256, 3, 3),
    "decoder1.weight": (128, 1, 2, 2),
}


def meta(*channels: int, **settings: object) -> FusionUNet:
    """A model without values: shapes and names only."""
    with META:
        return FusionUNet(*channels, **settings)


@pytest.fixture(scope="module")
def small() -> FusionUNet:
    torch.manual_seed(0)
    return FusionUNet(trunk="resnet18", embed_dim=32).eval()


def images(height: int = 64, width: int = 64, bands: tuple[int, int] = (3, 3)) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(2, band, height, width, generator=random) for band in bands]


def counts(model: nn.Module) -> tuple[int, int]:
    """Return trainable and frozen parameters."""
    numbers = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in numbers if trained), sum(n for n, trained in numbers if not trained)


# --- the reference form ---


def test_default_is_the_reference_form():
    model = meta()
    assert counts(model) == (33_846_017, 23_508_032)
    assert sum(p.numel() for p in model.parameters()) == 57_354_049
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert REFERENCE_SHAPES.items() <= shapes.items()
    modules = {name.split(".")[0] for name in shapes}
    numbered = {f"{word}{level}" for word in ("encoder", "fuse", "decoder") for level in range(1, 6)}
    assert modules == numbered | {f"decoder{level}_bn" for level in range(2, 6)}


def test_finetuning_trains_everything():
    assert counts(meta(finetune=True)) == (57_354_049, 0)


def test_no_max_pool():
    strides = scales_of("resnet50").strides
    sizes = {}
    with META:
        features = torch.zeros(1, 3, 64, 96)
        for level, stage in build_stages("resnet50", 3).items():
            features = stage(features)
            sizes[level] = (64 // features.shape[2], 96 // features.shape[3])
    assert sizes == {level: (stride, stride) for level, stride in strides.items()}
    assert list(strides.values()) == [2, 2, 4, 8, 16]


def test_forward_is_the_specified_sequence(small):
    """Written out here once more, from the specification, on the modules by name."""
    pre, post = images()
    m, skips = small, {}
    before, after = pre, post
    for level in range(1, 6):
        before, after = (m.get_submodule(f"encoder{level}")(image) for image in (before, after))
        fuse = m.get_submodule(f"fuse{level}")
        skips[level] = F.conv2d(torch.cat([before, after], 1), fuse.weight, fuse.bias, padding=1).relu()
    up = m.decoder5_bn(m.decoder5(skips[5])).relu()
    up = m.decoder4_bn(m.decoder4(torch.cat([up, skips[4]], 1))).relu()
    up = m.decoder3_bn(m.decoder3(torch.cat([up, skips[3]], 1))).relu()
    up = m.decoder2_bn(m.decoder2(torch.cat([up, skips[2]], 1))).relu()
    expected = m.decoder1(torch.cat([up, skips[1]], 1))
    with torch.inference_mode():
        torch.testing.assert_close(small(pre, post), expected.detach())


def test_dropout_is_on_two_skips_only(small):
    dropped = []
    model = copy.deepcopy(small)
    model.dropout.register_forward_hook(lambda _, inputs, output: dropped.append((inputs[0], output)))
    model.train()(*images())
    assert model.dropout.p == 0.3
    assert [tuple(given.shape[1:]) for given, _ in dropped] == [(512, 8, 8), (256, 16, 16)]
    given, left = dropped[1]
    assert 0.25 < float((left[given > 0] == 0).float().mean()) < 0.35


# --- shorter and narrower ---


@pytest.mark.parametrize(("levels", "settings"), [(3, {"width": 0.5}), (4, {"width": 0.3}), (4, {"trunk": "swin_t"})])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_shorter_and_narrower_form_answers_at_any_size(fusion, levels, settings):
    model = meta(fusion=fusion, levels=levels, **{"trunk": "resnet18", "embed_dim": 256} | settings)
    with META:
        assert model(*(torch.zeros(1, 3, 45, 70) for _ in range(2))).shape == (1, 1, 45, 70)
    names = {name.split(".")[0] for name in model.state_dict()}
    assert f"encoder{levels}" in names and f"decoder{levels}" in names
    assert not any(name.endswith(str(level)) for name in names for level in range(levels + 1, 6))
    assert model.multiple == scales_of(model.trunks[""]).strides[levels]


def test_width_scales_fused_and_decoded_channels():
    model = meta(trunk="resnet18", levels=4, width=0.5, embed_dim=256)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["fuse1.weight"] == (32, 128, 3, 3) and shapes["fuse4.weight"] == (128, 512, 3, 3)
    assert shapes["decoder4.weight"] == (128, 128, 2, 2) and shapes["decoder3.weight"] == (256, 64, 2, 2)
    assert shapes["decoder2.weight"] == (32, 128, 3, 3) and shapes["decoder1.weight"] == (64, 1, 2, 2)


def test_a_shorter_trunk_takes_the_first_stages_of_public_weights():
    torch.manual_seed(0)
    public = torchvision.models.resnet18(weights=None).state_dict()
    model = FusionUNet(trunk="resnet18", levels=3, width=0.25)
    model.load_trunk(public)
    assert torch.equal(model.encoder3[1].conv2.weight, public["layer2.1.conv2.weight"]) and not model.trunk_is_random
    with pytest.raises(ModelError, match="resnet18"):
        model.load_trunk(torchvision.models.resnet34(weights=None).state_dict())
    with pytest.raises(ModelError, match="of the trunk resnet34"):
        load_reference(model, meta(trunk="resnet34", levels=3, width=0.25).state_dict())
    with pytest.raises(ModelError, match="differs in") as refused:
        load_reference(model, meta(trunk="resnet18").state_dict())
    assert "levels" in refused.value.hint


@pytest.mark.parametrize("settings", [{"levels": 2}, {"levels": 6}, {"width": 0}, {"classes": 3, "changed_from": 3}])
def test_impossible_forms_are_refused(settings):
    with pytest.raises(ModelError):
        meta(trunk="resnet18", **settings)


# --- what stays frozen ---


def test_a_frozen_trunk_is_in_evaluation_mode_before_anyone_asks():
    model = meta(trunk="resnet18")
    assert not model.encoder2.training and not model.encoder2[0].bn1.training and model.decoder5_bn.training
    assert meta(trunk="resnet18", finetune=True).encoder2.training


def statistics(model: FusionUNet) -> torch.Tensor:
    return model.encoder3[0].bn1.running_mean.clone()


@pytest.mark.parametrize(("settings", "moves"), [({}, False), ({"frozen_statistics": False}, True)])
def test_frozen_trunk_keeps_weights_and_statistics(settings, moves):
    torch.manual_seed(0)
    model = FusionUNet(trunk="resnet18", embed_dim=8, **settings).train()
    before, weights = statistics(model), model.encoder3[0].conv1.weight.clone()
    model(*images()).sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    assert torch.equal(model.encoder3[0].conv1.weight, weights)
    assert model.encoder3[0].conv1.weight.grad is None
    assert torch.equal(statistics(model), before) is not moves
    assert model.fuse3.weight.grad.abs().sum() > 0 and model.decoder5_bn.training


def test_frozen_random_trunk_is_refused_unless_forced():
    model = FusionUNet(trunk="resnet18", embed_dim=8)
    with pytest.raises(ModelError, match="stay random") as refused:
        refuse_random_trunk(model)
    assert "ImageNet" in refused.value.hint
    refuse_random_trunk(model, force=True)
    refuse_random_trunk(FusionUNet(trunk="resnet18", embed_dim=8, finetune=True))
    loaded = copy.deepcopy(model)
    loaded.load_state_dict(model.state_dict())
    refuse_random_trunk(loaded)
    assert model.trunk_is_random
    model.load_state_dict({"fuse1.bias": torch.zeros(64)}, strict=False)
    assert model.trunk_is_random


# --- trunks, fusions, classes, sizes ---


@pytest.mark.parametrize("trunk", FEATURE_TRUNKS)
def test_every_trunk_answers_at_any_size(trunk):
    model = meta(trunk=trunk)
    with META:
        assert model(*(torch.zeros(2, 3, 70, 45) for _ in range(2))).shape == (2, 1, 70, 45)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("trunks", [("resnet18", None), ("resnet18", "swin_t"), ("convnext_tiny", "resnet34")])
def test_one_network_serves_two_modalities(fusion, trunks):
    model = meta(3, 1, trunk=trunks[0], post_trunk=trunks[1], fusion=fusion, classes=4, embed_dim=64)
    with META:
        assert model(torch.zeros(1, 3, 33, 64), torch.zeros(1, 1, 33, 64)).shape == (1, 4, 33, 64)
    first = {"resnet18": "encoder1.0", "convnext_tiny": "encoder2.0.0"}[trunks[0]]
    assert model.get_submodule(first).in_channels == 3
    second = {None: "post_encoder1.0", "swin_t": "post_encoder2.0.0", "resnet34": "post_encoder1.0"}[trunks[1]]
    assert model.get_submodule(second).in_channels == 1


@pytest.mark.parametrize("fusion", FUSIONS)
def test_both_images_matter_in_every_fusion(fusion):
    torch.manual_seed(0)
    model = FusionUNet(3, 2, trunk="resnet18", fusion=fusion, embed_dim=16).eval()
    pre, post = images(bands=(3, 2))
    with torch.inference_mode():
        base = model(pre, post)
        assert not torch.allclose(base, model(pre.flip(3), post))
        assert not torch.allclose(base, model(pre, post.flip(3)))


def test_difference_is_blind_to_order_and_zero_without_change():
    torch.manual_seed(0)
    model = FusionUNet(trunk="resnet18", fusion="absdiff", embed_dim=16).eval()
    pre, post = images()
    with torch.inference_mode():
        torch.testing.assert_close(model(pre, post), model(post, pre))
        torch.testing.assert_close(model(pre, pre), model(post, post))


def test_attention_looks_beyond_its_neighbourhood():
    torch.manual_seed(0)
    fusions = {name: FusionUNet(trunk="resnet18", fusion=name, embed_dim=8).fuse1 for name in FUSIONS}
    pre, post = torch.randn(2, 1, 64, 40, 40)
    elsewhere = post.clone()
    elsewhere[..., -1, -1] += 5
    with torch.inference_mode():
        seen = {name: float((f(pre, post) - f(pre, elsewhere))[..., 0, 0].abs().max()) for name, f in fusions.items()}
    assert seen["concat"] == seen["absdiff"] == 0 < seen["cross_attention"]


def test_padding_repeats_the_edge_and_is_cut_off(small):
    pre, post = images(50, 61)
    padded = [F.pad(image, (0, 3, 0, 14), mode="replicate") for image in (pre, post)]
    with torch.inference_mode():
        torch.testing.assert_close(small(pre, post), small(*padded)[..., :50, :61])


@pytest.mark.parametrize(("settings", "word"), [({"trunk": "resnet9"}, "swin_t"), ({"fusion": "sum"}, "absdiff")])
def test_unknown_choice_names_the_choices(settings, word):
    with pytest.raises(ModelError) as refused:
        FusionUNet(**({"trunk": "resnet18"} | settings))
    assert word in refused.value.hint
    with pytest.raises(ModelError):
        zoo.build("fusion_unet", 3, 3, settings)


def test_zoo_builds_it():
    with META:
        model = zoo.build("fusion_unet", 3, 1, {"trunk": "resnet18", "fusion": "absdiff"})
    assert isinstance(model, FusionUNet) and model.trunks == {"": "resnet18", "post_": "resnet18"}


# --- weights ---


@pytest.mark.parametrize("trunk", FEATURE_TRUNKS)
def test_public_weights_find_their_places(trunk):
    with META:
        public = getattr(torchvision.models, trunk)(weights=None).state_dict()
        model = FusionUNet(trunk=trunk)
    model.load_trunk(public)
    assert not model.trunk_is_random


def test_public_weights_give_the_bodys_features():
    torch.manual_seed(0)
    body = torchvision.models.resnet18(weights=None).eval()
    model = FusionUNet(trunk="resnet18", embed_dim=8).eval()
    model.load_trunk(body.state_dict())
    image = images()[0]
    stem = body.relu(body.bn1(body.conv1(image)))
    torch.testing.assert_close(model._features("", image)[5], body.layer4(body.layer3(body.layer2(body.layer1(stem)))))


def test_colour_weights_answer_grey_images_alike():
    torch.manual_seed(0)
    body = torchvision.models.resnet18(weights=None)
    model = FusionUNet(3, 1, trunk="resnet18", embed_dim=8)
    model.load_trunk(body.state_dict(), "post")
    assert model.trunk_is_random
    model.load_trunk(body.state_dict(), "pre")
    assert not model.trunk_is_random
    grey = images(bands=(1, 1))[0]
    torch.testing.assert_close(
        model.post_encoder1[0](grey), model.encoder1[0](grey.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-4
    )


def test_weights_of_another_trunk_are_refused():
    with META:
        public = torchvision.models.resnet34(weights=None).state_dict()
    with pytest.raises(ModelError, match=r"tensors of a resnet18.*left over.*set `trunk`"):
        meta(trunk="resnet18").load_trunk(public)


def test_trunk_is_told_by_shapes():
    for trunk in FEATURE_TRUNKS[:1] + FEATURE_TRUNKS[2:4]:
        with META:
            stages = nn.ModuleDict({str(level): stage for level, stage in build_stages(trunk, 5).items()})
        assert trunk_of({name: tensor.shape for name, tensor in stages.state_dict().items()}) == trunk
    assert trunk_of({"5.0.weight": torch.Size([1])}) is None


@pytest.mark.parametrize("wrapping", ["plain", "data parallel", "lightning"])
def test_checkpoint_of_the_reference_loads(small, wrapping):
    state = dict(small.state_dict())
    if wrapping == "data parallel":
        state = {"epoch": 3, "model_state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    elif wrapping == "lightning":
        state = {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}}
    torch.manual_seed(5)
    other = FusionUNet(trunk="resnet18", embed_dim=32).eval()
    load_reference(other, state)
    with torch.inference_mode():
        torch.testing.assert_close(other(*images()), small(*images()))
    assert not other.trunk_is_random


def test_checkpoint_of_another_trunk_is_named(small):
    with pytest.raises(ModelError, match="of the trunk resnet18, the model has resnet50") as refused:
        load_reference(meta(), small.state_dict())
    assert refused.value.hint == "Set `trunk: resnet18`."


def test_checkpoint_of_another_form_says_where_it_differs(small):
    with pytest.raises(ModelError, match="differs in decoder1") as refused:
        load_reference(meta(trunk="resnet18", embed_dim=32, classes=3), small.state_dict())
    assert "classes" in refused.value.hint
    with pytest.raises(ModelError, match="matches 0 of"):
        load_reference(small, {"conv.weight": torch.zeros(1)})


# --- learning ---


def test_one_batch_is_learned_by_heart():
    torch.manual_seed(0)
    model = FusionUNet(trunk="resnet18", embed_dim=32, finetune=True).train()
    model.dropout.p = 0.0
    pre, post = images(32, 32)
    target = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    target[0, :, 5:21, 8:30] = target[1, :, 15:30, 3:19] = True
    post = torch.where(target, post + 1.5, post)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(40):
        logit = model(pre, post)
        found = logit > 0
        iou = float((found & target).sum() / (found | target).sum())
        if iou > 0.95:
            break
        optimiser.zero_grad()
        combined_iou(logit, target, torch.ones_like(target), alpha=0.7).backward()
        optimiser.step()
    assert iou > 0.95
