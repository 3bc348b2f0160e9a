from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from torch.utils.data import DataLoader

from mmcd.data.bright import index_bright
from mmcd.data.patch_index import PatchRules, PatchTable, pool, tile_patches
from mmcd.data.patches import PatchPairs, TileCache, paired_transform, select_patches
from mmcd.errors import DataError

SIDE, RULES = 64, PatchRules(context_patch_size=48)
IDS = ("la_palma-volcano_00000003", "noto-earthquake_00000001")


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", driver="GTiff", count=len(values), height=SIDE, width=SIDE, dtype="uint8") as file:
        file.write(values)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiles of noise; the SAR file of the second holds its band three times."""
    folder = tmp_path_factory.mktemp("bright")
    random = np.random.default_rng(0)
    for number, image_id in enumerate(IDS):
        write(folder / "pre-event" / f"{image_id}_pre_disaster.tif", random.integers(0, 256, (3, SIDE, SIDE), np.uint8))
        sar = random.integers(0, 256, (1, SIDE, SIDE), np.uint8)
        write(folder / "post-event" / f"{image_id}_post_disaster.tif", np.repeat(sar, 1 + 2 * number, axis=0))
        label = random.integers(0, 2, (1, SIDE, SIDE), np.uint8)
        label[0, :30] *= 3
        write(folder / "target" / f"{image_id}_building_damage.tif", label)
    return folder


@pytest.fixture(scope="module")
def table(root: Path) -> PatchTable:
    tables = []
    for tile in index_bright(root).tiles:
        with rasterio.open(tile.label) as file:
            tables.append(tile_patches(tile.id, file.read(1), RULES))
    return pool(tables)


def scaled(values: np.ndarray) -> np.ndarray:
    """The reference's standardisation, in double precision."""
    values = values.astype(np.float64)
    spread = values.std(axis=(1, 2), keepdims=True)
    return (values - values.mean(axis=(1, 2), keepdims=True)) / (spread + 1e-8)


def test_a_sample_is_the_standardised_context_of_its_patch(root: Path, table: PatchTable) -> None:
    order = np.random.default_rng(1).permutation(len(table))[:9]  # a selection counts its own patches
    part = table.take(order)
    pairs = PatchPairs(root, part, RULES)
    tiles = {tile.id: tile for tile in index_bright(root).tiles}
    assert len(pairs) == 9 and {pairs[i]["image_id"] for i in range(9)} == set(IDS)
    for i in range(len(pairs)):
        sample = pairs[i]
        y, x = part.position[i]
        where = np.s_[:, y - 16 : y + 32, x - 16 : x + 32]
        with rasterio.open(tiles[sample["image_id"]].pre) as pre, rasterio.open(tiles[sample["image_id"]].post) as post:
            optical, sar = pre.read()[where], post.read()[:1][where]
        np.testing.assert_allclose(sample["optical"], scaled(optical), atol=1e-5)
        np.testing.assert_allclose(sample["sar"], scaled(np.log1p(sar.astype(np.float64))), atol=1e-5)
        assert sample["optical"].dtype == torch.float32 and sample["sar"].shape == (1, 48, 48)
        assert bool(sample["is_positive"]) == bool(part.is_positive[i]) == (float(sample["damage_ratio"]) <= 0.05)
        assert sample["position"].tolist() == [y, x] and int(sample["index"]) == i
        assert bool(sample["has_building"]) == bool(part.has_building[i])
    with pytest.raises(IndexError):
        pairs[9]


def test_loader_processes_return_what_one_process_returns(root: Path, table: PatchTable) -> None:
    pairs = PatchPairs(root, table.take(np.arange(8)), RULES, cache_bytes=60_000, transform=paired_transform())
    pairs.set_epoch(3)
    alone = list(DataLoader(pairs, batch_size=4))
    loader = DataLoader(pairs, batch_size=4, num_workers=2, persistent_workers=True)
    pairs.set_epoch(2)  # running processes hear of the next epoch
    earlier = list(loader)
    pairs.set_epoch(3)
    for one, other in zip(alone, loader, strict=True):
        assert one["image_id"] == other["image_id"]
        for name in ("optical", "sar", "index", "position"):
            assert torch.equal(one[name], other[name])
    assert not all(torch.equal(one["sar"], other["sar"]) for one, other in zip(alone, earlier, strict=True))


def test_both_images_are_turned_alike(root: Path, table: PatchTable) -> None:
    plain = PatchPairs(root, table.take(np.arange(4)), RULES)
    turned = PatchPairs(root, table.take(np.arange(4)), RULES, transform=paired_transform(), seed=5)
    seen = set()
    for epoch in range(12):
        turned.set_epoch(epoch)
        for i in range(4):
            before, after = plain[i], turned[i]
            ways = [
                (turns, mirrored)
                for turns in range(4)
                for mirrored in (False, True)
                if all(
                    torch.allclose(_placed(before[name], turns, mirrored), after[name], atol=1e-5)
                    for name in ("optical", "sar")
                )
            ]
            assert len(ways) == 1
            seen.add(ways[0])
    assert len(seen) == 8, "all eight positions of a square occur"
    state = torch.get_rng_state()
    turned[0]
    assert torch.equal(state, torch.get_rng_state()), "the training's own randomness is left alone"


def _placed(image: torch.Tensor, turns: int, mirrored: bool) -> torch.Tensor:
    image = torch.rot90(image, turns, dims=(1, 2))
    return image.flip(2) if mirrored else image


def test_cache_keeps_what_was_used_last_within_its_budget() -> None:
    reads: list[int] = []

    def get(key: int) -> None:
        def read() -> tuple[np.ndarray, np.ndarray]:
            reads.append(key)
            return np.full((3, 10, 10), key, np.uint8), np.full((1, 10, 10), key, np.uint8)

        assert cache.get(key, read)[0].max() == key
        assert cache.size <= cache.budget and cache.size == 400 * len(cache)

    cache = TileCache(1000)
    for key in (1, 2, 1, 3, 1, 2):  # 3 takes the place of 2, which was used before 1
        get(key)
    assert reads == [1, 2, 3, 2] and len(cache) == 2
    reads.clear()
    cache = TileCache(399)
    get(1)
    get(1)
    assert reads == [1, 1] and len(cache) == 0


def test_every_tile_is_decoded_once_if_it_can_be_kept(
    root: Path, table: PatchTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmcd.data import patches

    reads: list[str] = []
    read = patches.read_images
    monkeypatch.setattr(patches, "read_images", lambda tile: reads.append(tile.id) or read(tile))
    pairs = PatchPairs(root, table, RULES)
    for i in range(len(pairs)):
        pairs[i]
    assert sorted(reads) == sorted(IDS)


@pytest.mark.parametrize(
    ("ratio", "fraction", "negatives", "positives"),
    [
        (None, 1.0, 20, 80),
        (0.1, 1.0, 20, 80),  # 10 and 90 are asked for; positives are short, so more negatives are taken
        (0.8, 1.0, 20, 80),  # negatives are short: positives take their place
        (0.8, 0.2, 16, 4),
        (0.8, 0.4, 20, 20),
        (1.0, 0.1, 10, 0),
        (0.0, 0.9, 10, 80),
    ],
)
def test_selection_has_the_share_that_is_asked_for(
    ratio: float | None, fraction: float, negatives: int, positives: int
) -> None:
    is_positive = np.arange(100) >= 20
    drawn = select_patches(is_positive, fraction, ratio, seed=1)
    assert len(set(drawn.tolist())) == len(drawn) == negatives + positives
    assert int((~is_positive[drawn]).sum()) == negatives
    assert np.array_equal(drawn, select_patches(is_positive, fraction, ratio, seed=1))
    if fraction < 1:
        assert set(drawn.tolist()) != set(select_patches(is_positive, fraction, ratio, seed=2).tolist())
    assert np.any(np.diff(drawn) < 0), "in random order"


def test_a_fraction_of_nothing_is_told() -> None:
    with pytest.raises(DataError, match=r"0\.01 of 50 patches is none"):
        select_patches(np.ones(50, bool), 0.01)


def test_metadata_of_other_tiles_are_told(root: Path, table: PatchTable) -> None:
    other = PatchTable(("beirut-explosion_00000009", *IDS[1:]), *(getattr(table, name) for name in _ARRAYS))
    with pytest.raises(DataError, match=r"lacks 1 of the 2 tiles .* beirut-explosion_00000009"):
        PatchPairs(root, other, RULES)
    moved = PatchTable(IDS, table.image, table.position + np.int32(40), *(getattr(table, name) for name in _ARRAYS[2:]))
    with pytest.raises(DataError, match=rf"A patch of tile {IDS[0]} leaves it: .* of 64 × 64 px"):
        PatchPairs(root, moved, RULES)[0]


_ARRAYS = ("image", "position", "damage_ratio", "is_positive", "has_building")
