"""The comparison with OpenFlamingo's pipeline runs, on a handful of small images."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "data.py"


@pytest.mark.slow
def test_the_three_pipelines_of_the_benchmark_give_images(tmp_path: Path) -> None:
    sizes = {"documents": 32, "tars": 2, "pool": 8, "workers": 1, "rounds": 2, "batches": 2, "batch-size": 4}
    options = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    places = ["--folder", str(tmp_path / "data"), "--output", str(tmp_path)]
    command = [
        sys.executable,
        str(SCRIPT),
        *places,
        *options,
        "--edges",
        "240",
        "320",
        "--memory-documents",
        "0",
    ]
    subprocess.run(command, check=True, timeout=300)
    found = json.loads((tmp_path / "data.json").read_text())
    for name in ("ours", "theirs", "limit"):
        assert len(found["rounds"][name]) == 2 and min(found["rounds"][name]) > 0
    assert "| OpenFlamingo 2.0.1 |" in (tmp_path / "data.md").read_text()
