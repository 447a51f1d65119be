"""flamingo-lite data instruct: over HTTP, killed and continued, within a budget, and what it says of wrong words."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flamingo_lite import cli
from flamingo_lite.data.instruct.scene_teacher import scene_teacher
from flamingo_lite.data.manifest import load_manifest
from flamingo_lite.data.shards import read_samples, read_shards
from flamingo_lite.teacher import Message, Sampling
from tests.teacher.teacher_server import TeacherServer, teacher_server


def reply(messages: list[dict[str, str]]) -> str:
    """What the rule says, over HTTP."""
    asked = [Message(message["role"], message["content"]) for message in messages]
    return scene_teacher().answer(asked, Sampling()).text


def words(server: TeacherServer, to: Path, *more: str) -> list[str]:
    common = ["--kind", "all", "--teacher", "endpoint", "--from", "scenes", "--to", str(to)]
    options = ["number=5", "model=m", f"base_url={server.url}", "concurrency=3", "pause=0.01", "tries=3"]
    return ["data", "instruct", *common, *options, *more]


def shows(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert cli.main(words) == 0
    return " ".join(capsys.readouterr().out.split())


def says(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said
    return said


def test_an_endpoint_that_says_what_the_rule_says_makes_the_same_conversations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = ["data", "instruct", "--kind", "all", "--teacher", "rule", "--from", "scenes", "--to"]
    assert "15 documents" in shows([*rule, str(tmp_path / "rule"), "number=5"], capsys)
    faults = {0: "429", 1: "garbage"}
    with teacher_server(lambda prompt, number: faults.get(number, ""), reply) as server:
        shown = shows(words(server, tmp_path / "endpoint"), capsys)
        assert "15 answers (0 kept from before, 30 tries repeated)" in shown
        assert "15 documents are in" in shows(words(server, tmp_path / "endpoint"), capsys)
    assert set(server.answered.values()) == {1}
    made = [[list(document) for document in read_shards(tmp_path / name)] for name in ("rule", "endpoint")]
    assert made[0] == made[1]


def test_a_run_that_is_killed_goes_on_pays_for_nothing_twice_and_leaves_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: set[str] = set()
    is_first_run = True

    def fault(prompt: str, number: int) -> str:
        asked.add(prompt)
        return "hold" if is_first_run and len(asked) > 6 else ""

    with teacher_server(fault, reply) as server:
        command = [sys.executable, "-m", "flamingo_lite", *words(server, tmp_path / "killed")]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as run:
            for _ in range(3):  # when all three threads hang, all six answers lie on the disk
                assert server.held.acquire(timeout=120)
            run.send_signal(signal.SIGKILL)
        assert sum(server.answered.values()) == 6 and not (tmp_path / "killed/shards.json").exists()
        is_first_run = False
        server.release.set()
        assert "(6 kept from before" in shows(words(server, tmp_path / "killed"), capsys)
        assert len(server.answered) == 15 and set(server.answered.values()) == {1}
        shows(words(server, tmp_path / "whole"), capsys)
    for name in ("shard-000000.tar", "shards.json", "rejects.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_spent_budget_leaves_shards_and_a_larger_one_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with teacher_server(reply=reply, tokens=2000) as server:
        shown = shows(words(server, tmp_path / "to", "budget=22000"), capsys)
        assert "leaves no room for more; raise it to go on" in shown
        some = [key for key, _ in read_samples(tmp_path / "to")]
        assert 0 < len(some) < 15 and server.charged == 2005 * len(some) <= 22000
        assert load_manifest(tmp_path / "to").info["complete"] is False
        assert "15 documents" in shows(words(server, tmp_path / "to", "budget=90000"), capsys)
    assert [key for key, _ in read_samples(tmp_path / "to")][: len(some)] == some
    assert set(server.answered.values()) == {1}


def test_answers_that_cannot_be_used_are_kept_with_their_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rambling(messages: list[dict[str, str]]) -> str:
        said = reply(messages)
        return f"Sure! {said}" if "Question:" in said and "circle" in messages[-1]["content"] else said

    with teacher_server(
        lambda prompt, _: "400" if "cross" in prompt.split(" | ")[-1] else "", rambling
    ) as server:
        shown = shows(words(server, tmp_path / "to", "number=8"), capsys)
    rejects = [json.loads(line) for line in (tmp_path / "to/rejects.jsonl").read_text().splitlines()]
    by_reason = {reason: [r for r in rejects if r["reason"] == reason] for reason in ("format", "refused")}
    assert sum(map(len, by_reason.values())) == len(rejects) and all(by_reason.values())
    assert all(reject["answer"].startswith("Sure! Question:") for reject in by_reason["format"])
    assert all(reject["answer"] is None for reject in by_reason["refused"])
    assert "format" in shown and "refused" in shown and "rejects.jsonl" in shown
    assert len(list(read_shards(tmp_path / "to"))) == 24 - len(rejects)


def test_answers_none_of_which_can_be_used_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with teacher_server(reply=lambda messages: "I cannot help with that bounding box.") as server:
        said = says(words(server, tmp_path / "to"), capsys)
    assert "no answer could be used (10 format, 5 source)" in said
    assert len((tmp_path / "to/rejects.jsonl").read_text().splitlines()) == 15
    assert not list((tmp_path / "to").glob("*.tar"))


def test_a_teacher_that_does_not_answer_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with teacher_server(lambda prompt, number: "500", reply) as server:
        said = says(words(server, tmp_path / "to"), capsys)
    assert "without an answer" in said and "run the same command again" in said


def test_other_data_in_the_directory_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = ["data", "instruct", "--kind", "detail", "--teacher", "rule", "--from", "scenes", "--to"]
    shows([*rule, str(tmp_path), "number=2"], capsys)
    assert "holds other instruction data" in says([*rule, str(tmp_path), "number=3"], capsys)
    assert "3 documents" in shows([*rule, str(tmp_path), "number=3", "--overwrite"], capsys)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "--kind is missing; expected one of conversation, detail, reasoning, self_instruct, all"),
        (["--kind", "detial"], "did you mean 'detail'?"),
        (["--kind", "all"], "--teacher is missing; expected one of endpoint, local, rule"),
        (["--kind", "all", "--teacher", "rules"], "did you mean 'rule'?"),
        (["--kind", "all", "--teacher", "rule"], "--from is missing"),
        (["--kind", "all", "--teacher", "rule", "--from", "scenes"], "--to is missing"),
        (["--kind", "all", "--teacher", "rule", "--from", "scenes", "--to", "x"], "expected number=N"),
        (["--kind", "self_instruct", "--teacher", "rule"], "the rule teacher knows synthetic scenes only"),
        (
            ["--kind", "self_instruct", "--teacher", "endpoint", "--to", "x", "model=m", "base_url=http://127.0.0.1:9"],
            "--kind self_instruct has no end; expected number=N",
        ),
        (["--kind", "all", "--teacher", "rule", "--from", "scenes", "bugdet=3", "--to", "x"], "did you mean 'budget'?"),
        (["--kind", "all", "--teacher", "rule", "--from", "a.jsonl", "--to", "x"], "a.jsonl: no such file"),
        (["--kind", "all", "stray"], "'stray' is no option; expected KEY=VALUE"),
        (["--kind", "all", "--teacher", "rule", "--form", "scenes"], "did you mean '--from'?"),
    ],
)  # fmt: skip
def test_words_that_are_wrong_are_one_line(
    given: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert expected in says(["data", "instruct", *given], capsys)
    assert not list(tmp_path.glob("x/*.tar"))


def test_options_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    shown = shows(["data", "instruct", "--options"], capsys)
    assert all(option in shown for option in ("base_url", "budget", "concurrency", "number", "key_variable"))
