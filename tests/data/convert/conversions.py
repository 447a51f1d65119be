"""Runs `flamingo-lite data convert` and reads back what it wrote."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flamingo_lite import cli
from flamingo_lite.data.shards import read_samples
from flamingo_lite.document import Document

FIXTURES = Path(__file__).parents[3] / "data" / "fixtures"


@dataclass(frozen=True)
class Converted:
    """What a conversion came to; `rejects`: (reason, message) in order."""

    keys: list[str]
    documents: list[Document]
    rejects: list[tuple[str, str]]

    @property
    def reasons(self) -> list[str]:
        return [reason for reason, _ in self.rejects]


def convert(target: Path, name: str, *words: Any) -> Converted:
    """The documents that the words come to in format `name`, written to `target` by the real command line."""
    assert command(target, name, *words) == 0
    samples = list(read_samples(target))
    lines = (target / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    rejects = [(reject["reason"], reject["message"]) for reject in map(json.loads, lines)]
    return Converted([key for key, _ in samples], [document for _, document in samples], rejects)


def refused(capsys: pytest.CaptureFixture[str], target: Path, name: str, *words: Any) -> str:
    """The one line with which the command refuses the words."""
    capsys.readouterr()
    assert command(target, name, *words) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "Traceback" not in shown
    return shown


def command(target: Path, name: str, *words: Any) -> int:
    """Its exit code."""
    fixed = ["data", "convert", "--workers", "1", "--overwrite", "--from", name, "--to", str(target)]
    return cli.main([*fixed, *map(str, words)])
