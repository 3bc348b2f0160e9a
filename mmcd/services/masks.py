"""The change mask of a finished run at another threshold than the one it was made with."""

from pathlib import Path

from mmcd.export import write_mask
from mmcd.geo.raster import RasterSource
from mmcd.score import threshold_value
from mmcd.services.runs import load_run


def mask_at(run_id: str, threshold: float) -> Path:
    """Return the change mask COG of a run at a threshold, written when it is asked for the first time.

    Args:
        run_id: A finished run.
        threshold: Probability from which a pixel counts as changed, in [0, 1].

    Raises:
        InputError: There is no such run.
        StorageError: The disk is full or the place cannot be written.
    """
    run = load_run(run_id)
    value = threshold_value(threshold)
    if value == threshold_value(run.manifest["threshold"]):
        return run.mask
    path = run.folder / "masks" / f"mask_{value:03d}.tif"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        with RasterSource(run.score) as source:
            grid = source.grid
        write_mask(run.score, grid, threshold, path, {"MMCD_RUN": run_id, "MMCD_THRESHOLD": f"{threshold:.3f}"})
    return path
