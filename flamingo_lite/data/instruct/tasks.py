"""Self-Instruct's tasks: how answers are read into instructions and instances, and which of these are left out.

The filters and their limits are the published ones (Wang et al., 2023, section 3.1 and appendix A).
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from flamingo_lite.data.instruct.rouge import rouge_l, tokens
from flamingo_lite.errors import SampleError

MAX_SIMILARITY = 0.7
MIN_WORDS, MAX_WORDS = 4, 150
MAX_INSTANCES = 5
KEYWORDS = (
    "image", "images", "picture", "pictures", "photo", "photos", "graph", "graphs", "chart", "map", "maps", "drawing",
    "draw", "plot", "sketch", "diagram", "flowchart", "video", "audio", "music", "recording", "file", "files", "attached",
)  # fmt: skip
"""What a text model cannot see, hear or make."""

_TASK = re.compile(r"^\s*Task (\d+)\s*[:.]\s*", re.MULTILINE)
_SEPARATOR = re.compile(r"^[ \t]*={3,}[ \t]*$", re.MULTILINE)
_KEYWORD = re.compile(rf"\b(?:{'|'.join(KEYWORDS)})\b", re.IGNORECASE)


@dataclass(frozen=True)
class Instance:
    """`input`: "" where the instruction needs none."""

    input: str
    output: str


@dataclass(frozen=True)
class SeedTask:
    instruction: str
    instances: tuple[Instance, ...]
    labels: bool = False


def listed(instructions: Sequence[str]) -> str:
    """The instructions as a numbered list, as answers continue it."""
    return "\n".join(f"Task {number}: {text}" for number, text in enumerate(instructions, 1))


def read_list(text: str, is_cut: bool) -> tuple[list[str], str | None]:
    """The instructions of a numbered list, and the last one apart when the answer was cut in it.

    Errors: `SampleError` ("format") where there is no list.
    """
    pieces = _TASK.split(text)[2::2]
    if not pieces:
        raise SampleError("holds no line that begins with 'Task N:'", "format")
    found = [" ".join(piece.split()) for piece in pieces]
    return (found[:-1], found[-1]) if is_cut else (found, None)


def check_instruction(instruction: str, kept: Sequence[Sequence[str]]) -> list[str]:
    """The tokens of a new instruction, to be kept among those of the others.

    Errors: `SampleError`: "short", "long", "keyword", "start" or "similar".
    """
    words = instruction.split()
    if len(words) < MIN_WORDS:
        raise SampleError(f"{len(words)} words; expected {MIN_WORDS} or more", "short")
    if len(words) > MAX_WORDS:
        raise SampleError(f"{len(words)} words; expected {MAX_WORDS} or fewer", "long")
    if found := _KEYWORD.search(instruction):
        raise SampleError(f"speaks of {found.group()!r}", "keyword")
    if not (instruction[0].isascii() and instruction[0].isalnum()):
        raise SampleError(f"begins with {instruction[0]!r}; expected a letter or a digit", "start")
    cut = tokens(instruction)
    nearest = max(kept, key=lambda other: rouge_l(cut, other), default=())
    if (similarity := rouge_l(cut, nearest)) > MAX_SIMILARITY:
        raise SampleError(f"ROUGE-L of {similarity:.2f} with {' '.join(nearest)!r}", "similar")
    return cut


def read_instances(text: str, labels: bool) -> list[Instance]:
    """The instances of an answer, labels or inputs first. Errors: `SampleError` ("format")."""
    first, second = ("Label", "Input") if labels else ("Input", "Output")
    form = re.compile(rf"\s*{first}:(.*?)^[ \t]*{second}:(.*)", re.DOTALL | re.MULTILINE)
    found = []
    for number, block in enumerate(_SEPARATOR.split(text)):
        if (match := form.fullmatch(block)) is None:
            raise SampleError(
                f"instance {number} is {block.strip()[:40]!r}; expected {first}: and {second}:", "format"
            )
        one, other = (group.strip() for group in match.groups())
        given, said = (other, one) if labels else (one, other)
        found.append(Instance("" if given.lower() in ("none", "none.") else given, said))
    return found


def written(instances: Sequence[Instance], labels: bool) -> str:
    """Instances in the form that `read_instances` reads."""
    lines = (
        f"Label: {each.output}\nInput: {each.input or 'none'}"
        if labels
        else f"Input: {each.input or 'none'}\nOutput: {each.output}"
        for each in instances
    )
    return "\n===\n".join(lines)


def sift(instances: Sequence[Instance]) -> list[Instance | SampleError]:
    """Each instance, or why it is left out."""
    outputs: dict[str, set[str]] = {}
    for each in instances:
        outputs.setdefault(each.input, set()).add(each.output)
    seen: Counter[Instance] = Counter()
    kept = 0
    sifted: list[Instance | SampleError] = []
    for each in instances:
        seen[each] += 1
        problem = _problem(each, outputs[each.input], seen[each])
        if problem is None and kept == MAX_INSTANCES:
            problem = SampleError(f"more than {MAX_INSTANCES} instances", "extra")
        kept += problem is None
        sifted.append(each if problem is None else problem)
    return sifted


def _problem(each: Instance, outputs: set[str], times: int) -> SampleError | None:
    if not each.output:
        return SampleError("the output is empty", "empty")
    if each.input == each.output:
        return SampleError("the output is the input", "echo")
    if each.input.endswith(":") or each.output.endswith(":"):
        return SampleError("ends in a colon", "colon")
    if len(outputs) > 1:
        return SampleError(f"{len(outputs)} outputs for one input", "contradiction")
    return SampleError("comes twice", "repeated") if times > 1 else None
