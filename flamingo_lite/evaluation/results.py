"""The two files of an evaluation, `results.json` and `samples.jsonl`: written whole or not at all, read with
checks."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flamingo_lite.document import Document, Image
from flamingo_lite.errors import FlamingoError

SCHEMA_VERSION = 1
RESULTS = "results.json"
SAMPLES = "samples.jsonl"

TOLERATED_FAILURES = 0.01
"""Above this share a run says so in its headline."""

Types = tuple[type, ...]
_NUMBER: Types = (int, float)
_NUMBER_OR_NONE: Types = (int, float, type(None))
_STR_OR_NONE: Types = (str, type(None))

CELL: dict[str, Types] = {
    "task": (str,), "model": (str,), "split": (str,), "shots": (int,), "condition": (str,), "metric": (str,),
    "value": _NUMBER_OR_NONE, "se": _NUMBER_OR_NONE, "ci95": (list, type(None)), "n": (int,),
    "n_failed": (int,), "seeds": (list,),
}  # fmt: skip

SAMPLE: dict[str, Types] = {
    "task": (str,), "model": (str,), "query_id": (int,), "split": (str,), "seed": (int,), "shots": (int,),
    "condition": (str,), "demonstration_ids": (list,), "prompt_sha": (str,), "image_ids": (list,),
    "raw": _STR_OR_NONE, "extracted": _STR_OR_NONE, "target": (str,), "score": _NUMBER_OR_NONE,
    "status": (str,),
}  # fmt: skip


def sha256_of_json(value: object) -> str:
    """sha256 of the canonical JSON of `value`: sorted keys, no spaces, UTF-8."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # A lone surrogate, which a byte-level tokenizer may decode to, has no UTF-8 of its own.
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a mapping of mappings under dotted names, tuples as lists: what a JSON file is compared with."""
    found: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            found |= flat(item, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = list(item) if isinstance(item, tuple) else item
    return found


def prompt_sha(document: Document) -> str:
    """Identifies the untemplated prompt: its texts, roles and image ids in order."""
    return sha256_of_json(
        [
            ["image", segment.id] if isinstance(segment, Image) else ["text", segment.text, segment.role]
            for segment in document
        ]
    )


def write_results(results: Mapping[str, Any], directory: Path) -> Path:
    text = json.dumps(results, indent=1, allow_nan=False) + "\n"
    return write_atomically(directory / RESULTS, text.encode())


def write_samples(samples: Iterable[Mapping[str, Any]], directory: Path) -> Path:
    lines = (json.dumps(sample, separators=(",", ":"), allow_nan=False) + "\n" for sample in samples)
    return write_atomically(directory / SAMPLES, "".join(lines).encode())


def failures_of(samples: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """How many predictions there were, how many of them failed, and the most frequent reason."""
    reasons: list[str | None] = []
    total = 0
    for sample in samples:
        total += 1
        reasons += [sample.get("error")] if sample["status"] == "failed" else []
    first = Counter(reasons).most_common(1)
    return {"n": total, "n_failed": len(reasons), "reason": first[0][0] if first else None}


def failure_warning(results: Mapping[str, Any]) -> str | None:
    """The line that a run's headline must have, where more than 1% of its predictions failed."""
    found = results.get("failures") or {"n": 0, "n_failed": 0, "reason": None}
    if found["n_failed"] <= TOLERATED_FAILURES * found["n"]:
        return None
    return (
        f"{found['n_failed']:,} of {found['n']:,} predictions failed ({found['n_failed'] / found['n']:.1%}), most often: "
        f"{found['reason']}; the figures are those of the others"
    )


def write_atomically(path: Path, data: bytes) -> Path:
    """Writes beside `path` and renames: a reader sees the old file or the whole one. Errors:
    `FlamingoError`."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files for the owner alone; a report is to be read by others too.
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise FlamingoError(f"{path} cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    return path


def load_results(directory: Path) -> dict[str, Any]:
    """`results.json`, checked. Errors: `FlamingoError` for a missing file, one that is not JSON, or another
    schema."""
    path = Path(directory) / RESULTS
    try:
        results = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise FlamingoError(f"{path} is not JSON ({error}); run the evaluation again") from error
    if not isinstance(results, dict) or "schema_version" not in results:
        raise FlamingoError(f"{path} has no schema_version; expected the results of flamingo-lite eval")
    if (found := results["schema_version"]) != SCHEMA_VERSION:
        raise FlamingoError(
            f"{path} has schema_version {found!r}; this version reads {SCHEMA_VERSION}; "
            "run the evaluation again"
        )
    if not isinstance(results.get("models"), dict) or not isinstance(results.get("cells"), list):
        raise FlamingoError(f"{path} needs an object 'models' and a list 'cells'; run the evaluation again")
    for number, cell in enumerate(results["cells"]):
        _require(cell, CELL, f"{path}: cell {number}")
    return results


def load_samples(directory: Path) -> list[dict[str, Any]]:
    """The predictions of `samples.jsonl`, checked. Errors: `FlamingoError` naming the line."""
    path = Path(directory) / SAMPLES
    samples: list[dict[str, Any]] = []
    # Not splitlines(): a text may hold other line separators, which JSON need not escape.
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            sample = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FlamingoError(
                f"{path}: line {number} is not JSON ({error}); run the evaluation again"
            ) from error
        _require(sample, SAMPLE, f"{path}: line {number}")
        samples.append(sample)
    return samples


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FlamingoError(
            f"{path} does not exist; give the folder that flamingo-lite eval wrote"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise FlamingoError(f"{path} cannot be read ({error})") from error


def _require(value: object, types: Mapping[str, Types], where: str) -> None:
    if not isinstance(value, dict):
        raise FlamingoError(f"{where} is no object; run the evaluation again")
    if missing := [key for key in types if key not in value]:
        raise FlamingoError(f"{where} lacks {', '.join(missing)}; run the evaluation again")
    for key, expected in types.items():
        if not isinstance(value[key], expected):
            names = " or ".join(kind.__name__ for kind in expected)
            raise FlamingoError(f"{where}: {key} is {value[key]!r:.60}; expected {names}")
    interval = value.get("ci95")
    if interval is not None and (
        len(interval) != 2 or not all(isinstance(bound, _NUMBER) for bound in interval)
    ):
        raise FlamingoError(f"{where}: ci95 is {interval!r:.60}; expected two numbers or null")
