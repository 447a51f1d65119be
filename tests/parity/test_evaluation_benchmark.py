"""The comparison with OpenFlamingo's way of evaluating runs, on tiny shapes: same prompts, same answers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("einops_exts")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "evaluation.py"


@pytest.mark.slow
def test_both_ways_of_evaluating_give_the_same_answers(tmp_path: Path) -> None:
    sizes = {
        "queries": 8,
        "pool": 6,
        "shots": 3,
        "ranked": 4,
        "their-ranked": 2,
        "names": 40,
        "merges": 300,
        "blocks": 2,
    }
    options = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, str(SCRIPT), "--small", *options, "--output", str(tmp_path)]
    subprocess.run(command, check=True, timeout=300)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["vqa"]["different"] == 0 and found["ranking"]["furthest_apart"] < 1e-3
    assert "| OpenFlamingo 2.0.1 |" in (tmp_path / "evaluation.md").read_text()
