"""The way from a clone to a running app: requirements, make targets, and what tests do where something is missing."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def by_name(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(line.name): line for line in map(Requirement, lines)}


def requirement_lines() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def test_requirements_equal_the_projects_dependencies() -> None:
    listed = by_name([line.split("#")[0].strip() for line in requirement_lines()])
    declared = by_name(PROJECT["dependencies"])
    assert {name: line.specifier for name, line in listed.items()} == {
        name: line.specifier for name, line in declared.items()
    }


@pytest.mark.parametrize("line", requirement_lines())
def test_each_requirement_is_a_range_with_a_reason(line: str) -> None:
    requirement, _, reason = line.partition("#")
    bounds = {bound.operator for bound in Requirement(requirement.strip()).specifier}
    assert bounds == {">=", "<"}
    assert len(reason.split()) >= 3


def test_lock_holds_every_requirement_inside_its_range() -> None:
    wanted = by_name(
        PROJECT["dependencies"] + [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    )
    pins = locked()
    outside = [
        str(line) for name, line in wanted.items() if name not in pins or not line.specifier.contains(pins[name])
    ]
    assert outside == []


def test_the_base_installation_does_without_the_extras() -> None:
    base = by_name(PROJECT["dependencies"])
    assert by_name(PROJECT["optional-dependencies"]["fast"]).keys() == {"onnx", "onnxruntime", "openvino", "nncf"}
    assert not base.keys() & by_name(PROJECT["optional-dependencies"]["fast"]).keys()


def test_lock_names_versions_only() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert "Linux x86-64" in lines[0]
    strange = [line for line in lines if not line.startswith("#") and not re.fullmatch(r"[\w.-]+==[\w.!+-]+", line)]
    assert strange == []
    assert {"mmcd", "pip"}.isdisjoint(locked())


def test_lock_is_closed_under_dependency() -> None:
    """A name that an installed requirement pulls in, and the lock leaves out, would float."""
    pins = locked()
    as_locked = [
        found for found in metadata.distributions() if pins.get(canonicalize_name(found.name)) == found.version
    ]
    floating = set()
    for line in (Requirement(line) for found in as_locked for line in found.requires or []):
        if line.marker is None or line.marker.evaluate({"extra": ""}):
            floating.add(canonicalize_name(line.name))
    assert floating - pins.keys() == set()


# --- make ---

FAKE_PYTHON = """#!/bin/sh
echo "$*" >> "{log}"
case "$*" in
  *version_info*) exit {old} ;;
  "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  "-m pip install"*) test ! -e no-network ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the real Makefile and stand-ins for the files that an installation depends on."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("Makefile", "requirements.txt", "pyproject.toml", "hatch_build.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def fake_python(folder: Path, *, too_old: bool = False) -> Path:
    path = folder / "fake-python"
    path.write_text(FAKE_PYTHON.format(log=folder / "calls", old=int(too_old)))
    path.chmod(0o755)
    return path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def calls(folder: Path) -> list[str]:
    log = folder / "calls"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def test_installation_happens_once_and_again_when_requirements_change(checkout: Path) -> None:
    python = f"PYTHON={fake_python(checkout)}"
    assert make(checkout, "install-test", python).returncode == 0
    assert sum("pip install" in call for call in calls(checkout)) == 2
    assert make(checkout, "install-test", python).returncode == 0
    assert calls(checkout) == []
    later = (checkout / ".venv" / ".stamp-test").stat().st_mtime + 5
    os.utime(checkout / "requirements.txt", (later, later))
    assert make(checkout, "install-app", python).returncode == 0
    assert sum("pip install" in call for call in calls(checkout)) == 1


def test_interrupted_installation_is_taken_up_again(checkout: Path) -> None:
    python = f"PYTHON={fake_python(checkout)}"
    (checkout / "no-network").touch()
    assert make(checkout, "install-app", python).returncode != 0
    (checkout / "no-network").unlink()
    calls(checkout)
    assert make(checkout, "install-app", python).returncode == 0
    repeated = calls(checkout)
    assert sum("pip install" in call for call in repeated) == 1
    assert not any("-m venv" in call for call in repeated)


def test_old_python_is_refused_in_one_line(checkout: Path) -> None:
    done = make(checkout, "app", f"PYTHON={fake_python(checkout, too_old=True)}")
    assert done.returncode != 0
    assert "mmcd needs Python 3.11 or newer" in done.stderr
    assert not (checkout / ".venv").exists()


def test_clean_keeps_what_the_user_made(checkout: Path) -> None:
    made = [checkout / name for name in ("runs/1/score.tif", "workspace/jobs.db", "mlruns/1/meta", "weights/own.toml")]
    built = [checkout / name for name in (".venv/bin/python", "build/x", "mmcd/__pycache__/x.pyc", ".mypy_cache/x")]
    for path in made + built:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert make(checkout, "clean").returncode == 0
    assert [path for path in made if not path.exists()] == []
    assert [path for path in built if path.exists()] == []


def test_help_is_the_default_and_lists_every_target(checkout: Path) -> None:
    text = (checkout / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())
    done = make(checkout)
    assert {line.split()[1] for line in done.stdout.splitlines()} == targets


# --- .ci/run ---


@pytest.mark.parametrize(("failing", "status"), [("nothing", 0), ("lint", 1), ("test", 1)])
def test_ci_runs_lint_and_tests_and_fails_with_either(tmp_path: Path, failing: str, status: int) -> None:
    stubs = tmp_path / "bin"
    stubs.mkdir()
    for name, body in {
        "make": f'echo "$2" >> {tmp_path}/made; test "$2" != {failing}',
        "apt-get": "",
        "sudo": "",
    }.items():
        (stubs / name).write_text(f"#!/bin/sh\n{body}\n")
        (stubs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{stubs}:{os.environ['PATH']}"}
    done = subprocess.run([ROOT / ".ci" / "run"], env=environment, capture_output=True, cwd=tmp_path, timeout=60)
    assert done.returncode == status
    assert (tmp_path / "made").read_text().split() == ["install-test", "lint", "test"]


# --- deselection ---

TOY_TESTS = """
import pytest

def test_plain(): pass

@pytest.mark.real_data
def test_data(shared_data): assert shared_data.is_dir()

@pytest.mark.browser
def test_browser(): pass
"""


def run_toy_tests(folder: Path, *, ci: str) -> subprocess.CompletedProcess[str]:
    """Run three tests under the project's own conftest in a place without shared images and without chromium."""
    tests = folder / "project" / "tests"
    tests.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "conftest.py", tests)
    shutil.copy(ROOT / "pyproject.toml", tests.parent)
    (tests / "test_toy.py").write_text(TOY_TESTS)
    environment = {**os.environ, "CI": ci, "PATH": str(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=tests.parent, env=environment, capture_output=True, text=True, timeout=120)


def test_tests_without_their_means_are_deselected_with_a_line(tmp_path: Path) -> None:
    done = run_toy_tests(tmp_path, ci="")
    assert done.returncode == 0
    assert "1 passed, 2 deselected" in done.stdout
    assert re.search(r"no third-party images at .*: 1 tests marked 'real_data' are deselected", done.stdout)
    assert "no chromium on the path: 1 tests marked 'browser' are deselected" in done.stdout


def test_missing_means_are_a_failure_under_ci(tmp_path: Path) -> None:
    done = run_toy_tests(tmp_path, ci="true")
    assert done.returncode != 0
    assert "1 tests marked 'real_data' cannot run" in done.stdout + done.stderr
