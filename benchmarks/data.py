"""Images a second from shards to batches: ours, OpenFlamingo's pipeline, and the limit that decoding sets.

    python benchmarks/data.py

makes the documents once, times the three in turns on them, follows the memory of 50,000 documents, and writes
`data.json` and `data.md` beside this file. `--help` lists the sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mmc4_like
import numpy as np
from pairing import machine, median_with_interval
from pipelines import PREFETCH

HERE = Path(__file__).parent
READINGS = 100  # of the memory
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


def rates(options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Images a second of each pipeline, one number for each round; the three take turns in beginning a round."""
    pipelines = {name: Pipeline(name, folder, options.batch_size, options.workers) for name in NAMES}
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    try:
        for number in range(options.rounds):
            for turn in range(len(NAMES)):
                name = NAMES[(number + turn) % len(NAMES)]
                found[name].append(pipelines[name].burst(options.batches))
            print(
                f"round {number + 1}: " + ", ".join(f"{n} {r[-1]:.0f}" for n, r in found.items()), flush=True
            )
    finally:
        for pipeline in pipelines.values():
            pipeline.close()
    return found


def memory(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """MiB of the process and its workers together, over the run: the peak of each tenth but the first."""
    pipeline = Pipeline("ours", folder, options.batch_size, options.workers)
    readings: list[float] = []
    ahead = PREFETCH * options.workers
    burst = options.memory_documents // options.batch_size // READINGS - ahead
    if burst < 1:
        raise SystemExit(f"--memory-documents {options.memory_documents}: too few for {READINGS} readings")
    try:
        for _ in range(READINGS):
            pipeline.burst(burst)
            readings.append(mebibytes(pipeline.process.pid))
    finally:
        pipeline.close()
    tenths = [max(tenth) for tenth in np.array_split(readings, 10)]
    later = tenths[1:]
    return {
        "documents": options.memory_documents,
        "first": tenths[1],
        "last": tenths[-1],
        "deviation": max(abs(peak / statistics.median(later) - 1) for peak in later),
    }


def mebibytes(pid: int) -> float:
    """Memory of a process and its children, what they share counted once (Linux).

    Without the pages of files: how much of a library's counts depends on who else on the machine has it loaded.
    """
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    own = sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return own / 1024 + sum(mebibytes(int(child)) for child in children)


def results(options: argparse.Namespace) -> dict[str, Any]:
    mmc4_like.make(
        options.folder / "large", options.documents, options.tars, tuple(options.edges), options.pool
    )
    found = rates(options, options.folder / "large")
    ratios = {
        name: [a / b for a, b in zip(found["ours"], found[name], strict=True)]
        for name in NAMES
        if name != "ours"
    }
    used = None
    if options.memory_documents:
        mmc4_like.make(options.folder / "small", 2000, options.tars, (64, 128), 200)
        used = memory(options, options.folder / "small")
    return {
        "machine": machine("cpu"),
        "date": date.today().isoformat(),
        "versions": {name: version(name) for name in ("torch", "pillow", "webdataset", "open-flamingo")},
        "options": {name: str(value) for name, value in vars(options).items()},
        "images_per_second": {name: median_with_interval(values) for name, values in found.items()},
        "ours_over": {name: median_with_interval(values) for name, values in ratios.items()},
        "memory": used,
        "rounds": found,
    }


def markdown(found: dict[str, Any], options: argparse.Namespace) -> str:
    lines = [
        "| pipeline | images a second (95% interval) | ours is |",
        "| --- | --- | --- |",
    ]
    for name in NAMES:
        rate = found["images_per_second"][name]
        shown = f"{rate['median']:.0f} ({rate['low']:.0f} to {rate['high']:.0f})"
        ratio = found["ours_over"].get(name)
        times = f"{ratio['median']:.2f} times ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else ""
        lines.append(f"| {LABELS[name]} | {shown} | {times} |")
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return TEXT.format(
        table="\n".join(lines),
        machine=found["machine"],
        date=found["date"],
        versions=versions,
        options=options,
        memory=memory_line(found["memory"]),
    )


def memory_line(used: dict[str, float] | None) -> str:
    if used is None:
        return "not measured in this run"
    return (
        f"{used['documents']:,} documents: {used['first']:.0f} MiB in the second tenth of the run, {used['last']:.0f} MiB "
        f"in the last; the peaks of the tenths are within {used['deviation']:.1%} of their median"
    )


TEXT = """# Reading interleaved data

Written by `python benchmarks/data.py`; do not edit.

{table}

{options.note}

{date}, {machine}, {options.workers} worker processes, one thread each; {versions}. Medians over {options.rounds} rounds,
each of {options.batches} batches of {options.batch_size} documents a pipeline, in turns; ratios are medians of the
rounds' ratios, intervals are bootstrap intervals of the medians.

What is read: {options.documents:,} documents like MMC4's in {options.tars} tars, one to six JPEGs each of
{options.edges[0]} to {options.edges[1]} pixels an edge (1/f noise, about a quarter of a byte a pixel; {options.pool}
distinct ones), below 256 tokens, all in the page cache. Images become 224 x 224.

- **flamingo_lite**: shards are read sample by sample, parsed, tokenized, images decoded with `draft`, resized,
  normalised, collated; batches arrive in the main process.
- **OpenFlamingo**: the code of `open_flamingo/train/data.py` (`get_mmc4_dataset`, resampled as in their recipe) with
  open_clip's evaluation transform and the same tokenizer. Changed is what no longer runs: webdataset's marks at the ends
  of tars are left out, the tokenizer gets back two attributes that transformers 5 dropped. Their buffer of 5,000 documents
  for shuffling is made 200, to fit the memory. Images of documents that they decode and then drop are counted.
- **limit**: the same images, in memory as bytes, in as many worker processes: Pillow's draft decoding at the same scale
  and torch's resizing, nothing else; only a number leaves the worker.

Memory, with small images (64 to 128 pixels an edge), of all processes together: {memory}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("outputs/benchmark_data"), help="where the data are made"
    )
    parser.add_argument("--documents", type=int, default=480)
    parser.add_argument("--tars", type=int, default=8)
    parser.add_argument(
        "--edges", type=int, nargs=2, default=(400, 1200), help="shortest and longest, in pixels"
    )
    parser.add_argument("--pool", type=int, default=160, help="distinct images")
    # One core is the main process's, which trains where workers read.
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--batch-size", type=int, default=16, help="documents")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batches", type=int, default=24, help="of each pipeline in each round")
    parser.add_argument("--memory-documents", type=int, default=50_000, help="0: memory is not followed")
    parser.add_argument("--note", default="", help="what else is to be said of this run, on its page")
    parser.add_argument("--output", type=Path, default=HERE, help="where data.json and data.md are written")
    options = parser.parse_args()
    found = results(options)
    text = markdown(found, options)
    (options.output / "data.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (options.output / "data.md").write_text(text.replace("\n\n\n", "\n\n"), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
