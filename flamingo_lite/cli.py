"""The console script `flamingo-lite`: finds the command, runs it, and turns a failure into one line.

Nothing heavy is imported here: a command imports what it needs when it runs.
"""

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

import flamingo_lite
from flamingo_lite.commands import (
    bench,
    chat,
    compare,
    contamination,
    dashboard,
    data_check,
    data_convert,
    data_deny,
    data_episodes,
    data_index,
    data_instruct,
    data_make,
    data_preview,
    data_stats,
    ensemble,
    evaluate,
    export,
    judge,
    lmms_tasks,
    plan,
    quickstart,
    report,
    train,
)
from flamingo_lite.errors import PREFIX, FlamingoError
from flamingo_lite.names import unknown

COMMANDS: dict[str, ModuleType] = {
    "quickstart": quickstart,
    "data make": data_make,
    "data convert": data_convert,
    "data deny": data_deny,
    "data episodes": data_episodes,
    "data check": data_check,
    "data stats": data_stats,
    "data preview": data_preview,
    "data index": data_index,
    "data instruct": data_instruct,
    "train": train,
    "eval": evaluate,
    "eval judge": judge,
    "eval contamination": contamination,
    "eval ensemble": ensemble,
    "eval lmms": lmms_tasks,
    "chat": chat,
    "compare": compare,
    "report": report,
    "export": export,
    "plan": plan,
    "dashboard": dashboard,
    "bench": bench,
}

# Read when the libraries are imported: no bars for files of a few MB, no warning about forked tokenizers.
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}

OPTIONS_EPILOG = """\
KEY=VALUE changes a setting (stage.steps=50), GROUP=PRESET chooses a file of conf/ (model=flamingo_tiny).
--cfg shows all settings with their values."""


class Parser(argparse.ArgumentParser):
    """argparse, but an error is a `FlamingoError` in one line, with the nearest right option."""

    def error(self, message: str) -> NoReturn:
        raise FlamingoError(f"{message} (see {self.prog} --help)")

    def parse_words(self, words: Sequence[str]) -> argparse.Namespace:
        """Options and overrides in any order. Errors: `FlamingoError` for an option that does not exist."""
        arguments, rest = self.parse_known_args(words)
        for word in rest:
            if word.startswith("-"):
                options = [option for action in self._actions for option in action.option_strings]
                raise unknown(f"option of {self.prog}", word.split("=")[0], options)
        if rest:
            arguments.overrides = [*getattr(arguments, "overrides", []), *rest]
        return arguments


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 0, 2 for a failure that the user can mend, 130 after Ctrl-C, 143 after SIGTERM."""
    words = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in words
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    words = [word for word in words if word != "--debug"]
    try:
        return _run(words)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has left (| head): nothing is left to say, and nobody to say it to.
        sys.stderr.close()
        return 0
    except Exception as error:  # a full disk is a bare Exception when tokenizers meets it
        line = explain(error)
        if debug or line is None:
            raise
        print(f"{PREFIX}{line}", file=sys.stderr)
        return error.exit_code if isinstance(error, FlamingoError) else 2


def explain(error: BaseException) -> str | None:
    """The one line for a failure that the user can mend; None for what is a bug."""
    if isinstance(error, FlamingoError):
        return str(error)
    if is_disk_full(error):
        where = f" while writing {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return f"the disk is full{where}; free some space, then run the same command again"
    if isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError | FileExistsError):
        return f"{error.filename}: {error.strerror}; choose another output="
    return None


def is_disk_full(error: BaseException | None) -> bool:
    """Is a full disk (or quota) what this error comes from? Native writers only say so in their message."""
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or is_disk_full(error.__cause__)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("--version", "version"):
        print(f"flamingo-lite {flamingo_lite.__version__}")
        return 0
    name = _command(words)
    module = COMMANDS[name]
    parser = Parser(
        prog=f"flamingo-lite {name}",
        description=module.__doc__,
        epilog=OPTIONS_EPILOG if "KEY=VALUE" in str(getattr(module, "USAGE", "")) else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    module.run(parser.parse_words(words[len(name.split()) :]))
    return 0


def _command(words: list[str]) -> str:
    """The command that `words` begin with: one word, or two ("data make")."""
    for count in (2, 1):
        if (name := " ".join(words[:count])) in COMMANDS:
            return name
    heads = {name.split()[0] for name in COMMANDS if " " in name}
    if words[0] in heads and (len(words) == 1 or words[1].startswith("-")):
        tails = ", ".join(name for name in COMMANDS if name.startswith(words[0]))
        raise FlamingoError(f"'{words[0]}' needs one more word; the commands are: {tails}")
    said = " ".join(words[:2]) if words[0] in heads else words[0]
    raise unknown("command", said, COMMANDS)


def overview() -> str:
    """What `flamingo-lite --help` prints."""
    lines = [
        "flamingo-lite: join a vision encoder to a language model, train the join,",
        "and measure what it learns from the examples in its prompt",
        "",
        "usage: flamingo-lite COMMAND [options] [KEY=VALUE ...]",
        "",
    ]
    width = max(map(len, COMMANDS)) + 2
    lines += [f"  {name:<{width}}{module.SUMMARY}" for name, module in COMMANDS.items()]
    lines += [
        "",
        "flamingo-lite COMMAND --help says more of one of them; --version says which version this is.",
        "New here? Run flamingo-lite quickstart and open the report that it names.",
    ]
    return "\n".join(lines)
