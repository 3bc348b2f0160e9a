"""LEVIR-CD, and whatever has its layout, as training samples: two optical images and the buildings that changed."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from mmcd.data.base import Sample, to_sample
from mmcd.data.levir_files import BANDS, SHOWN, LevirPair, Part, index_levir, read_image, read_label, size_of
from mmcd.errors import DataError

LabelResize = Literal["nearest", "bilinear"]


class LevirPairs:
    """Pairs of optical images with a mask of changed buildings, read as they are asked for.

    Args:
        root: Folder of the data set, see `index_levir`.
        parts: Parts of it; all if left out.
        size: Height and width that everything is resized to, images with antialiasing; None keeps what is on disk.
            Reference system 1 uses 512.
        label_resize: ``nearest``; or ``bilinear``, which counts as reference system 1 does: only pixels are changed
            that are exactly 255 after a bilinear resize, so changed areas lose their rim. Its loss saw the grey rim.

    Attributes:
        pairs: The pairs, in order.
        ids: Name of each pair.
        groups: Scene of each pair.
        sizes: Height and width of the pairs on disk.
        unpaired: A line for every file without a partner.
        rows: Indices of the pairs of each part, in order; of all of them under None where no part was chosen.

    Raises:
        DataError: No pair is whole, or A, B and label of a pair differ in size.
    """

    pre_bands = BANDS
    post_bands = BANDS

    def __init__(
        self,
        root: Path,
        parts: Part | Sequence[Part] | None = None,
        size: int | None = None,
        label_resize: LabelResize = "nearest",
    ) -> None:
        wanted: Sequence[Part | None] = (parts,) if parts is None or isinstance(parts, str) else parts
        found = {part: index_levir(root, part) for part in wanted}
        ends = np.cumsum([len(index.pairs) for index in found.values()])
        self.rows = {
            part: np.arange(end - len(index.pairs), end) for end, (part, index) in zip(ends, found.items(), strict=True)
        }
        self.pairs: Sequence[LevirPair] = [pair for index in found.values() for pair in index.pairs]
        self.ids = [pair.id for pair in self.pairs]
        self.groups = [pair.group for pair in self.pairs]
        self.size, self.label_resize = size, label_resize
        self.unpaired = tuple(line for index in found.values() for line in index.warnings)
        self.sizes = {size_of(pair) for pair in self.pairs}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is not as it should be and can be worked with: missing partners, grey labels, several sizes."""
        return (*self.unpaired, *self._seen[1], *self._several_sizes())

    def refuse_faults(self) -> None:
        """Refuse pairs that are not as they should be, where they would be trained on or measured.

        Raises:
            DataError: A file has no partner, or a label is grey.
        """
        if self.unpaired:
            more = f" and {len(self.unpaired) - 1:,} more" if len(self.unpaired) > 1 else ""
            raise DataError(
                f"Files have no partner of the same name: {self.unpaired[0]}{more}.",
                "Files of one pair have one name in A, B and label: name them alike, or take them out.",
            )
        if self._seen[1]:
            raise DataError(self._seen[1][0], "Write labels of 0 and 255 alone, as PNG.")

    @property
    def changed_share(self) -> NDArray[np.float64]:
        """Share of changed pixels of each pair in [0, 1], as on disk, shape (N,); reads all labels the first time."""
        return self._seen[0]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        pre, post = (self._resized(read_image(path, len(BANDS))) for path in (pair.pre, pair.post))
        target = self.target(index)
        valid = np.ones(target.shape, dtype=np.bool_)
        return to_sample(pre, post, target, valid, index)

    def target(self, index: int) -> NDArray[np.uint8]:
        """Return 1 where a building changed and 0 elsewhere, resized, without reading the images; shape (H, W)."""
        return self._target(read_label(self.pairs[index].label)[0])

    @cached_property
    def _seen(self) -> tuple[NDArray[np.float64], tuple[str, ...]]:
        """Changed share of every label, and a line about the grey ones."""
        labels = [read_label(pair.label) for pair in self.pairs]
        shares = np.array([(label > 127).mean() for label, _ in labels])
        grey = [
            f"{pair.label} ({', '.join(map(str, odd))})"
            for pair, (_, odd) in zip(self.pairs, labels, strict=True)
            if odd
        ]
        if not grey:
            return shares, ()
        more = f" and {len(grey) - SHOWN} more" if len(grey) > SHOWN else ""
        line = (
            f"{len(grey)} of {len(labels)} labels hold grey values, as a lossy format or a smooth resize leaves them; "
            f"cut at one half: {'; '.join(grey[:SHOWN])}{more}."
        )
        return shares, (line,)

    def _several_sizes(self) -> tuple[str, ...]:
        if self.size is not None or len(self.sizes) == 1:
            return ()
        sizes = ", ".join(f"{height} × {width}" for height, width in sorted(self.sizes)[:SHOWN])
        return (f"The pairs have {len(self.sizes)} sizes ({sizes}): set size, such as 512, to train on batches.",)

    def _resized(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return an image in [0, 1], resized as the torchvision transforms of reference system 1 do."""
        pixels = torch.from_numpy(image)
        if self.size is not None:
            pixels = TF.resize(pixels, [self.size, self.size], v2.InterpolationMode.BILINEAR, antialias=True)
        scaled: NDArray[np.float32] = pixels.numpy().astype(np.float32) / np.float32(255)
        return scaled

    def _target(self, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return 1 where a building changed, 0 elsewhere."""
        if self.size is None:
            return (label > 127).astype(np.uint8)
        mode = v2.InterpolationMode.BILINEAR if self.label_resize == "bilinear" else v2.InterpolationMode.NEAREST_EXACT
        resized = TF.resize(torch.from_numpy(label)[None], [self.size, self.size], mode, antialias=True)[0].numpy()
        changed: NDArray[np.bool_] = resized == 255 if self.label_resize == "bilinear" else resized > 127
        return changed.astype(np.uint8)
