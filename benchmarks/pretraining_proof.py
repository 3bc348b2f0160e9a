"""What pretrained trunks are worth on shared real data, frozen: three small tasks, each against random weights.

a   Linear probe: is at least a tenth of a quarter tile (128 px) flooded? Features of Sentinel-2 before and after and
    their absolute difference, logistic regression whose strength is chosen by grouped folds of OMBRIA's main set.
b   Segmentation of the flood from the maps of both dates, strides 4 to 16, by 1x1 convolutions. Trained on four of five
    grouped folds of the main set, scored on the fifth and on ALBANIA; nothing is chosen by either.
c   Change in Taizhou between two Landsat images, nothing learned: the mean absolute difference of features, scaled
    level by level. TM bands 5, 4, 2 stand for B11, B8, B3.

Random weights come twice: as they are, and with batch statistics measured on the main set, which is the fairer rival of
trunks whose statistics fit such images.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from mmcd.data.ombria import BANDS_PRE, MAIN, OmbriaTile, index_ombria, read_dates, read_tile
from mmcd.data.ombria_dates import OMBRIA_QUANTILES
from mmcd.data.seasonal_views import IMAGENET_MEAN, IMAGENET_STD
from mmcd.models.devices import choose_precision
from mmcd.models.trunk_features import TrunkFeatures
from mmcd.training.trunk_start import TrunkScaling, TrunkStart, start_trunk, trunk_scaling
from mmcd.training.validation import grouped_folds
from mmcd.trunk_cards import Normalisation

EVENT, FOLDS = "ALBANIA", 5
FLOODED, PARTS = 0.1, 2
LEVELS, WIDTH = (2, 3, 4), 32
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
EPOCHS, BATCH, RATE = 4, 8, 2e-3
TM = (5, 4, 2)
"""Numbers of the bands in the file of six (TM 1, 2, 3, 4, 5, 7) that stand for B11, B8, B3: TM 5, 4, 2."""

RAW = "random"
MEASURED = "random, statistics measured"


@dataclass(frozen=True)
class Floods:
    """Tiles of both dates in memory.

    Attributes:
        images: Shape (N, 2, 3, 256, 256), uint8.
        flooded: Shape (N, 256, 256), bool.
        groups: Of each tile.
    """

    images: Tensor
    flooded: NDArray[np.bool_]
    groups: tuple[str, ...]

    @classmethod
    def read(cls, root: Path, event: str, most: int | None = None) -> "Floods":
        """Read the tiles of the main set or of an event, every k-th of them if only some are wanted."""
        tiles: Sequence[OmbriaTile] = [tile for tile in index_ombria(root).tiles if tile.event == event]
        tiles = tiles[:: -(-len(tiles) // most)] if most else tiles
        images = torch.from_numpy(np.stack(list(read_dates(tiles))))
        flooded = np.stack([read_tile(tile).changed for tile in tiles])
        return cls(images, flooded, tuple(tile.group for tile in tiles))

    def quarters(self) -> tuple[Tensor, NDArray[np.bool_], list[str]]:
        """Return images (4 N, 2, 3, 128, 128), whether a tenth of each is flooded, and their groups."""
        images, flooded = cut(self.images), cut(torch.from_numpy(self.flooded)[:, None])
        share = flooded.float().mean(dim=(1, 2, 3)).numpy()
        return images, share >= FLOODED, [group for group in self.groups for _ in range(PARTS**2)]


def cut(images: Tensor) -> Tensor:
    """Return (N, ..., H, W) in `PARTS` x `PARTS` pieces, shape (PARTS**2 N, ..., H / PARTS, W / PARTS)."""
    rows = torch.stack(images.chunk(PARTS, dim=-2), dim=1).flatten(0, 1)
    return torch.stack(rows.chunk(PARTS, dim=-1), dim=1).flatten(0, 1)


class Frozen:
    """A trunk in evaluation mode that takes OMBRIA's 8-bit images.

    Args:
        trunk: Card of a pretrained one, or `RAW` or `MEASURED`.
        seed: Of random weights.
        main: Images that batch statistics are measured on.
    """

    def __init__(self, trunk: str, seed: int, main: Tensor) -> None:
        start = TrunkStart(trunk="random" if trunk in (RAW, MEASURED) else trunk)
        self.features: TrunkFeatures = start_trunk(start, BANDS_PRE, seed).to(memory_format=torch.channels_last)
        self._scaling = trunk_scaling(start, BANDS_PRE) or _own_scaling()
        self._dtype = choose_precision("auto", torch.device("cpu"))
        if trunk == MEASURED:
            self._measure(main)

    @torch.no_grad()
    def _measure(self, main: Tensor) -> None:
        """Take batch statistics as plain means over some batches."""
        layers = [layer for layer in self.features.modules() if isinstance(layer, nn.BatchNorm2d)]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
            nn.Module.train(layer, True)
        for batch in main[:: max(1, len(main) // 64)].flatten(0, 1).split(32):
            self.features(self._scaling(batch.float()))
        for layer in layers:
            nn.Module.train(layer, False)

    @torch.inference_mode()
    def vectors(self, images: Tensor) -> NDArray[np.float32]:
        """Return features of images (N, 2, 3, H, W): before, after, absolute difference, shape (N, 3 F)."""
        found = []
        for batch in images.split(32):
            with torch.autocast("cpu", self._dtype, enabled=self._dtype != torch.float32):
                both = self.features(self._scaling(batch.flatten(0, 1).float())).float()
            before, after = both.unflatten(0, (-1, 2)).unbind(1)
            found.append(torch.cat([before, after, (after - before).abs()], dim=1))
        return torch.cat(found).numpy()

    @torch.inference_mode()
    def maps(self, images: Tensor, levels: Sequence[int] = LEVELS) -> dict[int, Tensor]:
        """Return the maps of single images (N, 3, H, W) by level."""
        with torch.autocast("cpu", self._dtype, enabled=self._dtype != torch.float32):
            found = self.features.maps(self._scaling(images.float()))
        return {level: found[level].float() for level in levels}


def _own_scaling() -> TrunkScaling:
    """Random weights see what SeCo's and CACo's do."""
    lower, upper = zip(*(OMBRIA_QUANTILES[band] for band in BANDS_PRE), strict=True)
    normalisation = Normalisation(lower=lower, upper=upper, mean=IMAGENET_MEAN, std=IMAGENET_STD, words="")
    return TrunkScaling(normalisation, BANDS_PRE, BANDS_PRE)


def probe(trunk: Frozen, main: Floods, event: Floods) -> dict[str, float]:
    """Task a: AUC of held-out groups of the main set, and of the event."""
    images, flooded, groups = main.quarters()
    vectors = trunk.vectors(images)
    held_out = {}
    for strength in STRENGTHS:
        answers = cross_val_predict(
            _linear(strength), vectors, flooded, groups=groups, cv=GroupKFold(FOLDS), method="predict_proba"
        )
        held_out[strength] = float(roc_auc_score(flooded, answers[:, 1]))
    best = max(held_out, key=lambda strength: held_out[strength])
    seen, truth, _ = event.quarters()
    answers = _linear(best).fit(vectors, flooded).predict_proba(trunk.vectors(seen))[:, 1]
    return {"a_auc_folds": held_out[best], "a_auc_event": float(roc_auc_score(truth, answers))}


def _linear(strength: float) -> object:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))


class Decoder(nn.Module):
    """Maps of both dates to a logit a pixel: one linear map a level, summed at the finest, two layers, enlarged."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.narrow = nn.ModuleList(nn.Conv2d(3 * width, WIDTH, 1) for width in channels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3 * width) for width in channels)
        self.out = nn.Sequential(nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 1), nn.ReLU(), nn.Conv2d(WIDTH, 1, 1))

    def forward(self, maps: Sequence[Tensor], size: int) -> Tensor:
        """Return logits (N, size, size) of maps (N, 2, C, h, w)."""
        total = torch.zeros(())
        for narrow, norm, level in zip(self.narrow, self.norms, maps, strict=True):
            before, after = level.float().unbind(1)
            joined = narrow(norm(torch.cat([before, after, (after - before).abs()], dim=1)))
            side = maps[0].shape[-1]
            total = total + F.interpolate(joined, (side, side), mode="bilinear", align_corners=False)
        return F.interpolate(self.out(total), (size, size), mode="bilinear", align_corners=False)[:, 0]


def segmentation(trunk: Frozen, main: Floods, event: Floods, seed: int) -> dict[str, float]:
    """Task b: average precision over the pixels of the held-out fold and of the event."""
    torch.manual_seed(seed)
    maps = _kept_maps(trunk, main.images)
    held_out = grouped_folds(main.groups, main.flooded.mean(axis=(1, 2)), FOLDS)[(seed + 1) % FOLDS]
    training = np.setdiff1d(np.arange(len(main.groups)), held_out)
    decoder = Decoder([trunk.features.channels[level] for level in LEVELS])
    steps = EPOCHS * (len(training) // BATCH)
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=max(steps, 1))
    random = np.random.default_rng(seed)
    for batch in _batches(training, random):
        target = torch.from_numpy(main.flooded[batch]).float()
        logits = decoder([level[batch] for level in maps], target.shape[-1])
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(logits, target).backward()
        optimiser.step()
        schedule.step()
    decoder.eval()
    return {
        "b_ap_fold": _precision(decoder, [level[held_out] for level in maps], main.flooded[held_out]),
        "b_ap_event": _precision(decoder, _kept_maps(trunk, event.images), event.flooded),
    }


def _batches(training: NDArray[np.intp], random: np.random.Generator) -> Iterator[NDArray[np.intp]]:
    for _ in range(EPOCHS):
        order = random.permutation(training)
        for start in range(0, len(order) - BATCH + 1, BATCH):
            yield order[start : start + BATCH]


def _kept_maps(trunk: Frozen, images: Tensor) -> list[Tensor]:
    """Return the maps of both dates by level, shape (N, 2, C, h, w), half precision: 1.8 MB a tile."""
    kept: list[list[Tensor]] = [[] for _ in LEVELS]
    for batch in images.split(8):
        found = trunk.maps(batch.flatten(0, 1))
        for column, level in zip(kept, LEVELS, strict=True):
            column.append(found[level].half().unflatten(0, (-1, 2)))
    return [torch.cat(column).clone() for column in kept]


@torch.no_grad()
def _precision(decoder: Decoder, maps: Sequence[Tensor], flooded: NDArray[np.bool_]) -> float:
    """Return the average precision over every second pixel of all tiles."""
    logits = [
        decoder([level[start : start + BATCH] for level in maps], flooded.shape[-1])[:, ::2, ::2]
        for start in range(0, len(flooded), BATCH)
    ]
    return float(average_precision_score(flooded[:, ::2, ::2].ravel(), torch.cat(logits).numpy().ravel()))


def taizhou(trunk: Frozen | None, root: Path) -> dict[str, float]:
    """Task c: AUC of labelled pixels by the difference of features, or of the pixels themselves without a trunk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        before, after = (_landsat(root / name) for name in ("2000TM", "2003TM"))
        changed, unchanged = (_mask(root / name) for name in ("change.bmp", "unchanged.bmp"))
    if trunk is None:
        score = (after - before).abs().mean(dim=1)[0]
    else:
        levels = (1, 2, 3)
        both = trunk.maps(torch.cat([before, after]), levels)
        score = torch.zeros(before.shape[-2:])
        for level in levels:
            spread = both[level].std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-6)
            apart = ((both[level][:1] - both[level][1:]).abs() / spread).mean(dim=1, keepdim=True)
            score += F.interpolate(apart, before.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
    known = changed | unchanged
    return {"c_auc": float(roc_auc_score(changed[known], score.numpy()[known]))}


def _landsat(path: Path) -> Tensor:
    """Return three bands, each image by its own percentiles 2 and 98 on OMBRIA's range, shape (1, 3, H, W)."""
    places = [("1", "2", "3", "4", "5", "7").index(str(band)) + 1 for band in TM]
    with rasterio.open(path) as file:
        image = file.read(places).astype(np.float32)
    bands = []
    for values, band in zip(image, BANDS_PRE, strict=True):
        low, high = np.percentile(values, (2, 98))
        least, most = OMBRIA_QUANTILES[band]
        bands.append(least + (most - least) * np.clip((values - low) / (high - low), 0, 1))
    return torch.from_numpy(np.stack(bands))[None].float()


def _mask(path: Path) -> NDArray[np.bool_]:
    with rasterio.open(path) as file:
        mask: NDArray[np.bool_] = file.read(1) > 0
    return mask


def judge_trunk(name: str, seed: int, main: Floods, event: Floods, landsat: Path) -> dict[str, float]:
    """Return the figures of all three tasks for one trunk.

    Args:
        name: Card of a pretrained trunk, or `RAW` or `MEASURED`.
        seed: Of random weights, of the decoder and of the fold that is held out.
        main: OMBRIA's main set.
        event: The event that nothing is learned from.
        landsat: Folder of the two Landsat images.
    """
    trunk = Frozen(name, seed, main.images)
    return {**probe(trunk, main, event), **segmentation(trunk, main, event, seed), **taizhou(trunk, landsat)}


def read_floods(root: Path, most: int | None = None) -> tuple[Floods, Floods]:
    """Read what is learned from and the event that is only scored."""
    return Floods.read(root, MAIN, most), Floods.read(root, EVENT)
