"""A model behind an endpoint in our evaluation, over real HTTP on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flamingo_lite import cli
from flamingo_lite.evaluation.results import load_results, load_samples
from tests.teacher.teacher_server import TeacherServer, teacher_server

KEY = "sk-a-secret-that-nobody-may-see"
QUICK = [
    "eval.tasks=[existence]", "eval.splits=[test]", "eval.shots=[0,2]", "eval.seeds=[0]", "eval.queries=3",
    "eval.conditions=[standard]", "eval.resamples=10",
]  # fmt: skip


@pytest.fixture(autouse=True)
def key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


class Seen(list[list[dict[str, Any]]]):
    """The messages of all requests."""


@contextmanager
def answering(text: str = "yes", **options: Any) -> Iterator[tuple[TeacherServer, Seen]]:
    seen = Seen()

    def reply(messages: list[dict[str, Any]]) -> str:
        seen.append(messages)
        return text

    with teacher_server(reply=reply, **options) as server:
        yield server, seen


def evaluate(server: TeacherServer, output: Path, *words: str, **more: Any) -> int:
    said = {"endpoint": "some-model", "base_url": server.url, "pause": 0.01, **more}
    quoted = {key: f"'{value}'" if isinstance(value, str) else value for key, value in said.items()}
    named = ", ".join(f"{key}: {value}" for key, value in quoted.items())
    models = f"models={{peer: {{{named}}}}}"
    return cli.main(["eval", models, f"output={output}", *QUICK, "eval.styles=[direct]", *words])


def texts_and_images(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(role, text or sha256 of the picture) in order."""
    found = []
    for message in messages:
        for part in message["content"]:
            if part["type"] == "text":
                found.append((message["role"], part["text"]))
            else:
                head, _, data = part["image_url"]["url"].partition(",")
                assert head == "data:image/jpeg;base64"
                found.append((message["role"], hashlib.sha256(base64.b64decode(data)).hexdigest()))
    return found


def test_demonstrations_are_turns_pictures_travel_inside_and_answers_are_scored(tmp_path: Path) -> None:
    with answering() as (server, seen):
        assert evaluate(server, tmp_path) == 0
    samples = load_samples(tmp_path)
    assert len(samples) == len(seen) == 6
    assert all(s["raw"] == "yes" and s["rendering"] == "turns" for s in samples)
    assert {s["score"] for s in samples} == {float(s["target"] == "yes") for s in samples}
    shown = [texts_and_images(messages) for messages in seen]
    by_images = {tuple(text for _, text in parts if len(text) == 64): parts for parts in shown}
    for sample in samples:
        parts = by_images[tuple(sample["image_ids"])]
        assert [role for role, _ in parts].count("assistant") == sample["shots"]
        assert parts[-1][0] == "user"


def test_the_key_goes_to_the_endpoint_and_into_no_file(tmp_path: Path) -> None:
    with answering() as (server, _):
        assert evaluate(server, tmp_path) == 0
        assert server.keys_seen == {f"Bearer {KEY}"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not [path for path in files if KEY.encode() in path.read_bytes()]
    model = load_results(tmp_path)["models"]["peer"]
    assert (model["endpoint"], model["asked_for"]) == (server.url, "some-model")


def test_a_run_that_is_given_again_or_starts_over_pays_for_nothing_twice(tmp_path: Path) -> None:
    with answering(fault=lambda prompt, number: "503" if number == 0 else "") as (server, seen):
        assert evaluate(server, tmp_path) == 0
        first, paid = (tmp_path / "samples.jsonl").read_bytes(), server.charged
        (tmp_path / "samples.jsonl").unlink()
        (tmp_path / "results.json").unlink()
        assert evaluate(server, tmp_path, "resume=never") == 0
        assert server.charged == paid
    assert (tmp_path / "samples.jsonl").read_bytes() == first


def test_a_budget_ends_a_run_in_one_line_and_a_larger_one_goes_on(tmp_path: Path, capsys: Any) -> None:
    with answering(tokens=900) as (server, _):
        assert evaluate(server, tmp_path, budget=4000, image_tokens=900, concurrency=1) == 2
        assert "the budget of 4,000 tokens leaves no room" in capsys.readouterr().err
        assert 0 < sum(server.answered.values()) < 6 and server.charged <= 4000
        assert evaluate(server, tmp_path, budget=100_000) == 0
        assert set(server.answered.values()) == {1} and len(server.answered) == 6


def test_a_request_that_the_endpoint_refuses_is_a_failure_in_its_place(tmp_path: Path) -> None:
    def fault(prompt: str, number: int) -> str:
        return "400" if json.dumps(prompt).count("data:image") == 1 else ""

    with answering(fault=fault) as (server, _):
        assert evaluate(server, tmp_path) == 0
    failed = {s["shots"]: s["error"] for s in load_samples(tmp_path) if s["status"] == "failed"}
    assert set(failed) == {0} and "says 400" in failed[0] and KEY not in failed[0]


@pytest.mark.parametrize(
    ("more", "words", "line"),
    [
        ({"rendering": "interleaved"}, [], "takes turns; say rendering: turns, or one_turn"),
        ({}, ["eval.styles=[ranked]"], "ranks candidates, which this model cannot"),
        ({}, ["trainer.devices=2"], "one process asks"),
    ],
)
def test_what_an_endpoint_cannot_do_is_one_line(
    more: dict[str, Any], words: list[str], line: str, tmp_path: Path, capsys: Any
) -> None:
    with answering() as (server, seen):
        assert evaluate(server, tmp_path, *words, **more) == 2
        assert not seen
    assert line in capsys.readouterr().err
