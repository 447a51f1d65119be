"""Images a second from shards to batches: ours, OpenFlamingo's pipeline, and the limit that decoding sets.

    python benchmarks/data.py --folder outputs/benchmark_data

makes the data once, times the three in turns on the same documents, and writes `data.json` and `data.md` beside this
file. With `--memory`: what 50,000 documents of small images take, over the run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMES = ("ours", "theirs", "limit")
LABELS = {"ours": "flamingo_lite", "theirs": "OpenFlamingo 2.0.1", "limit": "limit: bare decode and resize"}


class Pipeline:
    """A process of `pipelines.py` that waits until it is asked for a burst."""

    def __init__(self, name: str, folder: Path, batch_size: int, workers: int) -> None:
        command = [
            sys.executable,
            str(HERE / "pipelines.py"),
            name,
            str(folder),
            str(batch_size),
            str(workers),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._answer()

    def burst(self, batches: int) -> float:
        """Images a second."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{batches}\n")
        self.process.stdin.flush()
        answer = self._answer()
        return answer["images"] / answer["seconds"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.terminate()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"{self.process.args[2]}: the pipeline has ended; its traceback stands above")
        return json.loads(line)
