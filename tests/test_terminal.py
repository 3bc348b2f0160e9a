"""How results stand on a terminal."""

import pytest

from mmcd.commands.terminal import report


def test_values_with_names_of_their_own_stand_on_lines(capsys: pytest.CaptureFixture[str]) -> None:
    report("Trained", {"weights": None, "metrics": {"val/loss": 0.5, "baselines": {"all": {"f1": 0.25}}, "tiles": 3}})
    lines = [line.strip(" │").split("│")[-1].strip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line[:1].isalpha()] == [
        "Trained",
        "none",
        "val/loss 0.5000",
        "baselines all f1 0.2500",
        "tiles 3",
    ]
