"""flamingo-lite plan: its tables, its JSON, and what it says when nothing fits."""

import json
from typing import Any

import pytest

from flamingo_lite import cli
from flamingo_lite.training import plan
from flamingo_lite.training.trial import StepShape, Trial, run_trial

MEASURED: dict[tuple[StepShape, int], Trial] = {}

SMALL = [
    "plan",
    "model=flamingo_tiny",
    "stage.batch_size=16",
    "plan.length=32",
    "plan.strategy=fsdp",
    "plan.memory_gb=0.03",
]


@pytest.fixture(autouse=True)
def each_step_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All these tests plan for one model: what a step of it takes is the same in each."""

    def remembered(model: Any, shape: StepShape, rows: int) -> Trial:
        if (shape, rows) not in MEASURED:
            MEASURED[shape, rows] = run_trial(model, shape, rows)
        return MEASURED[shape, rows]

    monkeypatch.setattr(plan, "run_trial", remembered)


def test_the_tables_name_the_parts_and_the_largest_batch(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(SMALL) == 0
    shown = capsys.readouterr().out
    assert all(
        word in shown
        for word in ("vision encoder", "1,182,732", "optimizer state", "most rows at once in 0.03 GB")
    )


def test_units_are_of_the_models_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(SMALL) == 0
    shown = capsys.readouterr().out
    assert "weights, MB" in shown and "GFLOPs a step" in shown and "MB of a device" in shown
    (total,) = (line.split() for line in shown.splitlines() if " all " in line)
    assert "14.20" in total


def test_json_holds_the_totals(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SMALL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == sum(part["parameters"] for part in found["parts"].values()) == 3_549_068
    assert found["memory"]["fsdp"]["peak"] <= 0.03e9 and found["largest_rows"]["fsdp"] >= 2


def test_too_little_memory_for_one_row_is_one_line_that_says_how_much_would_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([*SMALL, "plan.memory_gb=0.001"]) == 2
    said = capsys.readouterr().err
    assert (
        "not even one row of 32 positions fits in plan.memory_gb=0.001" in said
        and "plan.memory_gb=1 would do" in said
    )
    assert said.count("\n") == 1
