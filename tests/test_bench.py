"""The arithmetic and the table of the benchmark; never its timings."""

import importlib
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def load():
    """Import modules of ``benchmarks/``, which is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module


@pytest.fixture(scope="module")
def bench_table(load):
    return load("bench_table")


def test_a_tile_has_the_reference_s_number_of_positions(bench_table):
    assert bench_table.positions(1024, 256, 8) == 9409
    assert bench_table.positions(1024, 16, 8) == 16129
    assert bench_table.positions(256, 256, 8) == 1


@pytest.mark.parametrize(
    ("limit", "at_least", "figure", "met"),
    [(3000, True, 3000, True), (3000, True, 2999, False), (1.2, False, 1.2, True), (1.2, False, 1.21, False)],
)
def test_a_target_is_met_at_its_limit(bench_table, limit, at_least, figure, met):
    row = bench_table.Row("a", "pass", "1 s", figure=figure, target=bench_table.Target(limit, at_least))
    assert row.met is met


def test_what_was_not_measured_meets_no_target(bench_table):
    row = bench_table.Row("e", "slider", "not measured: no browser", target=bench_table.Target(50, at_least=False))
    assert row.met is False
    assert bench_table.missing("e", "slider", "no browser").met is None


def test_the_table_is_aligned_and_says_what_misses(bench_table):
    target = bench_table.Target(50)
    rows = [
        bench_table.Row("g", "F1", "49 ms", "1.03 s", 21.04, target=target),
        bench_table.Row("h", "a longer name", "0.2 s", "1 s", 5234.0, target=target),
    ]
    header, rule, first, second = bench_table.table(rows).splitlines()
    assert len(rule) == max(map(len, (header, first, second)))
    assert {line.index("≥") for line in (first, second)} == {header.index("target")}
    assert first.endswith("NO")
    assert second.endswith("yes")
    assert "21.0 ×" in first
    assert "5,234 ×" in second


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0004, "0.4 ms"), (0.0494, "49.4 ms"), (1.034, "1.03 s"), (5432.1, "5,432 s")]
)
def test_times_are_given_in_the_unit_that_suits(bench_table, seconds, text):
    assert bench_table.duration(seconds) == text


def test_work_is_timed_in_turn_after_one_untimed_run(bench_table):
    calls = []
    times = bench_table.interleaved({"first": lambda: calls.append(1), "second": lambda: calls.append(2)}, 3)
    assert calls == [1, 2] * 4
    assert [len(timing.processor) for timing in times.values()] == [3, 3]
    assert bench_table.Timing((3.0, 1.0, 2.0), (9.0, 9.0, 9.0)).median == 2.0


def test_every_move_waits_for_the_next_repaint(load):
    paired = load("bench_browser").paired
    assert paired([100, 200, 300], [110, 190, 250, 420]) == [10, 50, 120]
    assert paired([100, 200], [250]) == [150, 50], "a repaint that came late counts for both moves"
    assert paired([100, 300], [150]) == [50]


def test_the_published_unet_has_its_size(load):
    unet = load("bench_networks").BrightUNet()
    assert round(sum(parameter.numel() for parameter in unet.parameters()) / 1e6, 1) == 31.0


def test_a_row_survives_the_way_between_processes(load, bench_table):
    bench = load("bench")
    row = bench_table.Row("b", "path", "1 s", "0.9 s", 1.1, target=bench_table.Target(1.2, at_least=False))
    assert bench._row(json.loads(json.dumps(asdict(row)))) == row


def test_every_part_has_a_letter_of_its_own_and_its_functions(load):
    parts = load("bench").PARTS
    assert [part.letter for part in parts] == sorted({part.letter for part in parts})
    for module, name in (function.split(":") for part in parts for function in part.functions):
        assert f"\ndef {name}(options: Options) -> list[Row]:" in (ROOT / f"benchmarks/{module}.py").read_text()


def test_an_unknown_part_is_refused():
    command = [sys.executable, str(ROOT / "benchmarks/bench.py"), "--only", "a,z"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "there is no part z" in done.stderr
