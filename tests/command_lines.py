"""The shell lines of a page, taken apart as the command line itself does."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

from flamingo_lite import cli


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a Markdown page."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def shell_lines(page: Path) -> list[str]:
    """Every line of its blocks of shell commands, continuations joined."""
    return [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]


def parsed(line: str) -> tuple[str, argparse.Namespace]:
    """The command and its arguments. What the real parser refuses is an error."""
    program, *words = shlex.split(line, comments=True)
    assert program == "flamingo-lite"
    name = cli._command(words)
    parser = cli.Parser(prog=f"flamingo-lite {name}", allow_abbrev=False)
    cli.COMMANDS[name].add_arguments(parser)
    return name, parser.parse_words(words[len(name.split()) :])
