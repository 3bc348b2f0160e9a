"""The downstream tasks that a pretrained trunk can be measured on, by the name of their data set."""

from pathlib import Path
from typing import Any

from mmcd.config import read_yaml
from mmcd.errors import ConfigError
from mmcd.training.bigearthnet_task import BigEarthNetConfig, run_bigearthnet
from mmcd.training.downstream import Benchmark, DownstreamConfig
from mmcd.training.eurosat_task import EuroSatConfig, run_eurosat
from mmcd.training.land_cover_task import GidConfig, PastisConfig, run_gid, run_pastis
from mmcd.training.oscd_task import OscdConfig, run_oscd

BENCHMARKS: dict[str, Benchmark[Any]] = {
    "bigearthnet": Benchmark("Kinds of land in a patch, BigEarthNet-19", BigEarthNetConfig, run_bigearthnet),
    "eurosat": Benchmark("Ten kinds of land, EuroSAT", EuroSatConfig, run_eurosat),
    "oscd": Benchmark("What was built between two Sentinel-2 images of a city, OSCD", OscdConfig, run_oscd),
    "pastis": Benchmark("Crops in single Sentinel-2 images, PASTIS", PastisConfig, run_pastis),
    "gid": Benchmark("Land cover in images of Gaofen-2, GID", GidConfig, run_gid),
}
"""One line a task."""


def read_downstream(path: Path, overrides: dict[str, Any]) -> tuple[Benchmark[Any], DownstreamConfig]:
    """Read the configuration of a downstream task; ``data.source`` says which.

    Raises:
        ConfigError: The file is no valid configuration, or names a data set without a task.
    """
    data = read_yaml(path).get("data")
    source = overrides.get("data.source", data.get("source") if isinstance(data, dict) else None)
    if source not in BENCHMARKS:
        raise ConfigError(
            f"{path}: there is no downstream task on data.source {source!r}.", f"Write {', '.join(BENCHMARKS)}."
        )
    benchmark = BENCHMARKS[source]
    return benchmark, benchmark.config.from_yaml(path, overrides)
