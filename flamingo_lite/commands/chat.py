"""Talks with a model about pictures, in the terminal.

  flamingo-lite chat cat.png dog.png --checkpoint outputs/mine/flamingo
  echo "What is this?" | flamingo-lite chat cat.png --checkpoint outputs/mine/flamingo

The images come before the first question. A line is a question, or one of these:
  /image PATH   shows another picture with the next question
  /reset        begins again, with the images of the command line
  /quit         ends; so does the end of the input
A model that was tuned on conversations is asked in turns; any other continues texts and images as in pretraining."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flamingo_lite.errors import PREFIX, FlamingoError
from flamingo_lite.names import check_choice

if TYPE_CHECKING:
    from flamingo_lite.document import Image
    from flamingo_lite.generation.chat import Chat

SUMMARY = "talk with a model about pictures"
COMMANDS = ("/image", "/reset", "/quit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="pictures, shown with the first question")
    parser.add_argument(
        "--checkpoint", metavar="DIRECTORY", help="the model's directory, of any format that can be read"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="tokens of an answer, at most (256)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0, the default, is greedy; above it samples",
    )
    parser.add_argument(
        "--system", metavar="TEXT", help="a message of the system, for a model tuned on conversations"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples (0)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or mps; by default the fastest there is")


def run(arguments: argparse.Namespace) -> None:
    check(arguments)
    images = [opened(path) for path in (*arguments.images, *getattr(arguments, "overrides", ()))]
    import torch

    from flamingo_lite.checkpoints.io import load
    from flamingo_lite.data.make import available_cores
    from flamingo_lite.generation.chat import Chat
    from flamingo_lite.training.settings import torch_device

    torch.set_num_threads(available_cores())
    torch.manual_seed(arguments.seed)
    model, processor = load(arguments.checkpoint)
    torch.nn.Module.to(model, torch_device(arguments.device, "--device "))
    options: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens}
    if arguments.temperature > 0:
        options |= {"do_sample": True, "temperature": arguments.temperature}
    converse(Session(Chat(model, processor, arguments.system), images, options))


def check(arguments: argparse.Namespace) -> None:
    """Errors: `FlamingoError` for a setting without a value or out of range."""
    if not arguments.checkpoint:
        raise FlamingoError("chat needs a model: --checkpoint DIRECTORY, such as outputs/quickstart/flamingo")
    if arguments.max_new_tokens < 1:
        raise FlamingoError(f"--max-new-tokens is {arguments.max_new_tokens}; expected 1 or more")
    if not 0 <= arguments.temperature < float("inf"):
        raise FlamingoError(f"--temperature is {arguments.temperature}; expected 0 or more")


def opened(path: str) -> "Image":
    """The image, decoded once to see that it can be. Errors: `SampleError` naming the file."""
    from flamingo_lite.document import Image

    image = Image(Path(path).expanduser())
    image.pil()
    return image


@dataclass
class Session:
    """A conversation in the terminal. `shown`: the images of the command line; `waiting`: those that the next
    question brings."""

    chat: "Chat"
    shown: "list[Image]"
    options: dict[str, Any]
    waiting: "list[Image]" = field(default_factory=list)

    def __post_init__(self) -> None:
        self.waiting = list(self.shown)


def converse(session: Session) -> None:
    """Answers the lines of the input. At a terminal a line that fails is told of and the conversation goes on;
    otherwise nobody would notice, and the failure ends it. Ctrl-C there ends an answer, and no turn has been. Errors:
    `FlamingoError`."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(f"A line is a question, or one of {', '.join(COMMANDS)}.", file=sys.stderr)
    for line in lines(is_terminal):
        try:
            if not take(line, session):
                return
        except FlamingoError as error:
            if not is_terminal:
                raise
            print(f"{PREFIX}{error}", file=sys.stderr)
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            print()


def lines(is_terminal: bool) -> Iterator[str]:
    """The lines of the input, without their ends, to its end."""
    if not is_terminal:
        try:
            yield from (line.strip() for line in sys.stdin)
        except UnicodeDecodeError as error:
            raise FlamingoError(f"the questions are no UTF-8 ({error}); write them in UTF-8") from error
        return
    import contextlib

    with contextlib.suppress(ImportError):  # it is not on Windows; input() then has no history
        import readline  # noqa: F401
    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            print()
            return


def take(line: str, session: Session) -> bool:
    """Does what the line says; False where it ends the conversation. Errors: `FlamingoError`."""
    if line.startswith("/"):
        word, _, rest = line.partition(" ")
        check_choice("command", word, COMMANDS)
        if word == "/image":
            if not rest.strip():
                raise FlamingoError("/image needs a path: /image cat.png")
            session.waiting.append(opened(rest.strip()))
        elif word == "/reset":
            session.chat.reset()
            session.waiting = list(session.shown)
        return word != "/quit"
    if line:
        answer = session.chat.ask(line, session.waiting, write=show, **session.options)
        print()
        if answer.strip() or not session.chat.has_turns:
            session.waiting = []
    return True


def show(text: str) -> None:
    """Prints what a model wrote, without control characters: a terminal would obey them."""
    print("".join(c for c in text if c.isprintable() or c in "\n\t"), end="", flush=True)
