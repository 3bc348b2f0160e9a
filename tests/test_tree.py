"""What the tracked tree may hold, and what may be loaded when."""

import ast
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MEGABYTE = 1_000_000


def tracked() -> list[Path]:
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]


def total_size(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def test_tracked_tree_is_small() -> None:
    assert total_size(tracked()) < 50 * MEGABYTE


def test_each_weight_file_is_small() -> None:
    assert {path.name for path in (ROOT / "weights").iterdir() if path.stat().st_size > 16 * MEGABYTE} == set()


def test_sample_data_is_small() -> None:
    assert total_size([path for path in (ROOT / "sample_data").rglob("*") if path.is_file()]) <= 20 * MEGABYTE


@pytest.mark.real_data
def test_no_third_party_image_is_tracked(shared_data: Path) -> None:
    ours: dict[int, list[Path]] = {}
    for path in tracked():
        ours.setdefault(path.stat().st_size, []).append(path)
    digests = {digest(path): path for paths in ours.values() for path in paths}
    suspects = [path for path in shared_data.rglob("*") if path.is_file() and path.stat().st_size in ours]
    assert [str(path) for path in suspects if path.stat().st_size and digest(path) in digests] == []


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_no_script_or_style_of_others_is_tracked() -> None:
    names = ("leaflet", "jquery", "bootstrap", ".min.js", ".min.css")
    scripts = [path for path in tracked() if path.suffix in {".js", ".css", ".woff2"}]
    assert [str(path) for path in scripts if any(name in path.name.lower() for name in names)] == []


def test_everything_the_wheel_ships_is_here() -> None:
    shipped = re.search(r"^SHIPPED = (.*)$", (ROOT / "hatch_build.py").read_text(), re.MULTILINE)
    assert shipped is not None
    names = ast.literal_eval(shipped[1])
    assert {"app.py", "pages", "weights", "sample_data"} <= set(names)
    files = [path.relative_to(ROOT).parts[0] for path in tracked()]
    assert [name for name in names if name not in files] == []


def test_pages_hold_no_logic() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "pages").glob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 150} == {}


def test_modules_are_readable_at_a_sitting() -> None:
    lengths = {str(path): len(path.read_text().splitlines()) for path in (ROOT / "mmcd").rglob("*.py")}
    assert lengths
    assert {name: length for name, length in lengths.items() if length > 600} == {}


HEAVY = ("torch", "streamlit", "lightning", "mlflow", "sklearn")

PROGRAM = """
import runpy, sys
import mmcd
sys.argv = ["mmcd", *{arguments!r}]
try:
    if {arguments!r}:
        runpy.run_module("mmcd", run_name="__main__")
except SystemExit as leaving:
    assert not leaving.code, leaving.code
print("LOADED", *({heavy!r} & sys.modules.keys()))
"""


@pytest.mark.parametrize("arguments", [[], ["--help"], ["infer", "predict", "--help"]])
def test_import_and_help_load_no_heavy_library(arguments: list[str]) -> None:
    command = [sys.executable, "-c", PROGRAM.format(arguments=arguments, heavy=set(HEAVY))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED"
