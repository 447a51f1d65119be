"""Data cards: every command in them is one that the real parser takes, and every dataset has its card."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from flamingo_lite.commands.data_convert import split_words
from flamingo_lite.data.convert.choices import make_options
from flamingo_lite.data.convert.formats import FORMATS
from tests.command_lines import blocks, parsed, shell_lines

CARDS = Path(__file__).parents[2] / "data"
SECTIONS = ["Licence", "Getting it", "Converting", "What to expect", "Traps"]
NAMES = sorted(path.name for path in CARDS.glob("*.md") if path.name != "README.md")


def commands() -> list[tuple[str, str]]:
    lines = [(name, line) for name in [*NAMES, "README.md"] for line in shell_lines(CARDS / name)]
    assert len(lines) > 15
    return lines


@pytest.mark.parametrize(("card", "line"), commands())
def test_every_command_is_taken_by_the_parser(card: str, line: str) -> None:
    name, arguments = parsed(line)
    if name == "data convert":
        inputs, options = split_words(arguments.overrides)
        assert inputs and arguments.to
        make_options(FORMATS[arguments.format].options, options, arguments.format)


def test_every_format_is_in_a_command_of_a_card() -> None:
    used = {getattr(parsed(line)[1], "format", None) for _, line in commands()}
    assert used >= FORMATS.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_card_has_its_sections(name: str) -> None:
    found = re.findall(r"^## (.*)$", (CARDS / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert found == SECTIONS


def test_the_index_names_every_card_and_every_fixture_its_schema() -> None:
    index = (CARDS / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\((\w+\.md)\)", index)) == NAMES
    schemas = (CARDS / "fixtures" / "README.md").read_text(encoding="utf-8")
    for folder in (path for path in (CARDS / "fixtures").iterdir() if path.is_dir()):
        assert f"`{folder.name}/`" in schemas


def test_the_script_of_mimic_it_makes_the_json_of_the_parquet(tmp_path: Path) -> None:
    images = {f"LA_IMG_{i:06d}": base64.b64encode(bytes([i % 256]) * 9).decode() for i in range(600)}
    # The names that pandas gives: the column, and its index.
    columns = {"base64": list(images.values()), "__index_level_0__": list(images)}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "LA.parquet")
    [script] = blocks(CARDS / "mimic_it.md", "python")
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "LA.json").read_bytes()) == images
