"""Metrics of other people's code, loaded without what their packages import, and answers that trip metrics up."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import re
import sys
import tempfile
from pathlib import Path
from types import ModuleType


def folder(package: str) -> Path:
    """Where a package lies; it is not imported. Errors: `ModuleNotFoundError`, as importing it would."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed; it is among the development packages")
    return Path(next(iter(spec.submodule_search_locations)))


def their_module(package: str, path: str) -> ModuleType:
    """One file of a package, for a file that needs nothing but the standard library."""
    return _imported(folder(package) / path)


def their_functions(package: str, path: str, names: set[str], given: str = "") -> ModuleType:
    """The functions and methods `names` of a file as functions of a module, without the file's own imports.

    `given` is put before them: the imports that they do need.
    """
    tree = ast.parse((folder(package) / path).read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in names]
    for node in found:
        node.decorator_list.clear()
    assert {node.name for node in found} == names, f"{package}/{path} has no longer {names}"
    source = "\n\n".join([given, *(ast.unparse(node) for node in found)])
    name = hashlib.sha256(source.encode()).hexdigest()[:16]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / f"theirs_{name}.py"
        file.write_text(source, encoding="utf-8")
        return _imported(file)


def _imported(path: Path) -> ModuleType:
    name = re.sub(r"\W", "_", f"{path.parent.name}_{path.stem}_reference")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


ANSWERS = [
    # nothing at all, and next to nothing
    "", " ", "\n", "\t\n", ".", "...", "?", "-", "--", "'", '"', "()",
    # yes and no, with all that stands around them
    "yes", "Yes", "YES", "Yes.", "yes, it is", "no", "No", "NO", "No.", "No, it is not.", "not", "nothing", "none",
    "There is no dog. Yes, there is a cat.", "Yes\nNo", "know", "a yes or a no",
    # refusals
    "I cannot answer that.", "I'm sorry, but I can't help with that.", "N/A", "unanswerable", "As an AI model, I",
    # numbers, their signs and their scripts
    "3", " 3", "3.", "-3", "- 3", "\u22123", "\u20133", "+3", "3.0", "3.14159", "-0.5", ".5", "0", "-0", "00", "1e3",
    "1,000", "1,,000", "1,000.50", "12,34", "3-5", "50%", "5.5 %", "$4.00", "1/2", "3 apples", "It is 3 apples.",
    "three", "Three.", "ten", "eleven", "\u0663", "\uff11\uff12", "\u00b2", "\u2167", "9" * 400, "nan", "inf", "-inf",
    "NaN", "1_000", "0x10", "3 ? 5 = 8", "3 + 5 = -8",
    # articles, contractions, periods, other punctuation
    "a", "the", "a dog", "The dog", "an  old   dog", "dog cat", "dog-cat", "dog - cat", "dog, cat", "dog,cat",
    "dont", "don't", "Im here", "its", "whats that", "somebody'd", "the dog's", "U.S.A.", "e.g. this", "v1.2.3",
    ". " * 40 + "end.", "red/white", "red / white", "[red]", "rock&roll", "what?!", "5 o'clock", "a;b", "`x`", "a@b",
    # letters of choices
    "A", "B", "b", "E", "F", "A.", "B. cat", "B) cat", "(B)", "(b) 8/11", "The answer is B.", "The answer is B",
    "The answer is B. The answer is C.", "The answer is (B).", "Answer: B", "BC", "B.cat", "\u00c4. cat", "(B) or (C)",
    'The answer is "8/11".', 'The answer is "B".', 'The answer is "".', '\nThe answer is "3".\n', "8/11", "8 / 11",
    # several lines, other scripts, and what no encoding has
    "a dog\na cat", "a\tdog", "dog\r\n", "caf\u00e9", "cafe\u0301", "\u72d7", "\u0441\u043e\u0431\u0430\u043a\u0430",
    "\U0001f415", "\u00df", "\u0130stanbul", "\ud800", "a\u2028b", "a\u00a0dog", "\u200bdog",
]  # fmt: skip
