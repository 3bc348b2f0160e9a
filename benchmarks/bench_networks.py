"""Parts a, c and i: what a 1024 x 1024 px pair costs the bare networks, on one thread."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from bench_table import Options, Row, Target, duration, interleaved, missing, number, positions
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mmcd.cards import Card, find_card
from mmcd.errors import ConfigError, ModelError
from mmcd.inference.backends import Backend, TorchBackend, open_export
from mmcd.inference.exported import choose_export
from mmcd.models import zoo
from mmcd.models.devices import choose_precision
from mmcd.models.encoders import Encoder
from mmcd.models.siamese import CONTEXT, EMBEDDING_STRIDE, ROI, ContextSiamese
from mmcd.services.weights import ExportRequest, export_weights

MODEL = "damage-vhr-sim"
SIDE = 1024
REFERENCE_POSITIONS = positions(SIDE, CONTEXT, EMBEDDING_STRIDE)  # contexts that lie inside the tile
STOCK_POSITIONS = positions(SIDE, ROI, EMBEDDING_STRIDE)  # every ROI, its context padded where it leaves the tile
CALIBRATION_BLOCKS = 4  # enough for a measurement of speed

_CONV_CHANNELS, _CONV_SIDE = 256, 128

Images = tuple[NDArray[np.float32], NDArray[np.float32]]


def speed_of_tile(options: Options) -> list[Row]:
    """Part a: the dense pass against the reference's crops, extrapolated to all positions of a tile."""
    torch.set_num_threads(1)
    dense, rows = _engines(), []
    tile, crop = _images(SIDE), _images(CONTEXT)
    reference, stock = _context_siamese(kept=True), _context_siamese(kept=False)
    works = {
        "reference": _crop(reference, crop, torch.float32),
        "stock": _crop(stock, crop, torch.float32),
        **{name: _pass(engine, tile) for name, engine in dense.items() if not isinstance(engine, str)},
    }
    if "bf16" in works:
        works["reference bf16"] = _crop(reference, crop, torch.bfloat16)
    times = interleaved(works, max(options.crops, 1))
    crops = f"{options.crops} crops"
    full = times["reference"].median * REFERENCE_POSITIONS
    against = f"{duration(full)} in fp32: {REFERENCE_POSITIONS:,} positions, from {crops}"
    for name, engine in dense.items():
        what = f"dense, {name}, against the reference"
        if isinstance(engine, str):
            rows.append(missing("a", what, engine))
            continue
        target = Target(3000) if name == "fp32" else None
        rows.append(Row("a", what, duration(times[name].median), against, full / times[name].median, target=target))
    if "bf16" in works:
        full = times["reference bf16"].median * REFERENCE_POSITIONS
        same = f"{duration(full)} in bf16"
        rows.append(Row("a", "dense, bf16, against it in bf16", rows[1].measured, same, full / times["bf16"].median))
    full = times["stock"].median * STOCK_POSITIONS
    against = f"{duration(full)}: {STOCK_POSITIONS:,} positions, from {crops}"
    rows.append(
        Row("a", "dense, fp32, against stock ResNet-34", rows[0].measured, against, full / times["fp32"].median)
    )
    return rows


def arithmetic_speed(options: Options) -> list[Row]:
    """Part c: operations a second of the dense pass against those of one large 3x3 convolution."""
    torch.set_num_threads(1)
    tile = _images(SIDE)
    engines = {name: engine for name, engine in _engines(int8=False).items() if isinstance(engine, TorchBackend)}
    works: dict[str, Callable[[], object]] = {}
    for name, engine in engines.items():
        works[f"{name} pass"] = _pass(engine, tile)
        works[f"{name} convolution"] = convolution(torch.bfloat16 if name == "bf16" else torch.float32)
    network = operations(works["fp32 pass"])
    single = operations(works["fp32 convolution"])
    times = interleaved(works, options.rounds)
    rows = []
    for name in engines:
        mine, best = (
            work / times[f"{name} {kind}"].least for work, kind in ((network, "pass"), (single, "convolution"))
        )
        target = Target(0.6) if name == "bf16" else None
        against = f"{number(best / 1e9)} GFLOP/s: 3x3, {_CONV_CHANNELS} channels, {_CONV_SIDE} x {_CONV_SIDE}"
        what = f"dense pass, {name}, {number(network / 1e9)} GFLOP"
        rows.append(Row("c", what, f"{number(mine / 1e9)} GFLOP/s", against, mine / best, "", target))
    if "bf16" not in engines:
        rows.append(missing("c", "dense pass, bf16", "this processor has no bf16 instructions"))
    return rows


def published_unet(options: Options) -> list[Row]:
    """Part i: the same pair through the U-Net that BRIGHT was published with, in the same dtype."""
    torch.set_num_threads(1)
    tile = _images(SIDE)
    engines = _engines()
    unet = BrightUNet().eval().to(memory_format=torch.channels_last)
    millions = sum(parameter.numel() for parameter in unet.parameters()) / 1e6
    works = {name: _pass(engine, tile) for name, engine in engines.items() if not isinstance(engine, str)}
    works["unet fp32"] = _stacked(unet, tile, torch.float32)
    if "bf16" in works:
        works["unet bf16"] = _stacked(unet, tile, torch.bfloat16)
    times = interleaved(works, options.rounds)
    rows = []
    for name, engine in engines.items():
        if isinstance(engine, str):
            rows.append(missing("i", f"dense, {name}", engine))
            continue
        other = "unet fp32" if name == "fp32" or "unet bf16" not in times else "unet bf16"
        against = (
            f"{duration(times[other].median)}: BRIGHT's {other.replace('unet', 'U-Net')}, {millions:.1f} M parameters"
        )
        ratio = times[other].median / times[name].median
        rows.append(Row("i", f"dense, {name}, a pair", duration(times[name].median), against, ratio))
    return rows


class BrightUNet(nn.Module):
    """The U-Net of BRIGHT's baselines: 64 to 1024 channels, both images stacked, transposed convolutions upwards.

    Args:
        channels: Bands of both images; BRIGHT repeats its single SAR band three times.
        classes: Background, intact, damaged, destroyed.
    """

    def __init__(self, channels: int = 6, classes: int = 4) -> None:
        super().__init__()
        widths = (64, 128, 256, 512, 1024)
        inputs = (channels, *widths)
        self.down = nn.ModuleList(_double(before, after) for before, after in zip(inputs, widths, strict=False))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, skip, kernel_size=2, stride=2) for deep, skip in pairs)
        self.fuse = nn.ModuleList(_double(deep, skip) for deep, skip in pairs)
        self.classes = nn.Conv2d(widths[0], classes, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the classes, shape (B, classes, H, W), H and W multiples of 16."""
        skips = []
        for depth, block in enumerate(self.down):
            images = block(F.max_pool2d(images, 2) if depth else images)
            skips.append(images)
        deep = skips.pop()
        for up, fuse in zip(self.up, self.fuse, strict=True):
            deep = fuse(torch.cat([skips.pop(), up(deep)], dim=1))
        return self.classes(deep)


def _double(inputs: int, outputs: int) -> nn.Sequential:
    def layers(before: int) -> Iterator[nn.Module]:
        yield from (
            nn.Conv2d(before, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )

    return nn.Sequential(*layers(inputs), *layers(outputs))


def _engines(int8: bool = True) -> dict[str, Backend | str]:
    """Return the shipped dense network by dtype, or why it cannot run so."""
    card_path, card = find_card(MODEL)
    found: dict[str, Backend | str] = {"fp32": TorchBackend(zoo.load(card_path)[1], "cpu", "fp32")}
    native = choose_precision("auto", torch.device("cpu")) == torch.bfloat16
    found["bf16"] = TorchBackend(zoo.load(card_path)[1], "cpu", "bf16") if native else "no bf16 instructions"
    if int8:
        try:
            found["int8"] = _int8(card)
        except ConfigError as error:
            found["int8"] = error.message
    return found


def _int8(card: Card) -> Backend:
    """Return the network in OpenVINO, exported into the workspace unless an earlier part did.

    Raises:
        ConfigError: OpenVINO is not installed.
    """
    try:
        export = choose_export(card, "openvino", "cpu")
    except ModelError:
        export = export_weights(ExportRequest(model=MODEL, backend="openvino", images=CALIBRATION_BLOCKS))
    if export is None:
        raise ConfigError("There is no export for OpenVINO.")
    return open_export(export)


def _context_siamese(kept: bool) -> ContextSiamese:
    """Return the reference's network, or with stock ResNets whose last stages halve the resolution."""
    model = ContextSiamese(3, 1)
    if not kept:
        model.optical_encoder = Encoder(3, "resnet34", levels=4, deep="halving")
        model.sar_encoder = Encoder(1, "resnet34", levels=4, deep="halving")
    return model.eval().to(memory_format=torch.channels_last)


def _images(side: int) -> Images:
    random = np.random.default_rng(0)
    return tuple(random.standard_normal((bands, side, side), np.float32) for bands in (3, 1))  # type: ignore[return-value]


def _pass(engine: Backend, images: Images) -> Callable[[], object]:
    return lambda: engine.run(*images)


def _crop(model: nn.Module, images: Images, dtype: torch.dtype) -> Callable[[], object]:
    pre, post = (_tensor(image) for image in images)
    return lambda: _inferred(model, dtype, pre, post)


def _stacked(model: nn.Module, images: Images, dtype: torch.dtype) -> Callable[[], object]:
    pre, post = images
    stack = _tensor(np.concatenate([pre, *[post] * 3]))
    return lambda: _inferred(model, dtype, stack)


def convolution(dtype: torch.dtype) -> Callable[[], object]:
    """Return one large 3x3 convolution: the most that a network of them can hope for."""
    layer = nn.Conv2d(_CONV_CHANNELS, _CONV_CHANNELS, kernel_size=3, padding=1, bias=False)
    layer = layer.to(dtype=dtype, memory_format=torch.channels_last)
    image = torch.randn(1, _CONV_CHANNELS, _CONV_SIDE, _CONV_SIDE, dtype=dtype)
    image = image.contiguous(memory_format=torch.channels_last)
    return lambda: _inferred(layer, torch.float32, image)


def _inferred(model: nn.Module, dtype: torch.dtype, *images: Tensor) -> object:
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return model(*images)


def _tensor(image: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(image[None]).contiguous(memory_format=torch.channels_last)


def operations(work: Callable[[], object]) -> int:
    """Return the floating point operations of a call, a multiplication and an addition counted as two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
