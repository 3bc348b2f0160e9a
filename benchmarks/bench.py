"""Every speed that mmcd claims, measured against its baseline in the same run, as one table.

    make bench                                      # or: python benchmarks/bench.py
    python benchmarks/bench.py --only a,c,g         # some of the parts
    python benchmarks/bench.py --full --json out.json

    a  the dense pass against the reference's 9,409 crops of a tile, and what both learn in equal processor seconds
    b  a scene from files to file against the network alone on the same blocks
    c  operations a second against those of a large 3x3 convolution
    d  from a request to the first tile of its result, with a warm worker, on two threads
    e  from the threshold's slider to the repainted map, in Chromium
    f  peak memory of a scene of 2,500 x 2,500 px and, with --full, of 10,000 x 10,000
    g  F1 at every threshold against scikit-learn's curve
    h  the stored score against GDAL's default COG of floats
    i  the same pair through the U-Net that BRIGHT was published with
    j  training pairs a second of the dense form against the patch form
    k  the patch metadata of 100 tiles against the reference's loop
    l  megapixels a second through the fusion UNet with each trunk, and its operations against a large convolution's
    m  training images a second of the fusion UNet: trunk frozen, its features kept on disk, and trained too
    n  pretraining images a second from tiles to step against the same step on views that lie ready
    o  texture codes of a batch against scikit-image's
    p  the pages with 200 scenes, the picture of 10,000 patch pairs, the server's memory after 50 visitors

Each part runs in a process of its own, on one thread where nothing else is said; all share a workspace that is thrown
away.
Times are medians or minima of interleaved repeats, in processor seconds unless a row says clock: on a machine that
others use too, ratios of these repeat within some per cent, while clocks do not. A part that fails says why and the
rest goes on. The exit code is 0 unless a part failed; a missed target is printed, not hidden, and fails nothing.
"""

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench_table import NOT_MEASURED, Options, Row, Target, machine, missing, table

LIBRARIES = ("torch", "openvino", "numpy", "rasterio", "scikit-learn", "streamlit")


@dataclass(frozen=True)
class Part:
    """What one letter measures.

    Attributes:
        letter: The letter.
        functions: Functions of the benchmark's modules that return its rows, ``module:function``.
        threads: Threads of one operation.
    """

    letter: str
    functions: tuple[str, ...]
    threads: int = 1


PARTS = (
    Part("a", ("bench_networks:speed_of_tile", "bench_training:accuracy_of_both")),
    Part("b", ("bench_scenes:whole_path",)),
    Part("c", ("bench_networks:arithmetic_speed",)),
    Part("d", ("bench_scenes:click_to_overlay",), threads=2),
    Part("e", ("bench_browser:slider_to_repaint",)),
    Part("f", ("bench_scenes:memory",)),
    Part("g", ("bench_files:curves",)),
    Part("h", ("bench_files:score_file",)),
    Part("i", ("bench_networks:published_unet",)),
    Part("j", ("bench_reference:training_pairs",)),
    Part("k", ("bench_reference:patch_index",)),
    Part("l", ("bench_fusion:inference",)),
    Part("m", ("bench_fusion:training",)),
    Part("n", ("bench_pretraining:training",)),
    Part("o", ("bench_pretraining:texture",)),
    Part("p", tuple(f"bench_workbench:{name}" for name in ("pages", "layout", "scatter", "memory"))),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="parts to run, such as a,c,g; all when left out")
    parser.add_argument("--json", type=Path, help="write machine, rows and failures to this file too")
    parser.add_argument("--crops", type=int, default=Options.crops, help="crops of the reference, at least 8 to claim")
    parser.add_argument("--rounds", type=int, default=Options.rounds, help="interleaved repeats of everything else")
    parser.add_argument(
        "--train-seconds", type=float, default=Options.train_seconds, help="of the processor, each form"
    )
    parser.add_argument("--seed", type=int, default=Options.seed, help="of that training")
    parser.add_argument("--full", action="store_true", help="measure what takes many minutes too")
    parser.add_argument("--function", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    options = Options(chosen.crops, chosen.rounds, chosen.train_seconds, chosen.seed, chosen.full)
    if chosen.function:
        return _answer(chosen.function, options, chosen.json)
    wanted = set(chosen.only.split(",")) if chosen.only else {part.letter for part in PARTS}
    if unknown := wanted - {part.letter for part in PARTS}:
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    facts = {**machine(), "cores": os.cpu_count(), "versions": versions(), "load_before": load()}
    rows: list[Row] = []
    failed: dict[str, str] = {}
    for part, function, answer in _measure([part for part in PARTS if part.letter in wanted], options):
        if isinstance(answer, str):
            failed[function] = answer
            answer = [missing(part.letter, function.partition(":")[2].replace("_", " "), answer)]
        rows += answer
        facts["load_after"] = load()
        if chosen.json:  # after each part, so that an interruption loses one of them at most
            lines = [{**asdict(row), "met": row.met} for row in rows]
            found = {"machine": facts, "options": asdict(options), "rows": lines, "failed": failed}
            chosen.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print("\n".join("  ".join(filter(None, row.cells())) for row in answer), file=sys.stderr, flush=True)
    print(report(facts, rows))
    return 1 if failed else 0


def report(facts: dict[str, Any], rows: Sequence[Row]) -> str:
    """Return the machine's facts, the table and the number of targets that were met."""
    judged = [row.met for row in rows if row.met is not None]
    unknown = sum(row.figure is None and row.measured.startswith(NOT_MEASURED) for row in rows)
    found = ", ".join(f"{name} {release}" for name, release in facts["versions"].items())
    return "\n".join(
        [
            f"machine    {facts['processor']}, {facts['cores']} cores, {', '.join(facts['instructions'])}",
            f"system     {facts['platform']}, Python {facts['python']}",
            f"libraries  {found}",
            f"load       {facts['load_before']} before, {facts['load_after']} after",
            "",
            table(rows),
            "",
            f"{sum(judged)} of {len(judged)} targets met, {unknown} rows not measured",
        ]
    )


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide the times; those that are missing are left out."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def load() -> str:
    """Return the mean number of processes that wanted a processor over the last 1, 5 and 15 minutes."""
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def _measure(parts: Sequence[Part], options: Options) -> Iterator[tuple[Part, str, list[Row] | str]]:
    """Run the functions of the parts one after the other; yield the rows of each, or why there are none."""
    with tempfile.TemporaryDirectory(prefix="mmcd-bench-") as folder:
        for part in parts:
            for function in part.functions:
                begun, before = time.monotonic(), load()
                answer = _in_process(function, part.threads, options, Path(folder))
                print(f"{function}: {time.monotonic() - begun:,.0f} s, load {before}", file=sys.stderr)
                yield part, function, answer


def _in_process(function: str, threads: int, options: Options, folder: Path) -> list[Row] | str:
    """Run one function in a process of its own; return its rows, or why there are none."""
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    place = folder / "workspace"
    _lend_assets(place)
    environment = {**os.environ, "MMCD_WORKSPACE": str(place), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--function", function, "--json", str(answer)]
    command += ["--crops", str(options.crops), "--rounds", str(options.rounds)]
    command += ["--train-seconds", str(options.train_seconds), "--seed", str(options.seed)]
    command += ["--full"] if options.full else []
    done = subprocess.run(command, env=environment, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return [_row(values) for values in json.loads(answer.read_text())]


def _answer(function: str, options: Options, path: Path) -> int:
    """Run one function here and write its rows."""
    module, _, name = function.partition(":")
    measure: Callable[[Options], list[Row]] = getattr(importlib.import_module(module), name)
    path.write_text(json.dumps([asdict(row) for row in measure(options)]))
    return 0


def _row(values: dict[str, Any]) -> Row:
    return Row(**{**values, "target": Target(**values["target"]) if values["target"] else None})


def _lend_assets(place: Path) -> None:
    """Give a new workspace the map's scripts, fetched once for the user's own as `mmcd assets` does."""
    from mmcd.errors import MmcdError
    from mmcd.services.assets import assets_folder, fetch_assets

    if (place / "assets").exists():
        return
    try:
        fetch_assets()
        shutil.copytree(assets_folder(), place / "assets")
    except MmcdError as error:
        print(f"The map will ask for its scripts itself: {error.message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
