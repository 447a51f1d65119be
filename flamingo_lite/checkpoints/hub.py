"""Files of a model on the hub, through the local cache of huggingface_hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from flamingo_lite.errors import FlamingoError, first_line


def snapshot(name: str, files: Sequence[str], what: str, revision: str | None = None) -> Path:
    """The local copy of a repository's `files` (patterns), fetched if need be and if there is a network.

    HF_HUB_OFFLINE=1 forbids it. Errors: `FlamingoError`, naming `what` was wanted, where it is neither here nor to be had.
    """
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(files),
                # Said aloud: some versions ask the hub for what is in a known commit, even there.
                local_files_only=constants.HF_HUB_OFFLINE,
            )
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise FlamingoError(
            f"cannot fetch {what}: {first_line(error)}; expected it in the local cache, or a network"
        ) from error
