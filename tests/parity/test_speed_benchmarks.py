"""The comparisons of speed run on tiny shapes: the sides agree, and a page and its figures are written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("einops_exts")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("attention", "OpenFlamingo 2.0.1"),
        ("decoding", "IdeficsForVisionText2Text"),
        ("prefix", "LlavaForConditionalGeneration"),
        ("documents", "OpenFlamingo 2.0.1"),
    ],
)
def test_a_comparison_ends_with_a_page_and_its_figures(name: str, peer: str, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--small", "--rounds", "3", "--device", "cpu"]
    subprocess.run([*command, "--output", str(tmp_path)], check=True, timeout=300)
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["versions"]["open-flamingo"] == "2.0.1" and found["options"]["small"]
    page = (tmp_path / f"{name}.md").read_text()
    assert peer in page and ("apart" in page or "agree to 1e-4" in page) and found["date"] in page


@pytest.mark.slow
def test_growth_is_measured_beside_what_the_plan_counts(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "growth.py"), "--small", "--rounds", "2"]
    subprocess.run([*command, "--output", str(tmp_path)], check=True, timeout=600)
    found = json.loads((tmp_path / "growth.json").read_text())
    assert found["ranks"]["summed"] == found["ranks"]["gradients"] > 0
    fewer, more = found["curves"]["images of a row"]
    assert 0 < fewer["operations"] < more["operations"]
    of_9b = [each for each in found["predictions"] if each["preset"] == "openflamingo_9b"]
    peaks = {(each["strategy"], each["ranks"]): each["peak"] for each in of_9b}
    assert peaks["ddp", 8] == peaks["ddp", 1024] > peaks["fsdp", 8] > peaks["fsdp", 1024]
    page = (tmp_path / "growth.md").read_text()
    assert "What this assumes" in page and found["date"] in page
