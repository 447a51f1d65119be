"""The table in docs/language_models.md: what the tests of the families found, compared with what is written."""

from __future__ import annotations

import os
from pathlib import Path

from language_families import FAMILIES, PACKED_ALONE

from flamingo_lite.models.model import VisionLanguageModel

DOCUMENT = Path(__file__).parents[2] / "docs" / "language_models.md"
START, END = "<!-- made by tests/models/test_language_families.py -->", "<!-- end -->"
PROPERTIES = (
    "gates at 0", "keys", "checkpointing", "cached decoding", "padding", "save and load", "new rows", "packing",
)  # fmt: skip
HEAD = ["family", "class", *PROPERTIES, "notes"]
REWRITE = "FLAMINGO_LITE_WRITE_DOCS"
ALONE = f"Tested to pack, and for nothing else: {', '.join(PACKED_ALONE)}."
ADVICE = f"run {REWRITE}=1 pytest tests/models/test_language_families.py and commit {DOCUMENT.name}"


class Table:
    """Rows by family, as far as this run went."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {}

    def holds(self, name: str, model: VisionLanguageModel, column: str, how: str = "yes") -> None:
        family = FAMILIES[name]
        tied = "tied" if family.embeddings_are_tied else "untied"
        row = self.found.setdefault(
            name,
            {
                "family": name,
                "class": f"`{type(model.language).__name__}`",
                "notes": ", ".join(filter(None, (tied, family.note))),
            },
        )
        row[column] = how

    def differences(self) -> list[str]:
        """What is written otherwise than it was found, in words; what did not run is not compared."""
        if os.environ.get(REWRITE):
            return []
        written, alone = _written()
        if list(written) != list(FAMILIES) or alone != ALONE:
            return [f"{DOCUMENT.name} names other families than the tests; {ADVICE}"]
        return [
            f"{name}, {column}: found {cell!r}, written {written[name].get(column)!r}; {ADVICE}"
            for name, row in self.found.items()
            for column, cell in row.items()
            if written[name].get(column) != cell
        ]

    def write_if_asked(self) -> None:
        if not os.environ.get(REWRITE):
            return
        cells = [[self.found[name][column] for column in HEAD] for name in FAMILIES]  # KeyError: not all ran
        lines = [HEAD, ["---"] * len(HEAD), *cells]
        text = DOCUMENT.read_text(encoding="utf-8")
        before, rest = text.split(START)
        after = rest.split(END)[1]
        rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        DOCUMENT.write_text(f"{before}{START}\n{rows}\n\n{ALONE}\n{END}{after}", encoding="utf-8")


def _written() -> tuple[dict[str, dict[str, str]], str]:
    """The committed table's rows by family, and the sentence below it."""
    made = DOCUMENT.read_text(encoding="utf-8").split(START)[1].split(END)[0]
    rows, alone = made.strip().rsplit("\n\n", 1)
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in rows.splitlines()]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}, alone
