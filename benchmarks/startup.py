"""How long `import flamingo_lite` and `flamingo-lite --help` take, each in a fresh process.

    python benchmarks/startup.py

writes `startup.json` and `startup.md` beside this file.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pairing
from pairing import in_turns, median_with_interval, said, table

COMMANDS = {
    "an empty program": [sys.executable, "-c", ""],
    "import flamingo_lite": [
        sys.executable, "-c", "import flamingo_lite, sys; sys.exit('torch' in sys.modules)",
    ],
    "flamingo-lite --help": [sys.executable, "-m", "flamingo_lite", "--help"],
}  # fmt: skip

PAGE = """# Starting

Written by `{found[command]}`; do not edit.

{table}

{options.note}

{made} Medians over {options.rounds} rounds, in turns, of whole processes, files in the page cache; intervals are 95%
bootstrap intervals. The import fails the run if torch comes with it.
"""


def main() -> None:
    options = pairing.parser(__doc__, rounds=21).parse_args()
    calls = {
        name: partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
        for name, command in COMMANDS.items()
    }
    seconds = in_turns(calls, options.rounds)
    found = {
        **pairing.provenance("startup", options),
        "seconds": {name: median_with_interval(values) for name, values in seconds.items()},
        "rounds": seconds,
    }
    rows = [[f"`{name}`", f"{said(spent, 3)} s"] for name, spent in found["seconds"].items()]
    text = PAGE.format(
        table=table(("process", "from start to end"), rows),
        found=found,
        options=options,
        made=pairing.made(found),
    )
    pairing.write(options.output, "startup", found, text)


if __name__ == "__main__":
    main()
