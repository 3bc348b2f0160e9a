"""Measure a pretrained trunk on a downstream task: train what follows it, score the test part, once a seed."""

from collections.abc import Mapping
from typing import Any

from mmcd.errors import ConfigError
from mmcd.progress import Progress, silent
from mmcd.services.evaluate_request import EvaluateRequest
from mmcd.services.published_downstream import published_downstream
from mmcd.training.benchmarks import BENCHMARKS, read_downstream
from mmcd.training.downstream import Benchmark, DownstreamConfig, Outcome, run_seeds
from mmcd.training.trunk_start import trunk_words

FEW_SEEDS = 3
"""Seeds below which a spread says nothing."""


def evaluate_downstream(request: EvaluateRequest, progress: Progress = silent) -> dict[str, Any]:
    """Return the test figures of every seed, their mean and spread, and the published table beside them.

    Raises:
        ConfigError: The configuration is not of this data set, or does not fit it.
        DataError: The data set is not there, or damaged.
        ModelError: There is no such trunk, or it is damaged.
    """
    benchmark, config = _configured(request)
    seeds = config.start.seeds if request.seeds is None else tuple(range(request.seeds))
    rows, outcomes = run_seeds(benchmark, config, seeds, progress)
    *single, mean, spread = ({name: value for name, value in row.items() if name != "seed"} for row in rows)
    first = outcomes[0]
    return {
        "model": request.model,
        "dataset": request.dataset,
        "title": benchmark.title,
        "start": dict(trunk_words(config.start)),
        "unit": first.unit,
        "samples": dict(first.samples),
        "seeds": {str(seed): row for seed, row in zip(seeds, single, strict=True)},
        "mean": mean,
        "sd": spread,
        "details": {str(seed): dict(outcome.details) for seed, outcome in zip(seeds, outcomes, strict=True)},
        "published": published_downstream(request.dataset),
        "warnings": [*_warnings(outcomes), *first.warnings],
        "config": config.model_dump(mode="json"),
    }


def _configured(request: EvaluateRequest) -> tuple[Benchmark[Any], DownstreamConfig]:
    """Return the task with the request's words over its configuration."""
    overrides: dict[str, Any] = {"data.root": str(request.root), "start.trunk": request.model}
    if request.device != "auto":
        overrides["trainer.device"] = request.device
    if request.precision != "auto":
        overrides["trainer.precision"] = request.precision
    if request.config is None:
        benchmark = BENCHMARKS[request.dataset]
        return benchmark, benchmark.config.model_validate(_nested(overrides | {"data.source": request.dataset}))
    benchmark, config = read_downstream(request.config, overrides)
    if config.data.source != request.dataset:
        raise ConfigError(
            f"{request.config} is for {config.data.source}, not for {request.dataset}.",
            f"Give --dataset {config.data.source}, or another --config.",
        )
    return benchmark, config


def _nested(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return groups of options from keys such as ``data.root``."""
    groups: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        group, _, name = key.partition(".")
        groups.setdefault(group, {})[name] = value
    return groups


def _warnings(outcomes: list[Outcome]) -> list[str]:
    if len(outcomes) >= FEW_SEEDS:
        return []
    seeds = "One seed has" if len(outcomes) == 1 else f"{len(outcomes)} seeds have"
    return [f"{seeds} no spread to compare trunks by: give --seeds {FEW_SEEDS}."]
