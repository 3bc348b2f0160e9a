"""Opens the data of a run and says which of its samples train and which validate."""

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmcd.data.base import PairDataset
from mmcd.data.bright_pairs import BrightPairs
from mmcd.data.levir import LevirPairs
from mmcd.data.ombria import Ombria
from mmcd.data.simulated import Simulated
from mmcd.errors import ConfigError, DataError
from mmcd.progress import Progress, silent
from mmcd.training.config import BrightDataConfig, ChangeTraining, LevirDataConfig, SimulatedDataConfig
from mmcd.training.validation import grouped_folds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """A data set and which of its samples train and validate.

    Attributes:
        dataset: All samples.
        training: Indices of the training samples.
        held_out: Indices of the validation fold; empty when everything trains.
        share: Share of change of the data; validation is weighted to parts of it.
        calibrating: Indices of the validation samples that calibrate the card; None for all.
    """

    dataset: PairDataset
    training: NDArray[np.intp]
    held_out: NDArray[np.intp]
    share: float
    calibrating: NDArray[np.intp] | None = None


def open_split(config: ChangeTraining, progress: Progress = silent) -> Split:
    """Open the data set and hold out the fold or the scenes of the configuration.

    Args:
        config: The run's configuration.
        progress: Told of the scenes that are simulated or checked; may raise to stop.

    Raises:
        DataError: The data set is not there or too small to split.
        ConfigError: There is no such fold.
    """
    options = config.data
    if isinstance(options, SimulatedDataConfig):
        simulated = Simulated(options.scenes, progress)
        natural = float(simulated.changed_share[simulated.validation].mean())
        return Split(simulated, simulated.training, simulated.validation, natural)
    if isinstance(options, BrightDataConfig):
        return _bright_split(options, progress)
    if isinstance(options, LevirDataConfig):
        return _levir_split(options)
    dataset = Ombria(options.root, options.event, (config.pre, config.post))
    everything, share = np.arange(len(dataset)), float(dataset.changed_share.mean())
    if options.fold is None:
        return Split(dataset, everything, everything[:0], share)
    if options.fold >= options.folds:
        raise ConfigError(
            f"Fold {options.fold} of {options.folds} does not exist.", "Folds are counted from 0: --set data.fold=0."
        )
    held_out = grouped_folds(dataset.groups, dataset.changed_share, options.folds)[options.fold]
    return Split(dataset, np.setdiff1d(everything, held_out), held_out, share)


def _bright_split(options: BrightDataConfig, progress: Progress) -> Split:
    """Open BRIGHT's train and val tiles.

    Raises:
        DataError: A list or a tile cannot be used, or no tile that calibrates the card shows damage.
    """
    pairs = BrightPairs(options, progress)
    for line in pairs.warnings:
        logger.warning(line)
    step = -(-len(pairs.validation) // options.calibration_tiles)
    calibrating = pairs.validation[::step]
    share = float(pairs.shares(calibrating).mean())
    if not share:
        raise DataError(
            f"None of the {len(calibrating):,} val tiles that would calibrate the model shows damage.",
            "Give a val list with damaged or destroyed buildings, or more of it: --set data.calibration_tiles=N.",
        )
    return Split(pairs, pairs.training, pairs.validation, share, calibrating)


def _levir_split(options: LevirDataConfig) -> Split:
    """Open the pairs of train and val.

    Raises:
        DataError: A part is not there, a file cannot be used, the pairs differ in size, or no pair of val shows change.
    """
    pairs = LevirPairs(options.root, ("train", "val"), options.size, options.label_resize)
    if options.strict:
        pairs.refuse_faults()
    if options.size is None and len(pairs.sizes) > 1:
        raise DataError(pairs.warnings[-1], "Resize all of them: --set data.size=512.")
    for line in pairs.warnings:
        logger.warning(line)
    share = float(np.mean([pairs.target(index).mean() for index in pairs.rows["val"].tolist()]))
    if not share:
        raise DataError(
            f"None of the {len(pairs.rows['val']):,} val pairs in {options.root} shows change at the size trained on.",
            "Give val pairs with 255 where a building changed: they choose the weights and calibrate them.",
        )
    return Split(pairs, pairs.rows["train"], pairs.rows["val"], share)
