"""A training step of a 3B-size model with random weights: tokens a second, FLOPs utilization and peak memory, ours and in
OpenFlamingo's own code.

    python benchmarks/training.py

builds both models with the same weights, checks that their losses are equal, times steps of the two in turns, and writes
`training.json` and `training.md` beside this file. With a GPU the shapes are openflamingo_3b's; without one they are
small. `--help` lists the sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from pairing import machine, median_with_interval, ratio, versions
from peers import write_tokenizer

from flamingo_lite.config import load_config
from flamingo_lite.training.plan import meta_model
from flamingo_lite.training.rates import matrix_rate
from flamingo_lite.training.trial import StepShape, run_trial
from flamingo_lite.training.utilization import known_peak

HERE = Path(__file__).parent
SIDES = ("ours", "theirs")
LABELS = {"ours": "flamingo_lite", "theirs": "OpenFlamingo 2.0.1"}
UNPRETRAINED = ["model=openflamingo_3b", "model.vision.pretrained=false", "model.language.pretrained=false"]
SMALL = [
    "model.vision.config={embed_dim: 64, quick_gelu: true, vision_cfg: {image_size: 112, layers: 4, width: 192, "
    "head_width: 64, patch_size: 14}}",
    "model.language.config={model_type: mpt, d_model: 256, n_heads: 4, n_layers: 4, expansion_ratio: 4, "
    "max_seq_len: 2048, vocab_size: 16384}",
]


class Side:
    """A process of `training_steps.py` that waits until it is asked for steps."""

    def __init__(self, name: str, tokenizer: str, options: argparse.Namespace) -> None:
        command = [sys.executable, str(HERE / "training_steps.py"), name, "--model", *options.model]
        command += ["--tokenizer", tokenizer]
        for field in ("rows", "length", "images", "precision", "device"):
            command += [f"--{field}", str(getattr(options, field))]
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        self.first = self._answer()

    def steps(self, number: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.name}: the process has ended; its traceback stands above")


def check_equal(sides: dict[str, Side], options: argparse.Namespace) -> None:
    """The losses of both models before any step, in float32, and of the first steps in the precision that is timed."""
    exact = [side.first["exact"] for side in sides.values()]
    if abs(exact[0] - exact[1]) > 1e-4 * abs(exact[1]):
        raise SystemExit(
            f"the losses differ, so there is nothing to compare: ours {exact[0]}, theirs {exact[1]}"
        )
    first = [side.first["losses"][0] for side in sides.values()]
    tolerance = 1e-4 if options.precision == "32-true" else 1e-2
    if abs(first[0] - first[1]) > tolerance * abs(first[1]):
        raise SystemExit(f"the losses under {options.precision} differ: ours {first[0]}, theirs {first[1]}")


@dataclass
class Measured:
    """By side. `seconds` and `work` (seconds of all cores) of a step, by round; `first`: the first losses."""

    seconds: dict[str, list[float]]
    work: dict[str, list[float]]
    peak_bytes: dict[str, int]
    first: dict[str, dict[str, Any]]


def measure(options: argparse.Namespace) -> Measured:
    """The two take turns in beginning a round."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), load_config(options.model).model.language.config["vocab_size"])
        sides = {name: Side(name, folder, options) for name in SIDES}
    first = {name: side.first for name, side in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    work: dict[str, list[float]] = {name: [] for name in SIDES}
    peaks = dict.fromkeys(SIDES, 0)
    try:
        check_equal(sides, options)
        for number in range(options.rounds):
            for name in SIDES if number % 2 == 0 else reversed(SIDES):
                answer = sides[name].steps(options.steps)
                seconds[name].append(answer["seconds"] / options.steps)
                work[name].append(answer["work"] / options.steps)
                peaks[name] = max(peaks[name], answer["peak"])
            said = ", ".join(
                f"{name} {seconds[name][-1]:.3f} s ({work[name][-1]:.3f} s of work)" for name in SIDES
            )
            print(f"round {number + 1}: {said}", flush=True)
    finally:
        for side in sides.values():
            side.close()
    return Measured(seconds, work, peaks, first)


def model_flops(options: argparse.Namespace) -> int:
    """Of our step: forward, and of the backward pass what a frozen model needs. The yardstick of both."""
    model = meta_model(load_config(options.model).model)
    shape = StepShape(options.length, options.images)
    return sum(run_trial(model, shape, options.rows).flops.values())


def peak_flops(options: argparse.Namespace) -> tuple[float, str]:
    """Operations a second that the device could do, and where the number is from."""
    known = known_peak(torch.device(options.device), options.precision)
    if known is not None and options.precision == "bf16-mixed":
        return known, "the data sheet's dense bfloat16 rate"
    dtype = torch.bfloat16 if options.precision == "bf16-mixed" else torch.float32
    rate = matrix_rate(options.device, dtype)
    return rate, f"the best of twelve products of 2048 x 2048 matrices in {dtype}"


def results(options: argparse.Namespace) -> dict[str, Any]:
    measured = measure(options)
    seconds = measured.seconds
    flops = model_flops(options)
    peak, peak_source = peak_flops(options)
    tokens = options.rows * options.length
    return {
        "command": shlex.join(["python", "benchmarks/training.py", *sys.argv[1:]]),
        "machine": machine(options.device),
        "date": date.today().isoformat(),
        "versions": versions(),
        "options": {name: value for name, value in vars(options).items() if name != "output"},
        "first": measured.first,
        "model_flops": flops,
        "peak_flops": peak,
        "peak_source": peak_source,
        "seconds": {name: median_with_interval(values) for name, values in seconds.items()},
        "tokens_per_second": {
            name: median_with_interval([tokens / value for value in values])
            for name, values in seconds.items()
        },
        "utilization": {
            name: median_with_interval([flops / (value * peak) for value in values])
            for name, values in seconds.items()
        },
        "peak_bytes": measured.peak_bytes,
        "speedup": ratio(seconds, "theirs", "ours"),
        "work": {name: median_with_interval(values) for name, values in measured.work.items()},
        "work_ratio": ratio(measured.work, "theirs", "ours"),
        "rounds": {"seconds": seconds, "work": measured.work},
    }


def markdown(found: dict[str, Any], options: argparse.Namespace) -> str:
    lines = [
        "| code | tokens a second (95% interval) | model FLOPs utilization | peak memory | time of a step |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in SIDES:
        rate, seconds = found["tokens_per_second"][name], found["seconds"][name]
        lines.append(
            f"| {LABELS[name]} | {rate['median']:,.0f} ({rate['low']:,.0f} to {rate['high']:,.0f}) | "
            f"{found['utilization'][name]['median']:.1%} | {found['peak_bytes'][name] / 1e9:.2f} GB | "
            f"{seconds['median']:.3f} s |"
        )
    exact = {name: first["exact"] for name, first in found["first"].items()}
    return TEXT.format(
        table="\n".join(lines),
        found=found,
        options=options,
        speedup=found["speedup"],
        work=found["work_ratio"],
        memory=found["peak_bytes"]["theirs"] / found["peak_bytes"]["ours"],
        ours=exact["ours"],
        theirs=exact["theirs"],
        versions=", ".join(f"{name} {number}" for name, number in found["versions"].items()),
        shapes="openflamingo_3b's shapes" if options.full else "small shapes (there is no GPU here)",
        model="\n".join(f"    {override}" for override in options.model),
        what="of the device"
        if options.device == "cuda"
        else "of the process, Python and its libraries included",
    )


TEXT = """# A training step

Written by `{found[command]}`; do not edit.

{table}

A step of theirs takes {speedup[median]:.2f} times as long as ours ({speedup[low]:.2f} to {speedup[high]:.2f}), and
{memory:.2f} times the memory. In processor time, which other programs do not lengthen, it is {work[median]:.2f} times
({work[low]:.2f} to {work[high]:.2f}).

{options.note}

{found[date]}, {found[machine]}, `{options.device}`, precision {options.precision}, {options.threads};
{versions}.
{shapes}: {options.rows} rows of {options.length} tokens with {options.images} images each. Medians over
{options.rounds} rounds of {options.steps} steps, the two in turns; the ratio is the median of the rounds' ratios,
intervals are bootstrap intervals of the medians.

- **The same work**: random weights from one seed, ours carried over to theirs by their names, gates at 0.5; the same rows,
  labels and images, on the device from the start. Before anything is timed the two losses in float32 have to agree to
  1e-4: {ours:.6f} and {theirs:.6f}.
- **flamingo_lite**: the model, its optimizer and its precision as `flamingo-lite train` sets them up; under bf16-mixed
  frozen weights are held in bfloat16.
- **OpenFlamingo**: `Flamingo` of `open_flamingo/src` on transformers' MPT, frozen as its factory does, and the step of
  its `train_one_epoch`: autocast over float32 weights, the gradient of the whole embedding set to 0 but for new rows,
  clipping, AdamW over all that has a gradient.
- **Not in it**: reading data, Lightning, more than one device, recomputed activations.
- **Utilization**: {found[model_flops]:.3g} operations a step, counted on our model (a multiply-add is two; gradients of
  frozen weights are not needed and not counted), beside {found[peak_flops]:.3g} a second: {found[peak_source]}.
- **Peak memory** {what}, over the timed steps.

The model:

{model}
"""


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if cuda else "cpu")
    parser.add_argument(
        "--precision", choices=("bf16-mixed", "32-true"), help="bf16-mixed on cuda, else 32-true"
    )
    parser.add_argument("--full", action=argparse.BooleanOptionalAction, help="3B shapes; on cuda by default")
    parser.add_argument("--rows", type=int, help="16 on cuda, else 4")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row, as OpenFlamingo cuts MMC4")
    parser.add_argument("--images", type=int, default=3, help="of a row")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, help="of each in each round: 8 on cuda, else 3")
    parser.add_argument("--note", default="", help="what else is to be said of this run, on its page")
    parser.add_argument(
        "--output", type=Path, default=HERE, help="where training.json and training.md are written"
    )
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    options.full = on_gpu if options.full is None else options.full
    options.precision = options.precision or ("bf16-mixed" if on_gpu else "32-true")
    options.rows = options.rows or (16 if on_gpu else 4)
    options.steps = options.steps or (8 if on_gpu else 3)
    options.model = [*UNPRETRAINED, *([] if options.full else SMALL)]
    options.threads = f"{torch.get_num_threads()} threads"
    found = results(options)
    text = markdown(found, options)
    (options.output / "training.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (options.output / "training.md").write_text(text.replace("\n\n\n", "\n\n"), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
