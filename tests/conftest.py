"""Fixtures shared by all tests, and the choice of what can run on this machine."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from scipy.ndimage import gaussian_filter
from torch.utils.data._utils import signal_handling

from mmcd.cards import Branch, Card, Decision, Gsd, read_card, write_card
from mmcd.data.eurosat_files import CLASSES
from mmcd.geo.cog import Band, write_cog
from mmcd.geo.grid import Grid
from mmcd.models import zoo
from mmcd.services.simulate import SimulateRequest
from mmcd.services.simulate_bright import simulate_bright

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"
PAIR_SIZE = (700, 900)
BROWSER = "tests/studio/browser/"
LONGEST = (BROWSER, "tests/test_cli.py")
"""What runs first: begun last, one process would wait for the other."""

Slices = tuple[slice, slice]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what needs the shared images or chromium where those are missing; under CI that is a failure."""
    missing = {
        "real_data": not SHARED_DATA.is_dir() and f"no third-party images at {SHARED_DATA}",
        "browser": shutil.which("chromium") is None and "no chromium on the path",
    }
    for marker, reason in missing.items():
        affected = [item for item in items if item.get_closest_marker(marker)]
        if not reason or not affected:
            continue
        if os.environ.get("CI") == "true":
            raise pytest.UsageError(f"{reason}: {len(affected)} tests marked {marker!r} cannot run")
        config.get_terminal_writer().line(f"{reason}: {len(affected)} tests marked {marker!r} are deselected")
        config.hook.pytest_deselected(items=affected)
        items[:] = [item for item in items if item not in affected]
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Keep a module in one process, so that what it prepares is prepared once, and all browsers in the same one.

    Not by `xdist_group`: pytest-xdist 3.8 marks node ids in a way that pytest 9.2 no longer reads, and silently hands
    out single tests.
    """
    from xdist.scheduler import LoadFileScheduling  # only where tests run in parallel

    class ModulesTogether(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return BROWSER if nodeid.startswith(BROWSER) else nodeid.split("::", 1)[0]

    return ModulesTogether(config, log)


@pytest.fixture(autouse=True)
def quiet_children() -> Iterator[None]:
    """Undo what torch's loader processes leave: a handler that is called whenever any child of this process ends.

    With OpenVINO in the same process, the next child that ends then ends the process itself.
    """
    yield
    if signal.getsignal(signal.SIGCHLD) is not signal.SIG_DFL:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal_handling._SIGCHLD_handler_set = False


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real third-party images; only for tests marked ``real_data``."""
    return SHARED_DATA


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace of its own for one test."""
    folder = tmp_path / "workspace"
    monkeypatch.setenv("MMCD_WORKSPACE", str(folder))
    return folder


def write_pair(folder: Path, seed: int, shape: tuple[int, int], sigma: int, holes: list[Slices]) -> tuple[Path, Path]:
    """Write an optical (3 bands) and a SAR (1 band) COG of smooth noise at 10 m; the SAR has holes without data."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(4, *shape)), (0, sigma, sigma))
    images = np.clip(128 + 400 * noise, 1, 255).astype(np.uint8)
    for hole in holes:
        images[3][hole] = 0
    grid = Grid("EPSG:32634", Affine(10, 0, 400_000, 0, -10, 4_600_000), *shape)
    pre = write_cog(folder / "pre.tif", images[:3], grid, Band(names=("B11", "B8", "B3")))
    post = write_cog(folder / "post.tif", images[3], grid, Band(names=("VV",), nodata=0))
    return pre, post


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An optical (3 bands) and a SAR (1 band) COG of 700 × 900 px at 10 m; the SAR has a hole and an empty edge."""
    holes = [np.s_[:, :40], np.s_[300:340, 500:560]]
    return write_pair(tmp_path_factory.mktemp("pair"), 0, PAIR_SIZE, 3, holes)


@pytest.fixture(scope="session")
def bright_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen tiles in BRIGHT's layout, three of each of six events. Not to be changed."""
    root = tmp_path_factory.mktemp("bright") / "tree"
    simulate_bright(SimulateRequest(out=root, scenes=18, size=128, gsd=1.0, layout="bright"))
    return root


@pytest.fixture(scope="session")
def small_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An optical and a SAR COG of 60 × 160 px at 10 m; the SAR has a hole."""
    return write_pair(tmp_path_factory.mktemp("small-pair"), 1, (60, 160), 2, [np.s_[20:40, 100:120]])


@pytest.fixture(scope="session")
def card_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of an untrained model whose weights lie beside it."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    model = zoo.build("siamese", 3, 1, {})
    sha256 = zoo.save(model, folder / "tiny.safetensors")
    card = Card(
        name="tiny",
        version="0",
        title="Untrained",
        description="For tests.",
        architecture="siamese",
        settings={},
        weights="tiny.safetensors",
        sha256=sha256,
        pre=Branch(
            modality="optical",
            sensor="Sentinel-2",
            bands=("B11", "B8", "B3"),
            unit="reflectance",
            mean=(0.5,) * 3,
            std=(0.2,) * 3,
        ),
        post=Branch(modality="sar", sensor="Sentinel-1", bands=("VV",), unit="db", mean=(0.5,), std=(0.2,)),
        gsd=Gsd(nominal=10, min=5, max=30),
        classes=("unchanged", "changed"),
        decision=Decision(head_weight=40.0, cosine_weight=20.0, intercept=-20.0, threshold=0.5),
        training={},
        licence={"weights": "Apache-2.0"},
    )
    write_card(card, folder / "tiny.toml")
    return folder / "tiny.toml"


@pytest.fixture(scope="session")
def building_card_path(card_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of a small untrained model that marks buildings; about half of what it sees is one to it."""
    folder = tmp_path_factory.mktemp("building-weights")
    settings = {"classes": 4, "changed_from": 2, "width": 16, "embedding_dim": 8}
    torch.manual_seed(0)
    model = zoo.build("siamese", 3, 1, settings)
    with torch.no_grad():
        head = model.get_submodule("decoder.logit")
        head.weight.mul_(20)
        head.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    changes = {
        "name": "tiny-buildings",
        "settings": settings,
        "weights": "tiny.safetensors",
        "sha256": zoo.save(model, folder / "tiny.safetensors"),
        "classes": ("background", "intact", "damaged", "destroyed"),
    }
    write_card(read_card(card_path).model_copy(update=changes), folder / "tiny.toml")
    return folder / "tiny.toml"


@pytest.fixture(scope="session")
def optical_card_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of a small untrained fusion UNet of two optical images."""
    folder = tmp_path_factory.mktemp("optical-weights")
    settings = {"trunk": "resnet18", "levels": 3, "width": 0.25, "embed_dim": 64}
    torch.manual_seed(0)
    sha256 = zoo.save(zoo.build("fusion_unet", 3, 3, settings), folder / "tiny-optical.safetensors")
    values = {"unit": "uint8", "mean": (0.5,) * 3, "std": (0.2,) * 3}
    branch = Branch(modality="optical", sensor="aerial photograph", bands=("B4", "B3", "B2"), **values)
    card = Card(
        name="tiny-optical",
        version="0",
        title="Untrained",
        description="For tests.",
        architecture="fusion_unet",
        settings=settings,
        weights="tiny-optical.safetensors",
        sha256=sha256,
        pre=branch,
        post=branch,
        gsd=Gsd(nominal=0.5, min=0.3, max=1),
        classes=("unchanged", "changed"),
        decision=Decision(head_weight=4.0, cosine_weight=0.0, threshold=0.5),
        training={},
        licence={"weights": "Apache-2.0"},
    )
    write_card(card, folder / "tiny-optical.toml")
    return folder / "tiny-optical.toml"


@pytest.fixture(scope="session")
def optical_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two optical COGs (red, green, blue) of 150 × 200 px at 0.5 m; the second one has a hole and new squares."""
    folder = tmp_path_factory.mktemp("optical-pair")
    random = np.random.default_rng(2)
    ground = 120 + 300 * gaussian_filter(random.normal(size=(3, 150, 200)), (0, 2, 2))
    after = ground + random.normal(0, 4, ground.shape)
    after[:, 30:60, 20:70], after[:, 100:140, 150:190] = 220, 40
    grid = Grid("EPSG:32634", Affine(0.5, 0, 400_000, 0, -0.5, 4_600_000), 150, 200)
    images = [np.clip(image, 1, 255).astype(np.uint8) for image in (ground, after)]
    images[1][:, 70:90, 100:130] = 0
    bands = ("red", "green", "blue")
    pre = write_cog(folder / "pre.tif", images[0], grid, Band(names=bands))
    return pre, write_cog(folder / "post.tif", images[1], grid, Band(names=bands, nodata=0))


@pytest.fixture(scope="session")
def floods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve tiles of 32 px in six groups, in OMBRIA's layout."""
    root = tmp_path_factory.mktemp("floods")
    random = np.random.default_rng(0)
    rows = ["folder,tile_id,scene_group,group_size"]
    for number in range(12):
        flooded = np.zeros((1, 32, 32), bool)
        flooded[:, : random.integers(4, 28), : random.integers(4, 28)] = True
        layers = {
            "OmbriaS2/train/BEFORE/S2_before_{}.png": random.integers(60, 120, (3, 32, 32)),
            "OmbriaS1/train/AFTER/S1_after_{}.png": np.where(flooded, 60, 180) + random.integers(-20, 20, (1, 32, 32)),
            "OmbriaS1/train/MASK/S1_mask_{}.png": flooded * 255,
        }
        for name, values in layers.items():
            path = root / name.format(f"{number:04d}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with rasterio.open(path, "w", driver="PNG", count=len(values), height=32, width=32, dtype="uint8") as file:
                file.write(values.astype(np.uint8))
        rows.append(f"train,{number:04d},{number // 2},2")
    (root / "scene_groups.csv").write_text("\n".join(rows))
    return root


@pytest.fixture(scope="session")
def eurosat_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images in both layouts of EuroSAT, with their lists; kinds of land differ in colour. Not to be changed."""
    root = tmp_path_factory.mktemp("eurosat")
    write_eurosat(root)
    return root


def write_eurosat(root: Path) -> None:
    """Write four images of each of EuroSAT's ten classes, in colour and in 13 bands, numbered 1, 2, 10 and 11."""
    random = np.random.default_rng(0)
    homes = (root / "EuroSAT_RGB", root / "ds" / "images" / "remote_sensing" / "otherDatasets" / "sentinel_2" / "tif")
    numbers = (1, 2, 10, 11)
    for name in CLASSES:
        spectrum = random.uniform(500, 4000, 13)
        for number in numbers:
            values = np.clip(spectrum[:, None, None] + random.normal(0, 60, (13, 64, 64)), 1, 10_000)
            colour = values[[3, 2, 1]] * 255 / 4500
            images = ((colour, "JPEG", "jpg", "uint8"), (values, "GTiff", "tif", "uint16"))
            for home, (bands, driver, ending, kind) in zip(homes, images, strict=True):
                path = home / name / f"{name}_{number}.{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                with rasterio.open(path, "w", driver=driver, count=len(bands), height=64, width=64, dtype=kind) as file:
                    file.write(bands.astype(kind))
    lists = {
        "train": (1, 10),
        "val": (2, 11),
        "eurosat-train": (1, 2),
        "eurosat-val": (10,),
        "eurosat-test": (11,),
        "eurosat-spatial-train": (10, 11),
        "eurosat-spatial-val": (1,),
        "eurosat-spatial-test": (2,),
    }
    for name, chosen in lists.items():
        lines = [f"{each}_{number}.jpg" for each in CLASSES for number in chosen]
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def bigearthnet_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty patches in BigEarthNet's layout: four kinds of land that differ in colour. Not to be changed."""
    root = tmp_path_factory.mktemp("bigearthnet")
    write_bigearthnet(root)
    return root


def write_bigearthnet(root: Path) -> None:
    """Write patches with one of four pairs of labels each, bands of 10, 20 and 60 m, and the three lists."""
    random = np.random.default_rng(0)
    bands = ("01", "02", "03", "04", "05", "06", "07", "08", "8A", "09", "11", "12")
    sides = {"02": 120, "03": 120, "04": 120, "08": 120, "01": 20, "09": 20}
    labels = (
        ["Sea and ocean"],
        ["Coniferous forest", "Burnt areas"],
        ["Pastures", "Water bodies"],
        ["Non-irrigated arable land", "Discontinuous urban fabric"],
    )
    spectra = random.uniform(100, 1500, (len(labels), len(bands)))
    lines = []
    for number in range(20):
        name = f"S2A_MSIL2A_20170613T101031_{number}_45"
        folder = root / "BigEarthNet-v1.0" / name
        folder.mkdir(parents=True)
        lines.append(f"{name},S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{number}_45")
        (folder / f"{name}_labels_metadata.json").write_text(json.dumps({"labels": labels[number % 4]}))
        for band, level in zip(bands, spectra[number % 4], strict=True):
            side = sides.get(band, 60)
            values = np.clip(level + random.normal(0, 20, (1, side, side)), 1, 10_000).astype(np.uint16)
            path = folder / f"{name}_B{band}.tif"
            with rasterio.open(path, "w", driver="GTiff", count=1, height=side, width=side, dtype="uint16") as file:
                file.write(values)
    for part, rows in (("train", lines[:12]), ("val", lines[12:16]), ("test", lines[16:])):
        (root / f"bigearthnet-{part}.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="session")
def written_trainings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with trainings, to be copied; MLflow takes seconds to create a store."""
    from .studio.trained import write_trainings

    folder = tmp_path_factory.mktemp("trained")
    write_trainings(folder)
    return folder


@pytest.fixture
def trained(written_trainings: Path, workspace: Path) -> Path:
    """A workspace of the test's own with trainings in it."""
    shutil.copytree(written_trainings, workspace)
    return workspace
