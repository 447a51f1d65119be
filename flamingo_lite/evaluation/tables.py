"""The figures of a report as tables: one content, written as Markdown, as LaTeX (booktabs) and on the page."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamingo_lite.evaluation.comparison import Comparison
from flamingo_lite.evaluation.findings import percent
from flamingo_lite.evaluation.results import write_atomically
from flamingo_lite.evaluation.systems import Cell, System, is_share
from flamingo_lite.evaluation.tasks import spoken

LEVEL = 0.05
STAR = "*"
IN_BRACKETS = "In brackets the 95% interval."


@dataclass(frozen=True)
class Table:
    """`texts`: how many columns, from the left, hold words; the others hold numbers. `note`: how to read it."""

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    texts: int
    note: str = ""

    def markdown(self) -> str:
        def line(cells: Iterable[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        rule = ["---"] * self.texts + ["---:"] * (len(self.header) - self.texts)
        lines = [f"**{self.title}**", "", line(self.header), line(rule), *map(line, self.rows)]
        return "\n".join([*lines, *(["", self.note] if self.note else [])]) + "\n"

    def latex(self) -> str:
        """A `table` with its caption; needs the package booktabs."""

        def line(cells: Iterable[str]) -> str:
            return "  " + " & ".join(map(escape_latex, cells)) + r" \\"

        columns = "l" * self.texts + "r" * (len(self.header) - self.texts)
        caption = f"{self.title}. {self.note}".strip()
        lines = [
            r"\begin{table}",
            rf"\caption{{{escape_latex(caption)}}}",
            rf"\label{{tab:{self.name}}}",
            r"\centering",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            line(self.header),
            r"\midrule",
            *map(line, self.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "±": r"$\pm$", "×": r"$\times$", "−": "$-$",
}  # fmt: skip


def escape_latex(text: str) -> str:
    return re.sub(r"[\\&%$#_{}~^–±×−]", lambda found: LATEX[found.group()], text)


def write_tables(tables: Iterable[Table], folder: Path) -> None:
    """`<name>.md` and `<name>.tex` of each."""
    for table in tables:
        write_atomically(folder / f"{table.name}.md", table.markdown().encode("utf-8", "replace"))
        write_atomically(folder / f"{table.name}.tex", table.latex().encode("utf-8", "replace"))


def accuracy_table(systems: Sequence[System]) -> Table:
    """A row for each task, split, style and system; a column for each number of shots."""
    cells = [cell for system in systems for cell in system.cells if cell["condition"] == "standard"]
    shots = sorted({cell["shots"] for cell in cells})
    rows: dict[tuple[str, ...], dict[int, str]] = {}
    for question in dict.fromkeys(_question(cell) for cell in cells):
        for cell in cells:
            if _question(cell) == question:
                rows.setdefault((*question, cell["model"]), {})[cell["shots"]] = value_with_interval(cell)
    return Table(
        "accuracy",
        "Scores over shots",
        ["task", "split", "answers", "metric", "model", *map(str, shots)],
        _over_shots(rows, shots),
        texts=5,
        note=IN_BRACKETS,
    )


def controls_table(systems: Sequence[System]) -> Table | None:
    """A row for each task, split, style, shots and condition that was asked of controls; a column for each system."""
    values: dict[tuple[str, ...], dict[str, str]] = {}
    for system in systems:
        asked = {(_question(cell), cell["shots"]) for cell in system.cells if cell["condition"] != "standard"}
        for cell in system.cells:
            if (_question(cell), cell["shots"]) in asked:
                key = (*_question(cell)[:3], str(cell["shots"]), cell["condition"])
                values.setdefault(key, {})[system.name] = value_with_interval(cell)
    return _by_system("controls", "Controls", "condition", values, systems, IN_BRACKETS)


def skills_table(systems: Sequence[System]) -> Table | None:
    """Further figures of a task's cells (by skill, by kind of question) at the most shots: a row for each, a column for
    each system."""
    values: dict[tuple[str, ...], dict[str, str]] = {}
    for system in systems:
        standard = [c for c in system.cells if c["condition"] == "standard" and c.get("figures")]
        most = {q: max(c["shots"] for c in standard if _question(c) == q) for q in map(_question, standard)}
        for cell in standard:
            if cell["shots"] != most[_question(cell)]:
                continue
            for name, value in cell["figures"].items():
                key = (*_question(cell)[:3], str(cell["shots"]), name)
                values.setdefault(key, {})[system.name] = "–" if value is None else f"{value:.3f}"
    return _by_system("skills", "By skill and kind of question", "figure", values, systems)


def differences_table(pairs: Sequence[tuple[str, str, Sequence[Comparison]]]) -> Table | None:
    """A row for each pair of systems and each task, split, style and condition; a column for each number of shots."""
    shots = sorted({found.cell["shots"] for *_, comparisons in pairs for found in comparisons})
    rows: dict[tuple[str, ...], dict[int, str]] = {}
    for first, second, comparisons in pairs:
        for found in comparisons:
            cell = found.cell
            key = (cell["task"], cell["split"], cell["style"] or "", cell["condition"], f"{second} − {first}")
            rows.setdefault(key, {})[cell["shots"]] = difference_text(found)
    if not rows:
        return None
    return Table(
        "differences",
        "Paired differences",
        ["task", "split", "answers", "condition", "difference", *map(str, shots)],
        _over_shots(rows, shots),
        texts=5,
        note=f"Second minus first, paired on identical prompts, with the 95% interval; {STAR}: p < {LEVEL:g} after "
        "Holm's adjustment over shots.",
    )


def systems_table(systems: Sequence[System]) -> Table | None:
    """What systems are and cost, as far as it is known: a row for each figure, a column for each system."""
    known = [system for system in systems if system.facts]
    if not known:
        return None
    rows = [
        [label, *(show(system.facts) for system in known)]
        for label, show in FACTS.items()
        if any(show(system.facts) for system in known)
    ]
    return Table(
        "systems",
        "What the systems are and cost",
        ["", *(system.name for system in known)],
        rows,
        texts=1,
        note="Arithmetic counts a multiply-add as two operations. A prompt is one of the evaluation's longest, answered "
        "alone; memory is beside the weights.",
    )


def value_with_interval(cell: Cell) -> str:
    if cell["value"] is None:
        return "–"
    if cell["ci95"] is None:
        return figure(cell["value"], cell)
    low, high = (figure(bound, cell).removesuffix("%") for bound in cell["ci95"])
    return f"{figure(cell['value'], cell)} [{low}, {high}]"


def figure(value: float, cell: Mapping[str, Any]) -> str:
    """In percent where it is a share."""
    return percent(value) if is_share(cell) else f"{value:.3f}"


def difference_text(found: Comparison) -> str:
    result = found.result
    if result.difference is None:
        return "–"
    scale, digits = (100, 1) if is_share(found.cell) else (1, 3)
    text = f"{scale * result.difference:+.{digits}f}"
    if result.ci95 is not None:
        text += f" [{scale * result.ci95[0]:.{digits}f}, {scale * result.ci95[1]:.{digits}f}]"
    return (text + (STAR if is_significant(found) else "")).replace("-", "−")


def is_significant(found: Comparison) -> bool:
    return found.result.p_holm is not None and found.result.p_holm < LEVEL


def _over_shots(rows: Mapping[tuple[str, ...], Mapping[int, str]], shots: Sequence[int]) -> list[list[str]]:
    """A row for each key of four names and one as it is; a column for each number of shots."""
    return [
        [*map(spoken, key[:4]), key[4], *(row.get(count, "") for count in shots)] for key, row in rows.items()
    ]


def _by_system(
    name: str,
    title: str,
    what: str,
    values: Mapping[tuple[str, ...], Mapping[str, str]],
    systems: Sequence[System],
    note: str = "",
) -> Table | None:
    """A row for each key (task, split, style, shots and `what`), a column for each system; None where nothing is known."""
    if not values:
        return None
    names = [system.name for system in systems]
    return Table(
        name,
        title,
        ["task", "split", "answers", "shots", what, *names],
        [[*map(spoken, key), *(row.get(name, "") for name in names)] for key, row in values.items()],
        texts=5,
        note=note,
    )


def _question(cell: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return cell["task"], cell["split"], cell.get("style") or "", cell["metric"]


def _number(name: str, scale: float = 1, unit: str = "", digits: int = 0):
    def show(facts: Mapping[str, Any]) -> str:
        value = facts.get(name, facts.get("cost", {}).get(name))
        return "" if value is None else f"{value / scale:,.{digits}f}{unit}"

    return show


def _mean_minutes(facts: Mapping[str, Any]) -> str:
    seconds = facts.get("training_seconds")
    return f"{sum(seconds) / len(seconds) / 60:.1f} min" if seconds else ""


FACTS = {
    "fusion": lambda facts: spoken(facts.get("fusion", "")),
    "parameters": _number("parameters"),
    "of these trained": _number("trainable"),
    "media tokens per image": _number("media_tokens"),
    "tokens of a training document": _number("tokens_a_document", digits=1),
    "training documents": _number("documents"),
    "training seeds": lambda facts: ", ".join(map(str, facts.get("seeds", []))),
    "arithmetic of a training": _number("training_flops", 1e12, " TFLOPs", 1),
    "time of a training": _mean_minutes,
    "positions of a prompt": _number("positions", digits=0),
    "images in a prompt": _number("images", digits=0),
    "arithmetic of a prompt": _number("prompt_flops", 1e6, " MFLOPs"),
    "arithmetic of a generated token": _number("token_flops", 1e6, " MFLOPs", 1),
    "time until the first token": _number("prompt_seconds", 1e-3, " ms", 1),
    "time of a generated token": _number("token_seconds", 1e-3, " ms", 1),
    "most memory of a prompt": _number("prompt_bytes", 1e6, " MB", 2),
    "memory held while answering": _number("held_bytes", 1e6, " MB", 2),
    "memory of a generated token": _number("token_bytes", 1e3, " kB", 1),
}
