"""Where a result was made: versions, platform, threads, git commit. No times and no paths: the bytes are to
repeat."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import flamingo_lite

PACKAGES = ("flamingo_lite", "torch", "transformers", "tokenizers", "open_clip_torch", "numpy", "pillow")


def environment() -> dict[str, object]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": _threads(),
        "accelerator": _accelerator(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }


def git_sha() -> str | None:
    """The commit of the checkout that the package runs from; None for an installed wheel or without git."""
    root = Path(flamingo_lite.__path__[0]).parent
    # An environment folder may lie inside some other repository, whose commit would say nothing about this
    # code.
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _threads() -> int | None:
    # Scoring needs no torch, so its threads are asked only where something else has loaded it.
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch is not None else None


def _accelerator() -> str | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name()
