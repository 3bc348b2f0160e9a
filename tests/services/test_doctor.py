"""The doctor finds what is broken, names it, and says how to mend it."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmcd.cards import Card, write_card
from mmcd.services.assets import ASSETS
from mmcd.services.doctor import REQUIRED, Diagnosis, DoctorReport, diagnose

ROOT = Path(__file__).resolve().parents[2]


def answers(report: DoctorReport) -> dict[str, Diagnosis]:
    return {line.subject: line for line in report.lines}


def small_card(sha256: str) -> Card:
    branch = {"sensor": "any", "unit": "uint8", "mean": (0.5,), "std": (0.2,)}
    return Card.model_validate(
        {
            "name": "tiny",
            "version": "1",
            "title": "t",
            "description": "d",
            "architecture": "siamese",
            "settings": {},
            "weights": "tiny.safetensors",
            "sha256": sha256,
            "pre": {"modality": "optical", "bands": ("red",), **branch},
            "post": {"modality": "sar", "bands": ("VV",), **branch},
            "gsd": {"nominal": 10, "min": 5, "max": 20},
            "classes": ("unchanged", "changed"),
            "decision": {"head_weight": 1, "cosine_weight": 0, "threshold": 0.5},
            "training": {},
            "licence": {"weights": "Apache-2.0"},
        }
    )


def test_libraries_of_this_installation_work(workspace: Path) -> None:
    found = answers(diagnose())
    for subject in ("python", "rasterio", "torch and torchvision", "device", *REQUIRED, "workspace", "disk"):
        assert found[subject].status == "ok", found[subject]
    assert str(workspace) in found["workspace"].found


def test_report_is_json_and_names_a_next_step_for_every_fault(workspace: Path) -> None:
    report = diagnose()
    values = json.loads(json.dumps(report.to_dict()))
    assert values["healthy"] == report.healthy
    assert all(line["action"] for line in values["lines"] if line["status"] != "ok")


def test_one_failure_makes_the_report_unhealthy() -> None:
    fine, limited, broken = (Diagnosis("x", status, "y", "z") for status in ("ok", "warn", "fail"))
    assert DoctorReport((fine, limited)).healthy
    assert not DoctorReport((fine, broken)).healthy


def test_named_libraries_are_requirements() -> None:
    text = (ROOT / "requirements.txt").read_text()
    assert [name for name in REQUIRED if f"\n{name}>=" not in text] == []


def test_assets_that_are_missing_or_damaged_are_a_warning(workspace: Path) -> None:
    assert f"{len(ASSETS)} of {len(ASSETS)} are missing" in answers(diagnose())["map assets"].found
    damaged = workspace / "assets" / ASSETS[0].path
    damaged.parent.mkdir(parents=True)
    damaged.write_text("not the published script")
    line = answers(diagnose())["map assets"]
    assert line.status == "warn"
    assert f"{len(ASSETS)} of {len(ASSETS)} are missing" in line.found
    assert "mmcd assets" in line.action


def test_text_puts_the_next_step_below_its_fault() -> None:
    report = DoctorReport((Diagnosis("disk", "ok", "9 GiB free"), Diagnosis("map assets", "warn", "none", "Fetch.")))
    assert report.text().splitlines() == ["ok    disk        9 GiB free", "warn  map assets  none", " " * 18 + "Fetch."]


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [(b"weights", "ok", "hash verified"), (b"damaged", "fail", "do not match their card"), (None, "fail", "missing")],
)
def test_weights_are_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workspace: Path, content: bytes | None, status: str, words: str
) -> None:
    write_card(small_card(hashlib.sha256(b"weights").hexdigest()), tmp_path / "tiny.toml")
    if content is not None:
        (tmp_path / "tiny.safetensors").write_bytes(content)
    monkeypatch.setattr("mmcd.cards.weights_dir", lambda: tmp_path)
    line = answers(diagnose())["weights tiny"]
    assert line.status == status
    assert words in line.found


def test_workspace_that_cannot_be_made_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MMCD_WORKSPACE", str(tmp_path / "file" / "workspace"))
    line = answers(diagnose())["workspace"]
    assert line.status == "fail"
    assert "MMCD_WORKSPACE" in line.action


def test_torchvision_of_another_build_is_reported_and_hides_nothing(tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")\n')
    program = "import json; from mmcd.services.doctor import diagnose; print(json.dumps(diagnose().to_dict()))"
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "MMCD_WORKSPACE": str(tmp_path / "workspace")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    lines = {line["subject"]: line for line in json.loads(done.stdout)["lines"]}
    assert lines["torch and torchvision"]["status"] == "fail"
    assert "torchvision::nms does not exist" in lines["torch and torchvision"]["found"]
    assert lines["device"]["status"] == "ok"
