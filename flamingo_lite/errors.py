"""The one exception that a user is meant to read.

Its message is a single line: what was found, what was expected, what to do. The commands print it
and exit with code 2; everything else that escapes is a bug and keeps its traceback.
"""

PREFIX = "flamingo-lite: "
"""What the line of a failure begins with in the terminal."""


class FlamingoError(Exception):
    """A failure that the user can mend: bad input, a missing file, a wrong name."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class Interrupted(FlamingoError):
    """A signal has stopped the run, which can be continued. The exit code is that of a program ended by SIGTERM."""

    exit_code = 143


class SampleError(FlamingoError):
    """One sample cannot be used; the others can. `reason`: the word under which it is counted ("image", "json")."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["SampleError"], tuple[str, str]]:
        return type(self), (str(self), self.reason)  # worker processes send it home


def first_line(error: BaseException) -> str:
    """What an exception says, short enough for a message of one line."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
