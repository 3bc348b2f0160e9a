"""Views: every operation equals torchvision's image by image, and the recipes of SeCo, CACo and SACo are followed."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from mmcd.data import batch_ops as ops
from mmcd.data.band_groups import group_places, groups_of, select_groups
from mmcd.data.seasonal import DRAWS
from mmcd.data.seasonal_views import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BandViewConfig,
    SeasonViewConfig,
    band_views,
    quantile_normalised,
    season_views,
)
from mmcd.errors import ConfigError, DataError
from mmcd.geo.sensors import SENTINEL2_L2A

COUNT, SIDE = 6, 40
OFF = {"jitter": 0, "grey": 0, "blur": 0, "flip": 0}
WHOLE = {**OFF, "smallest": 1.0, "crop": SIDE}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> Tensor:
    coarse = torch.rand(COUNT, 3, 9, 9, generator=seeded(1))
    noise = 0.2 * torch.rand(COUNT, 3, SIDE, SIDE, generator=seeded(2))
    return (torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic") + noise).clamp(0, 1)


# --- operations ---------------------------------------------------------------------------------------------------

FACTORS = torch.tensor([0.0, 0.6, 0.9, 1.0, 1.2, 1.4])
PAIRS = {
    "brightness": (ops.adjust_brightness, TF.adjust_brightness, FACTORS),
    "contrast": (ops.adjust_contrast, TF.adjust_contrast, FACTORS),
    "saturation": (ops.adjust_saturation, TF.adjust_saturation, FACTORS),
    "hue": (ops.adjust_hue, TF.adjust_hue, torch.tensor([-0.5, -0.1, -0.02, 0.0, 0.07, 0.1])),
    "blur": (
        lambda batch, sigmas: ops.gaussian_blur(batch, sigmas, 6),
        lambda image, sigma: TF.gaussian_blur(image, [13, 13], [sigma, sigma]),
        torch.tensor([0.1, 0.3, 0.8, 1.0, 1.5, 2.0]),
    ),
    "rotation": (
        ops.rotate,
        lambda image, angle: TF.rotate(image, math.degrees(angle), v2.InterpolationMode.BILINEAR),
        torch.tensor([-1.0, 0.0, 0.3, math.pi / 2, 3.0, 6.0]),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_operations_equal_torchvisions_image_by_image(images: Tensor, name: str) -> None:
    batched, single, amounts = PAIRS[name]
    expected = torch.stack([single(image, float(by)) for image, by in zip(images, amounts, strict=True)])
    assert torch.allclose(batched(images, amounts), expected, atol=2e-5)
    assert not torch.allclose(expected, images, atol=0.02)


def test_grey_and_equal_images_keep_their_hue(images: Tensor) -> None:
    grey = ops.grayscale(images, torch.ones(COUNT, dtype=torch.bool))
    assert torch.allclose(ops.adjust_hue(grey, torch.full((COUNT,), 0.3)), grey, atol=1e-6)
    assert torch.equal(grey, TF.rgb_to_grayscale(images, 3))
    some = torch.arange(COUNT) % 2 == 0
    assert torch.equal(ops.grayscale(images, some)[~some], images[~some])


def test_a_band_is_adjusted_as_a_grey_image_of_its_own(images: Tensor) -> None:
    factors = 0.9 + 0.2 * torch.rand(COUNT, 3, generator=seeded())
    contrast, brightness = ops.adjust_band_contrast(images, factors), ops.adjust_brightness(images, factors)
    for number in range(COUNT):
        for band in range(3):
            plane, factor = images[number, band : band + 1], float(factors[number, band])
            assert torch.allclose(contrast[number, band], TF.adjust_contrast(plane, factor)[0], atol=1e-5)
            assert torch.allclose(brightness[number, band], TF.adjust_brightness(plane, factor)[0], atol=1e-5)


@pytest.mark.parametrize(("shape", "size"), [((40, 40), 32), ((40, 40), 48), ((40, 31), 13)])
def test_crops_equal_torchvisions_antialiased_ones(images: Tensor, shape: tuple[int, int], size: int) -> None:
    images = images[..., : shape[0], : shape[1]]
    boxes = ops.crop_boxes(COUNT, shape, (0.2, 1.0), (3 / 4, 4 / 3), seeded(3))
    mirrored = torch.arange(COUNT) % 2 == 1
    expected = [
        TF.resized_crop(image, *box, [size, size], antialias=True)
        for image, box in zip(images, boxes.tolist(), strict=True)
    ]
    expected = torch.stack([view.flip(-1) if odd else view for view, odd in zip(expected, mirrored, strict=True)])
    assert torch.allclose(ops.resized_crop(images, boxes, size, mirrored), expected, atol=2e-5)


def test_boxes_are_drawn_as_torchvision_draws_them() -> None:
    shape, scale, ratio = (40, 40), (0.2, 1.0), (3 / 4, 4 / 3)
    boxes = ops.crop_boxes(4000, shape, scale, ratio, seeded()).numpy()
    transform = v2.RandomResizedCrop(32, scale=scale, ratio=ratio)
    torch.manual_seed(0)
    blank = torch.zeros(1, *shape)
    drawn = [transform.make_params([blank]) for _ in range(1500)]
    reference = np.array([[each[key] for key in ("top", "left", "height", "width")] for each in drawn])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= 40).all()
    for quantile in (0.1, 0.5, 0.9):
        found, expected = (np.quantile(each, quantile, axis=0) for each in (boxes, reference))
        assert found == pytest.approx(expected, abs=2.1)
    assert boxes.mean(axis=0) == pytest.approx(reference.mean(axis=0), abs=0.8)


def test_where_no_box_fits_the_largest_in_the_middle_is_taken() -> None:
    for shape, box in (((10, 40), [0, 13, 10, 13]), ((40, 10), [13, 0, 13, 10])):
        boxes = ops.crop_boxes(3, shape, (1.0, 1.0), (3 / 4, 4 / 3), seeded())
        assert boxes.tolist() == [box] * 3
        assert v2.RandomResizedCrop(8, scale=(1.0, 1.0)).make_params([torch.zeros(1, *shape)]) == dict(
            zip(("top", "left", "height", "width"), box, strict=True)
        )


# --- SeCo and CACo ------------------------------------------------------------------------------------------------


@pytest.fixture
def series() -> Tensor:
    """A batch of three acquisitions as stored, uint8."""
    return torch.randint(0, 140, (COUNT, 3, 3, SIDE, SIDE), generator=seeded(5), dtype=torch.uint8)


def test_bands_are_stretched_by_their_published_quantiles() -> None:
    stored = torch.tensor([[0, 2, 3], [129, 103, 88], [64, 60, 50], [255, 255, 255]], dtype=torch.uint8)
    found = quantile_normalised(stored[:, :, None, None])[..., 0, 0]
    expected = [[0, 0, 0], [1, 1, 1], [64 / 129, 58 / 101, 47 / 85], [1, 1, 1]]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-6)
    turned = quantile_normalised(stored.flip(1)[:, :, None, None], ("B2", "B3", "B4"))[..., 0, 0]
    assert torch.allclose(turned.flip(1), found)
    numbers = (stored.double() * 10_000 / 255).round().to(torch.int16)
    assert torch.allclose(quantile_normalised(numbers[:, :, None, None])[..., 0, 0], found, atol=2e-4)
    for bands in (("B4", "B3"), ("B8", "B4", "B3")):
        with pytest.raises(DataError, match="quantiles for B2, B3, B4 only"):
            quantile_normalised(stored[:, :, None, None], bands)


@pytest.mark.parametrize(
    ("method", "query", "keys"),
    [("moco", 0, [0]), ("moco_tp", 0, [1]), *((name, 0, [1, 2, 0]) for name in ("seco", "teco", "caco"))],
)
def test_each_view_shows_the_acquisition_it_should(series: Tensor, method: str, query: int, keys: list[int]) -> None:
    series = series[:, : DRAWS[method].count]  # type: ignore[index]
    views = season_views(series, method, seeded(), SeasonViewConfig(**WHOLE))  # type: ignore[arg-type]
    shown = TF.normalize(quantile_normalised(series), list(IMAGENET_MEAN), list(IMAGENET_STD))
    assert torch.allclose(views.query, shown[:, query], atol=1e-5) and len(views.keys) == len(keys)
    for view, time in zip(views.keys, keys, strict=True):
        assert torch.allclose(view, shown[:, time], atol=1e-5)


@pytest.mark.parametrize("part", ["jitter", "grey", "blur", "flip"])
def test_only_what_should_be_augmented_is(series: Tensor, part: str) -> None:
    shown = TF.normalize(quantile_normalised(series), list(IMAGENET_MEAN), list(IMAGENET_STD))
    views = season_views(series, "caco", seeded(), SeasonViewConfig(**{**WHOLE, part: 1}))
    for view, time, augmented in (
        (views.query, 0, False),
        *zip(views.keys, (1, 2, 0), (True, False, True), strict=True),
    ):
        apart = (view - shown[:, time]).abs().amax(dim=(1, 2, 3))
        assert ((apart > 0.01) == augmented).all() and (apart < 1e-4).all() != augmented
    pixels = views.keys[0] * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None]
    if part == "flip":
        assert torch.allclose(views.keys[0].flip(-1), shown[:, 1], atol=1e-5)
    elif part == "grey":
        assert (pixels.amax(dim=1) - pixels.amin(dim=1)).max() < 1e-5
    elif part == "blur":
        assert (pixels.std(dim=(2, 3)) <= quantile_normalised(series[:, 1]).std(dim=(2, 3)) + 1e-6).all()


def test_probabilities_are_those_of_the_reference() -> None:
    config, many = SeasonViewConfig(), 400
    stored = torch.randint(20, 90, (1, 2, 3, 16, 16), generator=seeded(7), dtype=torch.uint8).repeat(many, 1, 1, 1, 1)
    shown = season_views(stored[:1], "moco_tp", seeded(), SeasonViewConfig(**{**WHOLE, "crop": 16})).keys[0]
    for part in ("jitter", "grey", "blur", "flip"):
        options = {**WHOLE, "crop": 16, part: getattr(config, part), "sigma": (1.0, 2.0)}
        found = season_views(stored, "moco_tp", seeded(1), SeasonViewConfig(**options)).keys[0]
        share = ((found - shown).abs().amax(dim=(1, 2, 3)) > 1e-3).double().mean()
        assert share == pytest.approx(getattr(config, part), abs=0.07), part
    assert (config.crop, config.smallest, config.sigma) == (224, 0.2, (0.1, 2.0))
    assert (config.brightness, config.contrast, config.saturation, config.hue) == (0.4, 0.4, 0.4, 0.1)


def test_jitter_applies_its_parts_in_an_order_of_each_image() -> None:
    """With contrast and brightness fixed to 1.4 or 0.6 the two orders give different images, and both occur."""
    stored = torch.randint(20, 90, (1, 2, 3, 16, 16), generator=seeded(7), dtype=torch.uint8).repeat(60, 1, 1, 1, 1)
    options = {**WHOLE, "crop": 16, "jitter": 1, "hue": 0, "saturation": 0}
    generator = seeded(2)
    found = season_views(stored, "moco_tp", generator, SeasonViewConfig(**options)).keys[0]
    image = quantile_normalised(stored[0, 1])
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    generator.manual_seed(2)
    ops.crop_boxes(60, (16, 16), (1.0, 1.0), (3 / 4, 4 / 3), generator)  # the query's
    order = torch.rand(60, 4, generator=generator).argsort(dim=1)
    amounts = 1 + 0.4 * (2 * torch.rand(60, 4, generator=generator) - 1)
    steps = (TF.adjust_brightness, TF.adjust_contrast)
    seen = set()
    for view, turns, by in zip(found, order.tolist(), amounts.tolist(), strict=True):
        expected = image
        for step in (turn for turn in turns if turn < 2):
            expected = steps[step](expected, by[step])
        assert torch.allclose(view * std + mean, expected, atol=1e-5)
        seen.add(turns.index(0) < turns.index(1))
    assert seen == {False, True}


def test_views_depend_on_the_generator_only_and_differ_from_image_to_image(series: Tensor) -> None:
    same = series[:1].repeat(COUNT, 1, 1, 1, 1)
    first, again, other = (season_views(same, "caco", seeded(seed), SeasonViewConfig(crop=32)) for seed in (3, 3, 4))
    assert torch.equal(first.query, again.query) and not torch.equal(first.query, other.query)
    for view, twin in zip(first.keys, again.keys, strict=True):
        assert view.shape == (COUNT, 3, 32, 32) and torch.equal(view, twin) and view.isfinite().all()
        assert len({round(float(image.sum()), 3) for image in view}) == COUNT


# --- SACo ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def stack() -> Tensor:
    return torch.randint(0, 9000, (COUNT, 2, 12, SIDE, SIDE), generator=seeded(9)).to(torch.int16)


def test_saco_sees_all_bands_as_they_are_and_two_augmented_keys(stack: Tensor) -> None:
    views = band_views(stack, seeded(), BandViewConfig(crop=SIDE))
    assert torch.allclose(views.query, stack[:, 0].float() / 10_000, atol=1e-5)
    for view, time in zip(views.keys, (0, 1), strict=True):
        assert view.shape == views.query.shape and view.min() >= 0 and view.max() <= 1
        same = (view - stack[:, time].float() / 10_000).abs().amax(dim=(1, 2, 3)) < 1e-4
        assert not same.all()
    plain = band_views(stack, seeded(), BandViewConfig(crop=SIDE, augment_other=False))
    assert torch.allclose(plain.keys[1], stack[:, 1].float() / 10_000, atol=1e-5)
    moco = band_views(stack, seeded(), BandViewConfig(crop=SIDE, mode="moco"))
    assert len(moco.keys) == 1 and torch.equal(moco.keys[0], views.keys[1]) and torch.equal(moco.query, views.keys[0])
    places = group_places(groups_of("readme", leave_out=["complementary_2"]), SENTINEL2_L2A)
    assert select_groups(views.query, places).shape == (COUNT, 6, 3, SIDE, SIDE)


def test_bands_share_their_geometry_and_have_a_brightness_each() -> None:
    ramp = torch.linspace(1000, 8000, SIDE * SIDE).reshape(1, 1, 1, SIDE, SIDE)
    stack = ramp.expand(60, 2, 4, SIDE, SIDE).to(torch.int16)
    still = band_views(stack, seeded(), BandViewConfig(crop=16, jitter=0))
    assert all(torch.allclose(view, view[:, :1].expand_as(view), atol=1e-6) for view in still.keys)
    first, differing = still.keys[0], 0
    for view in band_views(stack, seeded(), BandViewConfig(crop=16)).keys[0]:
        bands = view - view[:1]
        differing += bool(bands.abs().max() > 1e-3)
    assert differing == pytest.approx(30, abs=11)
    assert len({round(float(view[0].sum()), 2) for view in first}) > 20, "turned by angles of their own"


def test_what_is_cut_is_the_middle() -> None:
    stack = torch.zeros(40, 2, 1, 66, 66, dtype=torch.int16)
    stack[..., 17:49, 17:49] = 5000  # 32 of 66 px are the share 128 / 264
    view = band_views(stack, seeded(), BandViewConfig(crop=32, jitter=0)).keys[0]
    share = view.mean(dim=(1, 2, 3)) / 0.5
    whole, cut = (share < 0.3), share > 0.8
    assert (whole | cut).all() and float(cut.double().mean()) == pytest.approx(0.75, abs=0.17)  # cut, or turned
    assert torch.allclose(share[whole], torch.tensor((32 / 66) ** 2), atol=1e-3)


# --- bad input ----------------------------------------------------------------------------------------------------


def test_batches_that_do_not_fit_the_method_are_refused(series: Tensor, stack: Tensor) -> None:
    with pytest.raises(DataError, match=r"not the 3 acquisitions of caco.*SeasonalSeries\(index, 'caco'\)"):
        season_views(series[:, :2], "caco", seeded())
    with pytest.raises(DataError, match="not the 2 acquisitions of saco"):
        band_views(stack[:, 0], seeded())
    with pytest.raises(DataError, match=r"12 bands.*quantiles"):
        season_views(stack, "moco_tp", seeded(), bands=SENTINEL2_L2A)
    with pytest.raises(ConfigError, match="saco_plus sees all bands"):
        season_views(series, "saco_plus", seeded())
    with pytest.raises(DataError, match="6 × 6 px are too small for a blur"):
        season_views(series[..., :6, :6], "caco", seeded(), SeasonViewConfig(blur=1))


@pytest.mark.parametrize("method", ["moco", "caco", "saco"])
def test_everything_stays_on_the_device_of_the_images(series: Tensor, stack: Tensor, method: str) -> None:
    """A device without storage refuses every operation that mixes it with the processor."""
    if method == "saco":
        views = band_views(stack.to("meta"), seeded(), BandViewConfig(crop=16))
    else:
        views = season_views(series.to("meta"), method, seeded(), SeasonViewConfig(crop=16))  # type: ignore[arg-type]
    assert all(view.is_meta and view.shape[-1] == 16 for view in (views.query, *views.keys))
