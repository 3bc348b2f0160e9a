"""Train a momentum encoder with CACo on one of several processes, and embed keys with exchanged batches.

Run as ``moco_ranks.py PROCESSES FOLDER``; the tests compare the results, ``0.pt`` and so on, with one process.
"""

import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from mmcd.losses.pretraining import caco_loss, own_keys
from mmcd.models.moco import MomentumEncoder, MomentumSettings
from mmcd.training.change_labels import ChangeLabels, change_distances

BATCH, PLACES, STEPS, BANDS = 8, 8, 5, 4
SETTINGS = MomentumSettings(subspaces=3, dim=6, hidden=(12,), queue=24, momentum=0.9)


def encoder(norm: nn.Module | None = None) -> nn.Sequential:
    """Return a small trunk of 10 features."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(BANDS, 10, 3, stride=2), norm or nn.Identity(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Return four views of a batch, shape (4, BATCH, BANDS, 9, 9), and the places of its rows."""
    generator = torch.Generator().manual_seed(100 + step)
    places = torch.randperm(PLACES, generator=generator)[: BATCH // 2].repeat_interleave(2)
    return torch.randn(4, BATCH, BANDS, 9, 9, generator=generator), places


class Step(nn.Module):
    """What a task does in a step, with the beliefs beside the network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = MomentumEncoder(encoder(), 10, SETTINGS)
        self.beliefs = ChangeLabels(PLACES)

    def forward(self, views: Tensor, places: Tensor) -> Tensor:
        halves = torch.arange(len(places)) % 2
        first = self.net.first_row(len(places))
        queries = self.net.embed_query(views[0])
        keys = self.net.embed_keys(*views[1:], views[0])
        changed = self.beliefs.changed(places, halves)
        loss = caco_loss(queries, keys[:, :3], self.net.negatives(), changed, first=first).sum()
        own = slice(first, first + len(places))
        self.beliefs.update(places, halves, *change_distances(keys[1, 3, own], keys[1, 1, own]))
        self.net.enqueue(own_keys(keys))
        return loss


class Run:
    """A training that can be stopped, saved and taken up."""

    def __init__(self, rank: int = 0, processes: int = 1) -> None:
        self.model = Step()
        self.mine = slice(rank * BATCH // processes, (rank + 1) * BATCH // processes)
        self.parallel = DistributedDataParallel(self.model) if processes > 1 else self.model
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.SGD(learning, lr=0.05, momentum=0.9)

    def train(self, steps: range) -> None:
        """Take steps; the beliefs are fitted after every second one."""
        for step in steps:
            views, places = batch(step)
            loss = self.parallel(views[:, self.mine], places[self.mine])
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            if step % 2:
                self.model.beliefs.fit()


def some_keys(rank: int, processes: int, shuffle: bool) -> Tensor:
    """Return two views' keys by a trunk in training: with batch norm if rows are exchanged, without if not."""
    settings = replace(SETTINGS, shuffle=shuffle)
    net = MomentumEncoder(encoder(nn.BatchNorm2d(10) if shuffle else None), 10, settings).train()
    views, _ = batch(0)
    return net.embed_keys(*views[:2].chunk(processes, dim=1)[rank])


def run_rank(rank: int, processes: int, folder: Path) -> None:
    """Do everything as one of several processes and save what came out."""
    torch.set_num_threads(1)
    meeting = (folder / "meeting").resolve().as_uri()
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    run = Run(rank, processes)
    run.train(range(STEPS))
    mixed, kept = (some_keys(rank, processes, shuffle) for shuffle in (True, False))
    torch.save({"state": run.model.state_dict(), "mixed": mixed, "kept": kept}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def main() -> None:
    # What takes long, the imports, is done once; nothing was computed yet that a fork would tear.
    context = multiprocessing.get_context("fork")
    processes, folder = int(sys.argv[1]), Path(sys.argv[2])
    ranks = [context.Process(target=run_rank, args=(rank, processes, folder)) for rank in range(processes)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    sys.exit(any(rank.exitcode for rank in ranks))


if __name__ == "__main__":
    main()
