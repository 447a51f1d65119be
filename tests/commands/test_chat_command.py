"""`flamingo-lite chat` with questions from a pipe: an answer a line, what its commands do, failures in one line."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

import flamingo_lite as fl
from flamingo_lite import cli
from flamingo_lite.commands.chat import show
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def checkpoint(tmp_path: Path, model: VisionLanguageModel, processor: VisionLanguageProcessor) -> str:
    fl.save(model, processor, tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def pictures(tmp_path: Path, image_of: Callable[[int], Image]) -> list[str]:
    paths = [tmp_path / f"picture {i}.png" for i in range(2)]
    for i, path in enumerate(paths):
        path.write_bytes(image_of(i).data)
    return [str(path) for path in paths]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Say]:
    """The exit code, and what stands on the two outputs, of a chat with these arguments and lines."""

    def run(arguments: list[str], *lines: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        capsys.readouterr()
        code = cli.main(["chat", "--max-new-tokens", "3", "--device", "cpu", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    # The console script's environment silences transformers when it is first imported; here it has been.
    disable_progress_bar()
    yield run
    enable_progress_bar()


def asked(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, turns: list[list[Image | str]]
) -> str:
    """What the command should print: every answer and the end of its line."""
    document, shown = Document([]), ""
    for turn in turns:
        document = Document([*document, *(Text(s, loss=False) if isinstance(s, str) else s for s in turn)])
        (answer,) = fl.generate(model, processor, [document], max_new_tokens=3)
        document = Document([*document, Text(answer, ends_chunk=True)])
        shown += "".join(c for c in answer if c.isprintable() or c in "\n\t") + "\n"
    return shown


def test_images_of_the_command_line_come_before_the_first_question(
    say: Say, checkpoint: str, pictures: list[str], model: VisionLanguageModel,
    processor: VisionLanguageProcessor, image_of: Callable[[int], Image],
) -> None:  # fmt: skip
    code, out, err = say([pictures[0], "--checkpoint", checkpoint, pictures[1]], "what?", "", "and?")
    assert (code, err) == (0, "")
    assert out == asked(model, processor, [[image_of(0), image_of(1), " what?"], [" and?"]])


def test_an_image_can_be_added_on_the_way(
    say: Say, checkpoint: str, pictures: list[str], model: VisionLanguageModel,
    processor: VisionLanguageProcessor, image_of: Callable[[int], Image],
) -> None:  # fmt: skip
    code, out, _ = say(["--checkpoint", checkpoint], "what?", f"/image {pictures[1]}", "and?", "/quit", "no")
    assert code == 0
    assert out == asked(model, processor, [["what?"], [image_of(1), " and?"]])


def test_reset_begins_again_with_the_images_of_the_command_line(
    say: Say, checkpoint: str, pictures: list[str], model: VisionLanguageModel,
    processor: VisionLanguageProcessor, image_of: Callable[[int], Image],
) -> None:  # fmt: skip
    code, out, _ = say([pictures[0], "--checkpoint", checkpoint], "what?", "/reset", "and?")
    assert code == 0
    once = asked(model, processor, [[image_of(0), " what?"]])
    assert out == once + asked(model, processor, [[image_of(0), " and?"]])


@pytest.mark.parametrize(
    ("arguments", "lines", "expected"),
    [
        ([], ["what?"], "chat needs a model: --checkpoint DIRECTORY"),
        (["--checkpoint", "/nowhere"], [], "no model directory /nowhere"),
        (["/nowhere.png", "--checkpoint", "CHECKPOINT"], [], "/nowhere.png"),
        (["--checkpoint", "CHECKPOINT"], ["/image /nowhere.png"], "/nowhere.png"),
        (["--checkpoint", "CHECKPOINT"], ["/image"], "/image needs a path"),
        (["--checkpoint", "CHECKPOINT"], ["/imag a.png"], "did you mean '/image'?"),
        (["--checkpoint", "CHECKPOINT"], ["an <image>"], "contains <image>"),
        (["--checkpoint", "CHECKPOINT"], ["x" * 300], "leaves no room for an answer"),
        (["--checkpoint", "CHECKPOINT", "--temperature", "-1"], [], "--temperature is -1.0"),
        (["--checkpoint", "CHECKPOINT", "--device", "tpu"], [], "--device tpu: there is no such device"),
        (["--chekpoint", "CHECKPOINT"], [], "did you mean '--checkpoint'?"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(
    say: Say, checkpoint: str, arguments: list[str], lines: list[str], expected: str
) -> None:
    code, _, err = say([checkpoint if word == "CHECKPOINT" else word for word in arguments], *lines)
    assert code == 2
    assert expected in err and err.count("\n") == 1


def test_an_answer_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show("red \x1b[31m\x07 line\n\ttab")
    assert capsys.readouterr().out == "red [31m line\n\ttab"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_at_a_terminal_a_line_that_fails_is_told_of_and_the_next_one_answered(
    say: Say, checkpoint: str, monkeypatch: pytest.MonkeyPatch, model: VisionLanguageModel,
    processor: VisionLanguageProcessor, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.stdin", Terminal("/image /nowhere.png\nwhat?\n"))
    assert cli.main(["chat", "--max-new-tokens", "3", "--device", "cpu", "--checkpoint", checkpoint]) == 0
    captured = capsys.readouterr()
    assert "/nowhere.png" in captured.err.splitlines()[-1]
    assert captured.out.replace("> ", "") == asked(model, processor, [["what?"]]) + "\n"


def test_questions_that_are_no_utf_8_are_one_line(
    say: Say, checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    assert cli.main(["chat", "--device", "cpu", "--checkpoint", checkpoint]) == 2
    assert "the questions are no UTF-8" in capsys.readouterr().err


def test_a_system_message_needs_a_model_tuned_on_conversations(say: Say, checkpoint: str) -> None:
    code, _, err = say(["--checkpoint", checkpoint, "--system", "Be brief."])
    assert code == 2 and "not tuned on conversations" in err
