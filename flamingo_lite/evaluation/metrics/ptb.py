"""Captions into tokens as COCO's evaluation does it: Stanford's PTBTokenizer, lower case, without punctuation.

The published tokenizer is a Java program. Where it is missing a regular expression stands in for it, and the
result says so: figures made with it differ from published ones where `tokenize_captions` says.
"""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flamingo_lite.errors import FlamingoError
from flamingo_lite.names import check_choice

JAR = "stanford-corenlp-3.4.1.jar"
TOKENIZERS = ("auto", "java", "python")
# "-LRB-" and its kin stand in the published list, but the tokens are lower case by then: they stay.
_DROPPED = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
_LINE_ENDS = re.compile(r"[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")

_ABBREVIATIONS = "mr|mrs|ms|dr|st|jr|sr|vs|prof|gen|sen|rep|inc|ltd|co|corp|etc|mt|ft|ave|blvd|rd"
_TOKEN = re.compile(
    rf"""
      \.\.\.
    | (?:[a-z]\.){{2,}}                             # u.s. and p.m. keep their periods
    | (?:{_ABBREVIATIONS}|[a-z])\.(?![^\W_])       # so do mr. and an initial
    | can(?=not\b) | (?:gon|wan)(?=na\b)          # can not, gon na
    | [^\W\d_]+?(?=n't\b) | n't\b                 # do n't
    | '(?:s|re|ve|ll|d|m)\b
    | [odl]'[^\W\d_]{{2,}}                         # o'clock
    | (?:(?<!\S)[-+])?[0-9]+(?:[:.,/][0-9]+)*(?:-[a-z0-9]+)*(?:st|nd|rd|th|s)?\b   # 1,000 and 3:30 and 2-door
    | [^\W_]+(?:[-_&/@.][^\W_]+)*                 # t-shirt is one word
    | --+ | [?!]+ | \S
    """,
    re.VERBOSE,
)
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", '"': " ", "\u201c": " ", "\u201d": " "})
_WRITTEN = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


@dataclass(frozen=True)
class TokenizedCaptions:
    """`captions[i]`: tokens joined by spaces. `tokenizer`: "java" or "python", to be reported with the score."""

    captions: list[str]
    tokenizer: str


def tokenize_captions(captions: Sequence[str], tokenizer: str = "auto") -> TokenizedCaptions:
    """`java` needs a Java runtime and the package pycocoevalcap, which brings the jar; `auto` takes it if it can.

    `python` agrees with it on plain English captions and differs in abbreviations, slang contractions,
    fractions, currencies, URLs and emoticons. Line ends within a caption become spaces. Errors:
    `FlamingoError` where `java` is asked for and missing, or fails.
    """
    check_choice("tokenizer of captions", tokenizer, TOKENIZERS)
    plain = [_LINE_ENDS.sub(" ", caption) for caption in captions]
    java, jar = shutil.which("java"), _jar()
    if tokenizer == "python" or (tokenizer == "auto" and (java is None or jar is None)):
        return TokenizedCaptions([_joined(_python_tokens(caption)) for caption in plain], "python")
    if java is None or jar is None:
        missing = "java is not on the PATH" if java is None else "the package pycocoevalcap is not installed"
        raise FlamingoError(
            f"{missing}; install it, or choose the tokenizer 'python' and say so with the score"
        )
    lines = _java_lines(plain, java, jar) if plain else []
    return TokenizedCaptions([_joined(line.rstrip().split(" ")) for line in lines], "java")


def _joined(tokens: Sequence[str]) -> str:
    return " ".join(token for token in tokens if token not in _DROPPED)


def _jar() -> Path | None:
    spec = importlib.util.find_spec("pycocoevalcap")
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    return next((path for folder in folders if (path := Path(folder) / "tokenizer" / JAR).is_file()), None)


def _java_lines(captions: Sequence[str], java: str, jar: Path) -> list[str]:
    command = [java, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    text = "".join(f"{caption}\n" for caption in captions).encode("utf-8", "replace")
    run = subprocess.run(command, input=text, capture_output=True)
    lines = run.stdout.decode("utf-8", "replace").split("\n")[: len(captions)]
    if run.returncode or len(lines) < len(captions):
        reason = (run.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"])[0]
        raise FlamingoError(
            f"Java's PTBTokenizer gave {len(lines)} lines for {len(captions)} captions ({reason[:120]}); "
            "expected one each: check the Java runtime, or choose the tokenizer 'python'"
        )
    return lines


def _python_tokens(caption: str) -> list[str]:
    # Double quotes become `` or '' there, which are dropped.
    text = caption.lower().translate(_QUOTES)
    return [_WRITTEN.get(token, token) for token in _TOKEN.findall(text)]
