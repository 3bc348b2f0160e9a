import pytest
import torch

from mmcd.cards import Level
from mmcd.data.base import Sample
from mmcd.data.transforms import AugmentConfig, augment, mirrored

STILL = AugmentConfig(
    affine=0, optical_gain=0, band_gain=0, optical_offset=0, gamma=0, restretch=0, sar_gain=0, sar_offset=0, speckle=0,
    drop_band=0, cloud=0,
)  # fmt: skip


def batch(count=8, size=64):
    """Return pairs whose images equal their label, so that any step that moves one without the other shows."""
    torch.manual_seed(0)
    coarse = torch.rand(count, 1, size // 8, size // 8) > 0.5
    target = torch.nn.functional.interpolate(coarse.float(), scale_factor=8)
    return Sample(
        pre=target.expand(-1, 3, -1, -1).clone(),
        post=target.clone(),
        target=target[:, 0].long(),
        valid=torch.ones(count, size, size, dtype=torch.bool),
        index=torch.arange(count),
    )


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_without_strength_only_turns_and_mirrors():
    before = batch()
    after = augment(before, STILL, seeded())
    for old, new in zip(before["post"][:, 0], after["post"][:, 0], strict=True):
        turned = [torch.rot90(image, quarter) for image in (old, old.flip(1)) for quarter in range(4)]
        assert any(torch.allclose(new, each, atol=2e-4) for each in turned)
    assert not torch.allclose(before["post"], after["post"], atol=1e-3)


def test_a_tile_can_be_levelled_as_a_scene_of_its_own():
    before, level = batch(), Level(percentile=75, value=0.7)
    before["post"] = 0.2 + 0.3 * torch.rand(8, 1, 64, 64)
    after = augment(before, STILL.model_copy(update={"relevel": 0.5}), seeded(), level)["post"]
    tops = torch.quantile(after[:, 0, ::2, ::2].flatten(1), 0.75, dim=1)
    moved = (tops - 0.7).abs() < 0.02
    assert 0 < int(moved.sum()) < 8 and (tops[~moved] < 0.5).all()
    torch.testing.assert_close(after.std(dim=(1, 2, 3)), before["post"].std(dim=(1, 2, 3)), atol=2e-3, rtol=0)


@pytest.mark.parametrize("affine", [0, 1])
def test_images_and_label_move_together(affine):
    after = augment(batch(), STILL.model_copy(update={"affine": affine, "crop": 48}), seeded())
    assert after["pre"].shape == (8, 3, 48, 48) and after["target"].shape == (8, 48, 48)
    label = after["target"].bool() & after["valid"]
    dark = ~after["target"].bool() & after["valid"]
    assert after["post"][:, 0][label].mean() > 0.9 and after["post"][:, 0][dark].mean() < 0.1
    torch.testing.assert_close(after["pre"][:, :1], after["post"])


def test_a_crop_without_affine_cuts_whole_pixels():
    gradient = torch.arange(64 * 64, dtype=torch.float32).reshape(1, 1, 64, 64).expand(8, -1, -1, -1) / 4096
    pair = Sample(
        pre=gradient.expand(-1, 3, -1, -1), post=gradient, target=torch.zeros(8, 64, 64, dtype=torch.long),
        valid=torch.ones(8, 64, 64, dtype=torch.bool), index=torch.arange(8),
    )  # fmt: skip
    values = augment(pair, STILL.model_copy(update={"crop": 40}), seeded())["post"] * 4096
    assert (values - values.round()).abs().max() < 2e-2
    assert len({float(crop.min()) for crop in values.round()}) > 4


def test_the_generator_decides_everything():
    first, again, other = (augment(batch(), AugmentConfig(), seeded(seed)) for seed in (1, 1, 2))
    for name in first:
        assert torch.equal(first[name], again[name])
    assert not torch.equal(first["pre"], other["pre"])


def test_full_strength_stays_in_range_and_changes_each_branch_alone():
    before = batch()
    after = augment(before, AugmentConfig(affine=1), seeded())
    for name in ("pre", "post"):
        assert after[name].min() >= 0 and after[name].max() <= 1 and torch.isfinite(after[name]).all()
    assert not torch.allclose(after["pre"][:, :1], after["post"], atol=1e-2)
    assert set(after["target"].unique().tolist()) <= {0, 1}


@pytest.mark.parametrize(("empty", "share"), [(0.0, 1.0), (1.0, 0.99)])
def test_ground_beyond_the_tile_is_mirrored_or_no_data(empty, share):
    after = augment(batch(), STILL.model_copy(update={"affine": 1, "empty": empty}), seeded())
    known = float(after["valid"].float().mean())
    assert known == 1 if share == 1 else known < share


def test_mirrored_continues_every_layer_alike():
    before = batch(count=2, size=16)
    after = mirrored(before, 24)
    assert after["pre"].shape == (2, 3, 64, 64)
    inner = (..., slice(24, 40), slice(24, 40))
    for name in ("pre", "post", "target", "valid"):
        assert torch.equal(after[name][inner], before[name])
    assert torch.equal(after["target"][:, 24:40, 8:24], before["target"].flip(2))
    assert torch.equal(after["pre"][:, 0], after["target"].float())
