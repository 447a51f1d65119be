"""Sections of a page that different scripts write: each replaces its own and leaves the others."""

from __future__ import annotations

from pathlib import Path


def section(path: Path, title: str) -> str:
    """The section under the heading `## title` of a page, heading included; "" where there is none."""
    if not path.exists():
        return ""
    text = path.read_text(encoding="utf-8")
    start = text.find(f"## {title}\n")
    if start < 0:
        return ""
    end = text.find("\n## ", start)
    return (text[start:] if end < 0 else text[start:end]).strip() + "\n"


def write_section(path: Path, title: str, body: str) -> None:
    """Puts `body` under the heading `## title`: in the place of that section, or at the end of the page."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    written, before = f"## {title}\n{body.strip()}\n", section(path, title)
    if before:
        text = text.replace(before.rstrip(), written.rstrip())
    else:
        text = f"{text.rstrip()}\n\n{written}".lstrip()
    path.write_text(text, encoding="utf-8")
