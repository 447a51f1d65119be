"""The two files of an evaluation, `results.json` and `samples.jsonl`: written whole or not at all, read with checks."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flamingo_lite.document import Document, Image
from flamingo_lite.errors import FlamingoError

SCHEMA_VERSION = 1
RESULTS = "results.json"
SAMPLES = "samples.jsonl"

CELL_KEYS = frozenset("task model split shots condition metric value se ci95 n n_failed seeds".split())
SAMPLE_KEYS = frozenset(
    "task model query_id split seed shots condition demonstration_ids prompt_sha image_ids raw extracted "
    "target score status".split()
)


def sha256_of_json(value: object) -> str:
    """sha256 of the canonical JSON of `value`: sorted keys, no spaces, UTF-8."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # A lone surrogate, which a byte-level tokenizer may decode to, has no UTF-8 of its own.
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


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


def write_atomically(path: Path, data: bytes) -> Path:
    """Writes beside `path` and renames: a reader sees the old file or the whole one. Errors: `FlamingoError`."""
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
    """`results.json`, checked. Errors: `FlamingoError` for a missing file, one that is not JSON, or another schema."""
    path = Path(directory) / RESULTS
    try:
        results = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise FlamingoError(f"{path} is not JSON ({error}); run the evaluation again") from error
    if not isinstance(results, dict) or "schema_version" not in results:
        raise FlamingoError(f"{path} has no schema_version; expected the results of flamingo-lite eval")
    if (found := results["schema_version"]) != SCHEMA_VERSION:
        raise FlamingoError(
            f"{path} has schema_version {found!r}; this version reads {SCHEMA_VERSION}; run the evaluation again"
        )
    if not isinstance(results.get("models"), dict) or not isinstance(results.get("cells"), list):
        raise FlamingoError(f"{path} needs an object 'models' and a list 'cells'; run the evaluation again")
    for number, cell in enumerate(results["cells"]):
        _require(cell, CELL_KEYS, f"{path}: cell {number}")
    return results


def load_samples(directory: Path) -> list[dict[str, Any]]:
    """The predictions of `samples.jsonl`, checked. Errors: `FlamingoError` naming the line."""
    path = Path(directory) / SAMPLES
    samples: list[dict[str, Any]] = []
    # Not splitlines(): an answer may hold other line separators, which JSON leaves unescaped when asked to.
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            sample = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FlamingoError(
                f"{path}: line {number} is not JSON ({error}); run the evaluation again"
            ) from error
        _require(sample, SAMPLE_KEYS, f"{path}: line {number}")
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


def _require(value: object, keys: frozenset[str], where: str) -> None:
    found = value.keys() if isinstance(value, dict) else frozenset()
    if missing := sorted(keys - found):
        raise FlamingoError(f"{where} lacks {', '.join(missing)}; run the evaluation again")
