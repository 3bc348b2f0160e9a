"""Runs kept on disk: model × scene × region → score, mask, STAC item and manifest. Needs no torch."""

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcd.errors import InputError
from mmcd.paths import workspace, workspace_folder

BYTES_A_PIXEL = 4
"""Disk for a run: working file, score and mask, and as much again while a COG is being made."""

EVIDENCE_BYTES_A_PIXEL = 2
"""Disk for the evidence of buildings besides: working file and COG."""

RUN_FILES = ("score.tif", "mask.tif", "item.json", "manifest.json")
"""What a finished run consists of."""

EVIDENCE_FILE = "building_probability.tif"
"""What a run of a model that marks buildings holds besides."""

DISTANCE_FILE = "distance.tif"
"""What a run of the patch method holds besides: the distance of the embeddings before it became a score."""

PICTURE_FILE = "change_prediction.png"
"""What a run of the patch method holds besides, for people: the map, cut at several thresholds."""

EMBEDDINGS_FILE = "embeddings.parquet"
"""What a run of a model that compares embeddings holds besides: those of up to ten thousand patch pairs."""

OPTIONAL_FILES = {
    EVIDENCE_FILE: "evidence",
    DISTANCE_FILE: "distance",
    PICTURE_FILE: "picture",
    EMBEDDINGS_FILE: "embeddings",
}
"""Files that some runs hold, each with the name under which such a run's manifest speaks of it."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        id: Token that cannot be guessed; the same inputs give the same one in a workspace.
        folder: Where its files are.
        manifest: Inputs, model, region, threshold, areas, versions and times.
    """

    id: str
    folder: Path
    manifest: dict[str, Any]

    @property
    def score(self) -> Path:
        """The score COG."""
        return self.folder / "score.tif"

    @property
    def mask(self) -> Path:
        """The change mask COG at the run's threshold."""
        return self.folder / "mask.tif"

    @property
    def evidence(self) -> Path | None:
        """The COG of the probability of buildings; None of a model that marks none."""
        path = self.folder / EVIDENCE_FILE
        return path if "evidence" in self.manifest and path.is_file() else None

    @property
    def embeddings(self) -> Path | None:
        """The table of patch pairs and their embeddings; None of a run that has none."""
        path = self.folder / EMBEDDINGS_FILE
        return path if "embeddings" in self.manifest and path.is_file() else None

    @property
    def scene_id(self) -> str | None:
        """The scene that was scored; None when two files were given."""
        scene = self.manifest["inputs"].get("scene")
        return str(scene) if scene is not None else None


def bytes_a_pixel(marks_buildings: bool) -> int:
    """Return the most disk that a run occupies at any time, in bytes a pixel that it scores."""
    return BYTES_A_PIXEL + (EVIDENCE_BYTES_A_PIXEL if marks_buildings else 0)


def run_folder(run_id: str) -> Path:
    """Return where a run of the workspace is or will be.

    Raises:
        InputError: The id is not one of ours, for example a path.
    """
    if len(run_id) != 32 or not set(run_id) <= set("0123456789abcdef"):
        raise InputError(
            f"{run_id[:40]!r} is not the id of a run.", "Open the run from its scene, or give the folder of a run."
        )
    return workspace_folder("runs") / run_id


def load_run(run_id: str) -> Run:
    """Return a finished run of the workspace.

    Raises:
        InputError: There is none with this id.
    """
    folder = run_folder(run_id)
    if not all((folder / part).is_file() for part in RUN_FILES):
        raise InputError(
            "There is no finished run with this id in the workspace.",
            "Run the scene again, or give the folder that it was written to.",
        )
    return Run(run_id, folder, json.loads((folder / "manifest.json").read_text()))


def list_runs(scene_id: str | None = None) -> list[Run]:
    """Return the finished runs of the workspace, newest first, all or those of one scene."""
    folders = [path.parent for path in workspace_folder("runs").glob("*/manifest.json")]
    runs = [Run(folder.name, folder, json.loads((folder / "manifest.json").read_text())) for folder in folders]
    chosen = [run for run in runs if scene_id is None or run.scene_id == scene_id]
    return sorted(chosen, key=lambda run: str(run.manifest["finished"]), reverse=True)


def run_id_of(key: str) -> str:
    """Return the id of the run with this content key in this workspace.

    The key is signed with a secret of the workspace: tile routes carry run ids and must not be guessed from public
    inputs.
    """
    return hmac.new(_secret(), key.encode(), hashlib.sha256).hexdigest()[:32]


def _secret() -> bytes:
    path = workspace() / "secret"
    if not path.exists():
        fresh = path.with_suffix(f".{secrets.token_hex(4)}")
        fresh.write_text(secrets.token_hex(32))
        fresh.chmod(0o600)
        try:
            path.hardlink_to(fresh)  # the first of several processes wins
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return path.read_bytes()
