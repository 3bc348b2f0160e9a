"""The map's third-party files: fetched once into the workspace, checked by hash, then served by the app itself.

None of them travels with mmcd. With the files in place a map needs no other host; without them the browser loads
Leaflet from a content delivery network, and the world map has no coast lines.
"""

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmcd.errors import NetworkError, StorageError
from mmcd.paths import workspace_folder

CDN = "https://cdn.jsdelivr.net/npm"
TIMEOUT_SECONDS = 20
_NPM_PATIENCE = ("--fetch-retries=0", f"--fetch-timeout={TIMEOUT_SECONDS * 1000}")  # a dead network must not hang us


@dataclass(frozen=True)
class Asset:
    """One file of a published npm package.

    Attributes:
        package: Package and version, ``name@version``.
        member: Path of the file inside the package.
        sha256: Its hash.
    """

    package: str
    member: str
    sha256: str

    @property
    def path(self) -> str:
        """Path below the assets folder; relative addresses between files of one package stay right."""
        return f"{self.package}/{self.member}"

    @property
    def url(self) -> str:
        """Address on the content delivery network."""
        return f"{CDN}/{self.path}"


LEAFLET = "leaflet@1.9.4"  # BSD-2-Clause
LEAFLET_DRAW = "leaflet-draw@1.0.4"  # MIT
WORLD_ATLAS = "world-atlas@2.0.2"  # ISC; the coast lines are Natural Earth's, public domain

LEAFLET_JS = Asset(LEAFLET, "dist/leaflet.js", "db49d009c841f5ca34a888c96511ae936fd9f5533e90d8b2c4d57596f4e5641a")
LEAFLET_CSS = Asset(LEAFLET, "dist/leaflet.css", "a7837102824184820dfa198d1ebcd109ff6d0ff9a2672a074b9a1b4d147d04c6")
DRAW_JS = Asset(
    LEAFLET_DRAW, "dist/leaflet.draw.js", "b22a1f7385308e5adadd85a4c2d84e9fc523ebd70d37868cba0fe2387362460b"
)
DRAW_CSS = Asset(
    LEAFLET_DRAW, "dist/leaflet.draw.css", "5f30f74696873efee5cd7f6ab7eda7d63e5c5a3e3c3b6e0ab2068662928df31f"
)
LAND = Asset(WORLD_ATLAS, "land-110m.json", "ead5f68119c49a9250902e7da303bcb209341bbb8fefe7369a439b48b704658a")
ASSETS = (
    LEAFLET_JS,
    LEAFLET_CSS,
    DRAW_JS,
    DRAW_CSS,
    Asset(LEAFLET, "dist/images/layers.png", "1dbbe9d028e292f36fcba8f8b3a28d5e8932754fc2215b9ac69e4cdecf5107c6"),
    Asset(LEAFLET, "dist/images/layers-2x.png", "066daca850d8ffbef007af00b06eac0015728dee279c51f3cb6c716df7c42edf"),
    LAND,
)


def assets_folder() -> Path:
    """Return where the assets are kept."""
    return workspace_folder("assets")


def missing_assets(folder: Path | None = None) -> tuple[Asset, ...]:
    """Return the assets that are absent or damaged."""
    folder = folder or assets_folder()
    return tuple(asset for asset in ASSETS if not _intact(folder / asset.path, asset))


def fetch_assets(folder: Path | None = None) -> list[str]:
    """Fetch what is missing, from the content delivery network or else through ``npm pack``.

    Args:
        folder: Where to put the files; the workspace's assets folder by default.

    Returns:
        One line for people a file that was fetched, or one in all.

    Raises:
        NetworkError: Neither way delivers the right bytes.
        StorageError: The folder cannot be written.
    """
    folder = folder or assets_folder()
    missing = missing_assets(folder)
    lines = [] if missing else [f"The map's {len(ASSETS)} files are in {folder}."]
    try:
        for package in dict.fromkeys(asset.package for asset in missing):
            wanted = [asset for asset in missing if asset.package == package]
            for asset, content in _fetch(package, wanted).items():
                _store(folder / asset.path, content)
                lines.append(f"{asset.path}: fetched, hash verified")
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error}.", "Free some space and try again.") from error
    return lines


def _fetch(package: str, wanted: list[Asset]) -> dict[Asset, bytes]:
    """Return verified contents of files of one package from the first source that has them all."""
    sources: tuple[Callable[[str, list[Asset]], dict[Asset, bytes]], ...] = (_from_cdn, _from_npm)
    reasons = []
    for source in sources:
        try:
            contents = source(package, wanted)
        except NetworkError as error:
            reasons.append(error.message)
            continue
        damaged = [a.path for a in wanted if hashlib.sha256(contents[a]).hexdigest() != a.sha256]
        if not damaged:
            return contents
        reasons.append(f"{damaged[0]} does not have the expected SHA-256")
    raise NetworkError(
        f"{package} cannot be fetched: {'; '.join(reasons)}.",
        "Run `mmcd assets` again with internet access, or with npm and a package registry.",
    )


def _from_cdn(package: str, wanted: list[Asset]) -> dict[Asset, bytes]:
    contents = {}
    for asset in wanted:
        try:
            with urllib.request.urlopen(asset.url, timeout=TIMEOUT_SECONDS) as response:
                contents[asset] = response.read()
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise NetworkError(f"{CDN} cannot be reached ({getattr(error, 'reason', error)})") from error
    return contents


def _from_npm(package: str, wanted: list[Asset]) -> dict[Asset, bytes]:
    npm = shutil.which("npm")
    if npm is None:
        raise NetworkError("npm is not installed")
    with tempfile.TemporaryDirectory() as scratch:
        packed = subprocess.run(
            [npm, "pack", package, "--silent", "--pack-destination", scratch, *_NPM_PATIENCE],
            cwd=scratch,
            capture_output=True,
            text=True,
            check=False,
        )
        archives = list(Path(scratch).glob("*.tgz"))
        if packed.returncode or not archives:
            reason = packed.stderr.strip().splitlines()
            raise NetworkError(f"npm pack failed ({reason[-1] if reason else packed.returncode})")
        with tarfile.open(archives[0]) as archive:
            return {asset: _member(archive, asset) for asset in wanted}


def _member(archive: tarfile.TarFile, asset: Asset) -> bytes:
    try:
        file = archive.extractfile(f"package/{asset.member}")
    except KeyError:
        file = None
    if file is None:
        raise NetworkError(f"{asset.package} holds no {asset.member}")
    return file.read()


def _store(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(content)
    partial.replace(path)


def _intact(path: Path, asset: Asset) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == asset.sha256
