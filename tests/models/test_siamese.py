import pytest
import torch
from torch import nn

from mmcd.models.siamese import CONTEXT, LATTICE, ROI, ContextSiamese, PseudoSiamese, mean_of_context, roi_to_pixels


def trained_like(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and scales as after training; fresh ones hide mistakes."""
    random = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for values, low, high in (
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
            ):
                values.copy_(torch.rand(values.shape, generator=random) * (high - low) + low)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return trained_like(PseudoSiamese(3, 1))


@pytest.mark.parametrize(("pre_channels", "post_channels"), [(1, 1), (13, 4)])
def test_output_shapes(pre_channels, post_channels):
    output = PseudoSiamese(pre_channels, post_channels, embedding_dim=32).eval()(
        torch.randn(2, pre_channels, 64, 96), torch.randn(2, post_channels, 64, 96)
    )
    assert output.logit.shape == output.distance.shape == (2, 1, 64, 96)
    assert output.pre_embedding.shape == output.post_embedding.shape == (2, 32, 8, 12)
    assert output.distance.min() >= 0 and output.distance.max() <= 2
    torch.testing.assert_close(output.pre_embedding.norm(dim=1), torch.ones(2, 8, 12))


def test_a_head_of_four_classes_says_change_as_the_sum_of_its_changed_classes():
    output = PseudoSiamese(3, 1, classes=4, changed_from=2).eval()(torch.randn(2, 3, 64, 64), torch.randn(2, 1, 64, 64))
    assert output.classes.shape == (2, 4, 64, 64)
    changed = output.classes.softmax(dim=1)[:, 2:].sum(dim=1, keepdim=True)
    torch.testing.assert_close(output.logit.sigmoid(), changed)


def test_gradients_reach_every_parameter():
    model = PseudoSiamese(3, 1)
    output = model(torch.randn(2, 3, 64, 64), torch.randn(2, 1, 64, 64))
    (output.logit.square().mean() + output.distance.mean()).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_halo_is_small_and_on_the_lattice(model):
    assert model.halo == 128
    assert PseudoSiamese(3, 1, dilated=True).halo <= 128


@pytest.mark.parametrize("dilated", [False, True])
def test_reach_equals_the_gradient(dilated):
    """With positive weights no ReLU closes, and on a slope the pooling's maximum is the outermost pixel of one side:
    the computed reach is exact, not only a bound.
    """
    model = PseudoSiamese(1, 1, width=8, embedding_dim=4, dilated=dilated)
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    model.eval()
    reach = 0
    slope = torch.linspace(1, 2, 512).expand(1, 1, 16, 512)
    for pixel in range(256, 256 + LATTICE):
        for image in (slope, slope.flip(3)):
            pre = image.clone().requires_grad_()
            model(pre, image).logit[0, 0, 0, pixel].backward()
            touched = pre.grad[0, 0].abs().sum(dim=0).nonzero()
            reach = max(reach, pixel - int(touched.min()), int(touched.max()) - pixel)
    assert reach == model._reach() <= model.halo


def test_nothing_beyond_the_halo_changes_a_block(model):
    torch.manual_seed(1)
    size, block = 384, slice(128, 256)
    pre, post = torch.randn(1, 3, size, size), torch.randn(1, 1, size, size)
    wide = [torch.nn.functional.pad(image, (64, 64, 64, 64), value=3.0) for image in (pre, post)]
    with torch.inference_mode():
        near, far = model(pre, post), model(*wide)
    moved = slice(block.start + 64, block.stop + 64)
    for name in ("logit", "distance"):
        torch.testing.assert_close(
            getattr(near, name)[..., block, block], getattr(far, name)[..., moved, moved], atol=1e-5, rtol=1e-5
        )


def crop_differences(model, origins):
    """Return the largest difference between tile and centred crop for ROIs at the given origins."""
    torch.manual_seed(2)
    pre, post = torch.randn(1, 3, 512, 512), torch.randn(1, 1, 512, 512)
    lead = (CONTEXT - ROI) // 2
    centre = lead // 8
    with torch.inference_mode():
        tile = model(pre, post)
        for row, col in origins:
            window = (..., slice(row - lead, row - lead + CONTEXT), slice(col - lead, col - lead + CONTEXT))
            crop = model(pre[window], post[window])
            for name in ("pre_embedding", "post_embedding"):
                difference = getattr(crop, name)[..., centre, centre] - getattr(tile, name)[..., row // 8, col // 8]
                yield float(difference.abs().max())


def test_dense_on_a_crop_equals_dense_on_the_tile(model):
    origins = [(136, 216), (200, 168), (248, 264)]
    assert all(origin % 16 == 8 for pair in origins for origin in pair)
    assert max(crop_differences(model, origins)) < 1e-5


def test_off_the_lattice_only_the_dilated_form_is_equal(model):
    origins = [(128, 208), (136, 192), (144, 184)]
    dilated = trained_like(PseudoSiamese(3, 1, dilated=True))
    dilated.load_state_dict(model.state_dict())
    assert max(crop_differences(model, origins)) > 1e-3
    assert max(crop_differences(dilated, origins)) < 1e-5


def test_evaluation_does_not_depend_on_the_batch(model):
    torch.manual_seed(3)
    pre, post = torch.randn(3, 3, 64, 64), torch.randn(3, 1, 64, 64)
    with torch.inference_mode():
        together, alone = model(pre, post), model(pre[1:2], post[1:2])
    torch.testing.assert_close(together.logit[1:2], alone.logit, atol=1e-5, rtol=1e-5)


def test_distance_belongs_to_the_centre_of_its_roi():
    values = torch.arange(4.0).reshape(1, 1, 1, 4)
    row = roi_to_pixels(values)[0, 0, 0]
    assert row[:4].eq(0).all() and row[4:12].eq(0).all() and row[12:20].eq(1).all() and row[28:].eq(3).all()


def test_mean_of_context_is_the_mean_over_the_centred_window():
    features = torch.randn(1, 2, 48, 48)
    expected = features[..., 20 - 15 : 20 + 17, 22 - 15 : 22 + 17].mean(dim=(2, 3))
    torch.testing.assert_close(mean_of_context(features)[..., 20, 22], expected)
    torch.testing.assert_close(mean_of_context(features)[..., 0, 0], features[..., :17, :17].mean(dim=(2, 3)))


def test_reference_parameter_names_and_count():
    model = ContextSiamese(3, 1)
    assert sum(parameter.numel() for parameter in model.parameters()) == 43_221_760
    names = model.state_dict().keys()
    for name in ("optical_encoder.conv1.weight", "sar_encoder.layer4.2.bn2.running_var",
                 "optical_projector.layer1.0.weight", "optical_projector.layer1.1.running_mean",
                 "sar_projector.layer2.0.bias"):  # fmt: skip
        assert name in names
    assert len(names) == 2 * (216 + 9)


def test_reference_patch_is_one_answer_for_a_context():
    torch.manual_seed(4)
    patch = trained_like(ContextSiamese(3, 1, trunk="resnet18"))
    output = patch(torch.randn(2, 3, 256, 256), torch.randn(2, 1, 256, 256))
    assert output.distance.shape == (2, 1) and output.pre_embedding.shape == (2, 128)
    cosine = torch.nn.functional.cosine_similarity(output.pre_embedding, output.post_embedding)
    torch.testing.assert_close(output.distance[:, 0], 1 - cosine)


def test_distances_of_equal_vectors_are_not_below_zero():
    torch.manual_seed(0)
    patch = trained_like(ContextSiamese(1, 1, trunk="resnet18"))
    patch.sar_encoder, patch.sar_projector = patch.optical_encoder, patch.optical_projector
    image = torch.randn(48, 1, 32, 32)
    output = patch(image, image)
    rounded = 1 - (output.pre_embedding * output.post_embedding).sum(dim=1)
    assert rounded.min() < 0 <= output.distance.min() and output.distance.max() < 1e-6


def test_reference_dense_and_patch_load_one_state_dict_and_agree():
    """Only the zero padding at the border of each patch differs."""
    torch.manual_seed(5)
    patch = trained_like(ContextSiamese(3, 1, trunk="resnet34", form="patch"))
    dense = ContextSiamese(3, 1, trunk="resnet34", form="dense").eval()
    dense.load_state_dict(patch.state_dict())
    pre, post = torch.randn(1, 3, 320, 320), torch.randn(1, 1, 320, 320)
    row, col = 144, 152
    window = (..., slice(row - 120, row + 136), slice(col - 120, col + 136))
    with torch.inference_mode():
        one, many = patch(pre[window], post[window]), dense(pre, post)
    for name in ("pre_embedding", "post_embedding"):
        cosine = (getattr(one, name) * getattr(many, name)[..., row // 8, col // 8]).sum(dim=1)
        assert float(1 - cosine) < 6e-3


@pytest.mark.parametrize("pool", ["global", "roi_centre"])
def test_pooling_of_the_reference_form_is_that_of_its_dense_form(pool):
    """Contexts of 64 px: the features of a tile, pooled, and those of a patch cut from it agree cell by cell."""
    model = ContextSiamese(3, 1, trunk="resnet18", embedding_dim=8, pool=pool, context=64)
    features = torch.randn(2, 512, 20, 20)
    model.form = "dense"
    dense = model._pooled(features)
    model.form = "patch"
    row, col = 7, 9  # the ROI of these cells has 24 px, three cells, of context around it
    patch = model._pooled(features[..., row - 3 : row + 5, col - 3 : col + 5])
    torch.testing.assert_close(dense[..., row, col], patch)
    if pool == "roi_centre":
        torch.testing.assert_close(patch, features[..., row : row + 2, col : col + 2].mean(dim=(2, 3)))


def test_the_centre_of_a_context_is_its_roi():
    model = ContextSiamese(3, 1, trunk="resnet18", embedding_dim=8, pool="roi_centre")
    marked = torch.zeros(1, 1, 256, 256)
    marked[..., 120:136, 120:136] = 1  # the ROI
    cells = torch.nn.functional.avg_pool2d(marked, 8)
    assert float(model._pooled(cells)) == 1
