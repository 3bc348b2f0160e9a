"""Training that is counted in steps: epochs of a fixed number of batches, whatever the size of the data set."""

from collections.abc import Iterator

from mmcd.samplers import EpochBatchSampler, GroupBatchSampler


class StepBatches(EpochBatchSampler):
    """Cuts the passes over a data set, one after the other, into epochs of a fixed number of batches.

    So a run that is validated every 500 steps has epochs of 500 steps, each can be resumed from, and its order depends
    only on the seed and the number of the step.

    Args:
        passes: Batches of one pass.
        batches: Batches of an epoch.
        samples: Samples of the data set where every draw is to have a number of its own: a batch then holds
            ``index + samples * step``. 0 gives the indices alone.
    """

    def __init__(self, passes: GroupBatchSampler, batches: int, samples: int = 0) -> None:
        self._passes = passes
        self._batches = batches
        self._samples = samples

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        length = len(self._passes)
        order: list[list[int]] = []
        drawn = -1
        for step in range(self.epoch * self._batches, (self.epoch + 1) * self._batches):
            number, place = divmod(step, length)
            if number != drawn:
                self._passes.set_epoch(number)
                order, drawn = list(self._passes), number
            yield [index + self._samples * step for index in order[place]]
