"""Starts the ranks of one machine, and ends them together: when one dies, none is left waiting for it.

Each rank is this package's own command line with the composed settings and torchrun's environment variables. What a
rank says on its way out becomes the one line that the run ends with.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from flamingo_lite.errors import PREFIX, FlamingoError, Interrupted

SUPERVISOR = "FLAMINGO_LITE_SUPERVISOR"
"""The environment variable with the id of the process that a rank must not outlive."""

FORWARDED = (signal.SIGTERM, signal.SIGUSR1)
GRACE = 20.0
"""Seconds that ranks get to end by themselves after one of them has failed."""


def launch(settings: str, devices: int, what: str = "train") -> None:
    """Runs the command `what` with `settings` (YAML) on `devices` ranks of this machine; returns when all have
    finished.

    Errors: `FlamingoError` with the cause when one fails or dies, `Interrupted` when a signal stopped them.
    """
    with tempfile.TemporaryDirectory(prefix="flamingo_lite-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(settings)
        command = [sys.executable, "-m", "flamingo_lite", what, "--config", str(path)]
        supervise([command] * devices)


def supervise(commands: Sequence[Sequence[str]], grace: float = GRACE) -> None:
    """Runs one process per command as a rank, and forwards SIGTERM and SIGUSR1 to them; see `launch`."""
    port = free_port()
    ranks = [_Rank(number, command, len(commands), port) for number, command in enumerate(commands)]

    def forward(number: int, frame: FrameType | None) -> None:
        for rank in ranks:
            rank.send(number)

    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, forward) for number in FORWARDED} if in_main else {}
    try:
        failed = _wait(ranks)
        if failed is not None:
            _wait(ranks, until=time.monotonic() + grace)
            raise failed.error()
    except KeyboardInterrupt:  # the terminal has told the ranks as well
        _wait(ranks, until=time.monotonic() + grace)
        raise
    finally:
        for rank in ranks:
            rank.end()
        for number, handler in before.items():
            signal.signal(number, handler)


def is_supervised() -> bool:
    """Was this process started by `launch`?"""
    return SUPERVISOR in os.environ


def leave_with_supervisor() -> None:
    """Ends this process soon after its supervisor is gone: nobody would end it when another rank dies."""
    supervisor = int(os.environ[SUPERVISOR])

    def watch() -> None:
        while os.getppid() == supervisor:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="supervisor", daemon=True).start()


def end_with_parent() -> None:
    """Has this process, of a pool, end by SIGTERM once the one that started it is gone: what trains saves first."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        # The first one ends a training, after which the process would wait for work for ever.
        while True:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


class _Rank:
    """One process, and the last lines that it wrote to stderr; those of rank 0 are passed on as they come."""

    def __init__(self, number: int, command: Sequence[str], ranks: int, port: int) -> None:
        self.number = number
        self.lines: deque[str] = deque(maxlen=200)
        names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        names |= {"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, SUPERVISOR: os.getpid()}
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **{name: str(value) for name, value in names.items()}},
            stdin=subprocess.DEVNULL,
            stdout=None if number == 0 else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        assert self.process.stderr is not None
        self.reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self.reader.start()

    def send(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join(timeout=1.0)

    def error(self) -> FlamingoError:
        """Why it ended. A traceback that nobody has seen is printed: it belongs to a bug."""
        self.reader.join(timeout=1.0)
        code = self.process.returncode
        said = [line.removeprefix(PREFIX).strip() for line in self.lines if line.startswith(PREFIX)]
        if -code in FORWARDED:  # it came before the rank could handle it
            name = signal.Signals(-code).name
            return Interrupted(
                f"rank {self.number} was stopped by {name} while it started; the same command continues"
            )
        if code < 0:
            name = signal.Signals(-code).name
            out_of_memory = " (the machine may be out of memory)" if name == "SIGKILL" else ""
            return FlamingoError(
                f"rank {self.number} was ended by {name}{out_of_memory}; the same command continues from the last checkpoint"
            )
        if said and code in (Interrupted.exit_code, FlamingoError.exit_code):
            return (Interrupted if code == Interrupted.exit_code else FlamingoError)(said[-1])
        if self.number > 0:
            sys.stderr.writelines(self.lines)
        last = next((line.strip() for line in reversed(self.lines) if line.strip()), "it said nothing")
        return FlamingoError(f"rank {self.number} ended with exit code {code}: {last}")

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.lines.append(line)
            if self.number == 0 and not line.startswith(PREFIX):
                sys.stderr.write(line)


def _wait(ranks: Iterable[_Rank], until: float | None = None) -> _Rank | None:
    """Until all have ended, or `until`; without it, also until one fails: that one is returned."""
    while until is None or time.monotonic() < until:
        codes = {rank: rank.process.poll() for rank in ranks}
        failed = [rank for rank, code in codes.items() if code not in (None, 0)]
        # A rank that a signal took is the cause; others may have lost their connection to it meanwhile.
        failed.sort(key=lambda rank: rank.process.returncode)
        if failed and until is None:
            return failed[0]
        if None not in codes.values():
            return None
        time.sleep(0.1)
    return None


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
