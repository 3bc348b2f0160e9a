"""The example of the README runs as it stands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"


@pytest.mark.usefixtures("workspace")
def test_the_example_runs(pair: tuple[Path, Path], tmp_path: Path) -> None:
    example = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert example
    assert len([line for line in example[1].splitlines() if line.strip()]) <= 8
    for source, name in zip(pair, ("before.tif", "after.tif"), strict=True):
        shutil.copy(source, tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", example[1]], cwd=tmp_path, capture_output=True, text=True, env=os.environ, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "changed, by flood-s2s1" in done.stdout
    assert (tmp_path / "result" / "score.tif").is_file()


def test_pictures_and_files_that_are_named_exist() -> None:
    text = README.read_text()
    for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (README.parent / target).is_file(), target
    for config in re.findall(r"configs/[\w.-]+", text):
        assert (README.parent / config).is_file(), config
