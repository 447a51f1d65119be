"""`flamingo-lite eval ensemble`: two evaluations of ScienceQA become one, by complement or by a judge over HTTP."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flamingo_lite import cli
from flamingo_lite.evaluation.results import load_samples, write_samples
from tests.evaluation.file_tasks import make_files
from tests.evaluation.test_ensemble import sample
from tests.teacher.teacher_server import teacher_server


def evaluation(folder: Path, raws: Sequence[str], model: str, **more: Any) -> Path:
    """A folder with the answers to problems 5 and 6 of the fixture, whose right answers are B and A."""
    from flamingo_lite.evaluation.tasks import items_of

    items = items_of("science_qa", {"science_qa": {"folder": str(folder.parent / "ScienceQA")}})
    shared = {
        "seed": 0, "shots": 0, "condition": "standard", "style": "QCM-A", "demonstration_ids": [], "image_ids": [],
        "prompt_sha": "0", **more,
    }  # fmt: skip
    numbers = sorted(range(2), key=lambda i: items.query("test", i).id)
    write_samples(
        [
            sample(i, raw, items.query("test", i).answer, model, **shared)
            for i, raw in zip(numbers, raws, strict=True)
        ],
        folder,
    )
    return folder


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    make_files("science_qa", tmp_path / "ScienceQA")
    first = evaluation(tmp_path / "first", ["A", "A"], "ours")
    second = evaluation(tmp_path / "second", ["B", "who knows?"], "text")
    named = [
        f"--first={first}",
        f"--second={second}",
        f"--folder={tmp_path / 'ScienceQA'}",
        f"--to={tmp_path / 'to'}",
    ]
    return ["eval", "ensemble", *named]


def joined(folder: Path) -> tuple[list[tuple[str, str, float]], dict[str, Any]]:
    samples = sorted(
        load_samples(folder), key=lambda s: s["example_id"] if "example_id" in s else s["target"]
    )
    found = json.loads((folder / "ensemble.json").read_text())
    return [(s["decided_by"], s["extracted"], s["score"]) for s in samples], found


def test_the_second_model_answers_and_the_first_where_it_cannot_be_read(
    words: list[str], tmp_path: Path
) -> None:
    assert cli.main([*words, "--by", "complement"]) == 0
    answers, found = joined(tmp_path / "to")
    assert answers == [("ours", "A", 1.0), ("second", "B", 1.0)]
    assert found["decided_by"] == {"second": 1, "ours": 1} and found["n"] == 2
    averages = {name: figures["Avg"] for name, figures in found["figures"].items()}
    assert averages == {"first": 0.5, "second": 0.5, "together": 1.0}
    assert found["figures"]["together"]["IMG"] == 1.0 and found["figures"]["first"]["IMG"] == 0.0


def test_a_judge_settles_what_differs_and_is_not_paid_twice(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-nobody")
    with teacher_server(reply=lambda messages: "The answer is B.") as server:
        judge = [*words, "--by", "judge", "--teacher", "endpoint", "model=m", f"base_url={server.url}"]
        assert cli.main(judge) == 0
        paid = server.charged
        assert cli.main(judge) == 0
        assert server.charged == paid > 0
    answers, _ = joined(tmp_path / "to")
    assert answers == [("judge", "B", 0.0), ("judge", "B", 1.0)]


def test_an_answer_that_was_not_made_is_left_out_and_counted(
    words: list[str], tmp_path: Path, capsys: Any
) -> None:
    for name in ("first", "second"):
        samples = load_samples(tmp_path / name)
        samples[0] |= {"raw": None, "extracted": None, "score": None, "status": "failed"}
        write_samples(samples, tmp_path / name)
    assert cli.main([*words, "--by", "complement"]) == 0
    found = json.loads((tmp_path / "to" / "ensemble.json").read_text())
    assert found["n"] == 2 and found["n_failed"] == {"first": 1, "second": 1, "together": 1}
    assert {figures["Avg"] for figures in found["figures"].values()} <= {0.0, 1.0}
    assert "failed and left out: first 1" in " ".join(capsys.readouterr().out.split())


def test_verdicts_that_cannot_be_read_are_counted(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-nobody")
    with teacher_server(reply=lambda messages: "Hard to say.") as server:
        judge = [*words, "--by", "judge", "--teacher", "endpoint", "model=m", f"base_url={server.url}"]
        assert cli.main(judge) == 0
    found = json.loads((tmp_path / "to" / "ensemble.json").read_text())
    assert found["judge"] == {"asked": 2, "unreadable": 2, "failed": 0}
    assert "of 2 verdicts 2 unreadable, 0 not given" in " ".join(capsys.readouterr().out.split())


def test_of_several_cells_one_is_chosen(words: list[str], tmp_path: Path, capsys: Any) -> None:
    both = [
        *load_samples(evaluation(tmp_path / "first", ["A", "A"], "ours")),
        *load_samples(evaluation(tmp_path / "other", ["B", "A"], "ours", style="QCM-LEA")),
    ]
    write_samples(both, tmp_path / "first")
    assert cli.main([*words, "--by", "complement"]) == 2
    assert "twice; expected one cell" in capsys.readouterr().err
    assert cli.main([*words, "--by", "complement", "first.style=QCM-LEA", "first.shots=0"]) == 0
    assert joined(tmp_path / "to")[1]["figures"]["first"]["Avg"] == 1.0


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--by", "complment"], "did you mean 'complement'"),
        (["--by", "judge"], "--teacher is missing"),
        (["--by", "complement", "model=m"], "only --by judge has one"),
        (["--by", "complement", "third.shots=0"], "expected first.KEY=VALUE"),
        (["--by", "complement", "first.shot=0"], "did you mean 'shots'"),
        (["--by", "complement", "first.shots=7"], "unknown shots in"),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], more: list[str], line: str, capsys: Any) -> None:
    assert cli.main([*words, *more]) == 2
    assert line in capsys.readouterr().err


def test_an_evaluation_is_not_written_over(words: list[str], tmp_path: Path, capsys: Any) -> None:
    before = (tmp_path / "first" / "samples.jsonl").read_bytes()
    assert cli.main([*words, "--by", "complement", f"--to={tmp_path / 'first'}"]) == 2
    assert "holds an evaluation of its own" in capsys.readouterr().err
    assert (tmp_path / "first" / "samples.jsonl").read_bytes() == before
    for _ in range(2):
        assert cli.main([*words, "--by", "complement"]) == 0


def test_a_run_that_was_killed_between_its_two_files_is_given_again(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, done = os.replace, []

    def killed(source: Any, target: Any) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(Path(target).name)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        assert cli.main([*words, "--by", "complement"]) == 130
    assert [path.name for path in (tmp_path / "to").iterdir() if not path.name.startswith(".")] == done
    assert cli.main([*words, "--by", "complement"]) == 0
    assert len(load_samples(tmp_path / "to")) == 2
