"""The benchmark of the search runs on small sizes, finds what OpenFlamingo finds, and leaves the rest of its page alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("einops_exts")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "retrieval.py"


@pytest.mark.slow
def test_the_search_is_compared_and_its_section_written_anew(tmp_path: Path) -> None:
    page = tmp_path / "evaluation.md"
    page.write_text("# A page\n\n## Choosing demonstrations by similarity\nold\n\n## Another\nstays\n")
    sizes = ["--support", "400", "--width", "16", "--rounds", "2", "--batches", "1", "3"]
    subprocess.run([sys.executable, str(SCRIPT), *sizes, "--output", str(tmp_path)], check=True, timeout=300)
    found = json.loads((tmp_path / "retrieval.json").read_text())
    assert [each["different"] for each in found["batches"]] == [0, 0]
    text = page.read_text()
    assert "old" not in text and text.startswith("# A page") and text.endswith("## Another\nstays\n")
    assert text.count("## Choosing") == 1 and "| 3 |" in text
