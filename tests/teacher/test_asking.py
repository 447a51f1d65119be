"""Asking over real HTTP on loopback: nothing is paid twice, nothing is lost, the budget is kept."""

import contextlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.errors import FlamingoError
from flamingo_lite.teacher import Answer, Asker, Failure, Message, Request, Rule, Sampling
from flamingo_lite.teacher.asking import MAX_FAILURES_IN_A_ROW
from flamingo_lite.teacher.cache import AnswerCache, described, key_of
from flamingo_lite.teacher.endpoint import Endpoint
from flamingo_lite.teacher.messages import most_tokens
from tests.teacher.teacher_server import TeacherServer, teacher_server

KEY = "sk-a-secret-that-nobody-may-see"
SAMPLING = Sampling(max_tokens=16)


@pytest.fixture(autouse=True)
def key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def prompts(number: int) -> list[Request[int]]:
    return [Request(i, [Message("user", f"prompt {i}")], SAMPLING) for i in range(number)]


def asker(server: TeacherServer, cache: Path, budget: int | None = None, concurrency: int = 4) -> Asker:
    teacher = Endpoint("model", server.url, timeout=3)
    return Asker(teacher, AnswerCache(cache), budget, concurrency, tries=5, pause=0.01)


def texts(outcomes: list[tuple[int, Answer | Failure]]) -> dict[int, str]:
    return {about: outcome.text for about, outcome in outcomes if isinstance(outcome, Answer)}


FREE = ["429", "429 after", "500", "503"]
COSTLY = ["slow", "garbage", "truncated", "broken", "empty", "null", "list", "nested"]


@pytest.mark.parametrize("fault", [*FREE, *COSTLY])
def test_a_try_that_fails_is_made_again(fault: str, tmp_path: Path) -> None:
    with teacher_server(lambda prompt, number: fault if number == 0 else "") as server:
        asking = asker(server, tmp_path)
        assert texts(list(asking.ask(prompts(1)))) == {0: "answer to prompt 0"}
    assert asking.tally.retries == 1 and not asking.tally.failures
    assert server.tries["prompt 0"] == 2 and server.answered["prompt 0"] == 1


def test_among_many_faults_nothing_is_lost_or_answered_twice_and_the_order_stays(tmp_path: Path) -> None:
    draw = random.Random(0)
    plan = {
        f"prompt {i}": [draw.choice([*FREE, *COSTLY[1:]]) for _ in range(draw.choice((0, 0, 1, 2)))]
        for i in range(40)
    }
    plan["prompt 7"] = ["slow"]

    def fault(prompt: str, number: int) -> str:
        return plan[prompt][number] if number < len(plan[prompt]) else ""

    with teacher_server(fault) as server:
        outcomes = list(asker(server, tmp_path, concurrency=8).ask(prompts(40)))
        again = list(asker(server, tmp_path).ask(prompts(40)))
    assert [about for about, _ in outcomes] == list(range(40))
    assert texts(outcomes) == {i: f"answer to prompt {i}" for i in range(40)} == texts(again)
    assert all(server.answered[prompt] == 1 for prompt in plan)
    assert sum(server.tries.values()) == 40 + sum(map(len, plan.values()))
    assert not [*tmp_path.rglob("*.tries")]


def test_no_more_requests_are_under_way_than_were_allowed(tmp_path: Path) -> None:
    with teacher_server() as server:
        list(asker(server, tmp_path, concurrency=3).ask(prompts(20)))
    assert 1 <= server.most_under_way <= 3


def test_the_server_is_left_alone_as_long_as_it_asks(tmp_path: Path) -> None:
    with teacher_server(lambda prompt, number: "429 after" if number == 0 else "") as server:
        list(asker(server, tmp_path).ask(prompts(1)))
    (_, first), (_, second) = server.arrivals
    assert second - first >= 0.3


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("fault", ["", "garbage", "500"])
def test_the_budget_is_kept_whatever_fails(fault: str, concurrency: int, tmp_path: Path) -> None:
    most = most_tokens([Message("user", "prompt 10")], SAMPLING)
    with teacher_server(lambda prompt, number: fault if number == 0 else "", tokens=40) as server:
        asking = asker(server, tmp_path, budget=6 * most, concurrency=concurrency)
        outcomes = list(asking.ask(prompts(20)))
    assert server.charged <= asking.budget.spent <= 6 * most
    # Garbage costs as much as may be: it may use the budget up before anything is answered, which is no error.
    assert asking.is_spent and (0 if fault == "garbage" else 1) <= len(texts(outcomes)) < 20


def test_what_a_budget_buys_depends_neither_on_threads_nor_on_a_restart(tmp_path: Path) -> None:
    with teacher_server(tokens=20) as server:
        alone = texts(list(asker(server, tmp_path / "a", budget=400, concurrency=1).ask(prompts(30))))
        together = texts(list(asker(server, tmp_path / "b", budget=400, concurrency=8).ask(prompts(30))))
        before = server.charged
        again = asker(server, tmp_path / "b", budget=400)
        assert texts(list(again.ask(prompts(30)))) == alone == together
        assert server.charged == before and again.tally.from_cache == len(alone)
        more = texts(list(asker(server, tmp_path / "b", budget=10_000).ask(prompts(30))))
    assert len(more) == 30 and server.charged == (30 + len(alone)) * 25


def test_what_failed_tries_may_have_cost_counts_in_the_next_run(tmp_path: Path) -> None:
    most = most_tokens([Message("user", "prompt 0")], SAMPLING)
    with teacher_server(lambda prompt, number: "garbage", tokens=most - 5) as server:
        for _ in range(3):
            with contextlib.suppress(FlamingoError):  # nothing is answered
                list(asker(server, tmp_path, budget=7 * most, concurrency=1).ask(prompts(3)))
        assert 5 * most < server.charged <= 7 * most
    with teacher_server(tokens=10) as server:
        asking = asker(server, tmp_path, budget=20 * most, concurrency=1)
        assert len(texts(list(asking.ask(prompts(3))))) == 3
        assert asking.budget.spent == 7 * most + server.charged


def test_what_was_under_way_when_a_run_was_killed_counts(tmp_path: Path) -> None:
    [request] = prompts(1)
    most = most_tokens(request.messages, request.sampling)
    key = key_of(described("model", request.messages, request.sampling))
    AnswerCache(tmp_path).begin(key, most)
    with teacher_server() as server:
        asking = asker(server, tmp_path, budget=2 * most - 1)
        assert not list(asking.ask([request])) and asking.is_spent and not server.charged
        assert texts(list(asker(server, tmp_path, budget=2 * most).ask([request])))
        again = asker(server, tmp_path, budget=2 * most)
        assert texts(list(again.ask([request]))) and again.budget.spent == most + server.charged


def test_equal_requests_are_asked_once(tmp_path: Path) -> None:
    with teacher_server() as server:
        asking = asker(server, tmp_path, concurrency=2)
        outcomes = list(asking.ask([*prompts(5), *prompts(5)]))
    assert len(outcomes) == 10 and set(server.tries.values()) == {1}
    assert asking.budget.spent == server.charged == 5 * 12


def test_other_options_are_another_request(tmp_path: Path) -> None:
    message = [Message("user", "x")]
    with teacher_server() as server:
        asking = asker(server, tmp_path)
        list(asking.ask([Request(0, message, Sampling(9)), Request(1, message, Sampling(9, 0.5))]))
    assert server.tries["x"] == 2


def test_one_request_that_never_succeeds_is_counted_and_asked_again_next_time(tmp_path: Path) -> None:
    is_broken = True
    with teacher_server(
        lambda prompt, _: "truncated" if is_broken and prompt == "prompt 1" else ""
    ) as server:
        asking = asker(server, tmp_path)
        outcomes = dict(asking.ask(prompts(4)))
        failure = outcomes[1]
        assert isinstance(failure, Failure) and failure.reason == "garbled"
        assert asking.tally.failures == {"garbled": 1} and len(texts(list(outcomes.items()))) == 3
        is_broken = False
        assert len(texts(list(asker(server, tmp_path).ask(prompts(4))))) == 4
    assert server.tries["prompt 1"] == 6 and server.tries["prompt 0"] == 1


def test_a_request_that_the_server_refuses_is_not_repeated(tmp_path: Path) -> None:
    with teacher_server(lambda prompt, _: "400" if prompt == "prompt 1" else "") as server:
        outcomes = dict(asker(server, tmp_path).ask(prompts(3)))
    assert isinstance(failure := outcomes[1], Failure) and failure.reason == "refused"
    assert server.tries["prompt 1"] == 1


@pytest.mark.parametrize("fault", ["500", "slow", "garbage", "400"])
def test_a_teacher_that_never_answers_ends_in_one_line(fault: str, tmp_path: Path) -> None:
    with teacher_server(lambda prompt, number: fault) as server:
        asking = Asker(Endpoint("model", server.url, timeout=0.2), AnswerCache(tmp_path), tries=2, pause=0.01)
        with pytest.raises(FlamingoError, match="without an answer .* run the same command again") as error:
            list(asking.ask(prompts(20)))
    assert "\n" not in str(error.value) and KEY not in str(error.value)
    assert asking.tally.failures.total() == MAX_FAILURES_IN_A_ROW


def test_a_server_that_is_not_there_ends_in_one_line(tmp_path: Path) -> None:
    with teacher_server() as server:
        url = server.url
    asking = Asker(Endpoint("model", url), AnswerCache(tmp_path), tries=2, pause=0.01)
    with pytest.raises(FlamingoError, match="cannot be reached"):
        list(asking.ask(prompts(9)))


@pytest.mark.parametrize("status", ["401", "403", "404"])
def test_a_wrong_key_or_model_stops_at_once_and_the_key_is_shown_nowhere(status: str, tmp_path: Path) -> None:
    with (
        teacher_server(lambda prompt, number: status) as server,
        pytest.raises(FlamingoError, match=f"says {status} of model 'model'.*[*][*][*]") as error,
    ):
        list(asker(server, tmp_path, concurrency=1).ask(prompts(1)))
    assert KEY not in str(error.value) and sum(server.tries.values()) == 1
    assert server.keys_seen == {f"Bearer {KEY}"}


def test_the_key_is_not_on_the_disk(tmp_path: Path) -> None:
    with teacher_server() as server:
        list(asker(server, tmp_path).ask(prompts(3)))
    kept = [path.read_text() for path in tmp_path.rglob("*.json")]
    assert len(kept) == 3 and not any(KEY in text for text in kept)


def test_two_runs_do_not_ask_into_one_cache_at_once(tmp_path: Path) -> None:
    teacher = Rule("rule", lambda messages: "yes")
    first = Asker(teacher, AnswerCache(tmp_path)).ask(prompts(2))
    next(first)
    with pytest.raises(FlamingoError, match="another run keeps its answers there"):
        next(Asker(teacher, AnswerCache(tmp_path)).ask(prompts(2)))
    first.close()
    assert len(list(Asker(teacher, AnswerCache(tmp_path)).ask(prompts(2)))) == 2


def test_a_damaged_answer_in_the_cache_is_named(tmp_path: Path) -> None:
    teacher = Rule("rule", lambda messages: "yes")
    list(Asker(teacher, AnswerCache(tmp_path)).ask(prompts(1)))
    (kept,) = tmp_path.rglob("*.json")
    kept.write_text(json.dumps({"answer": {"text": "yes", "price": 1}}))
    with pytest.raises(FlamingoError, match=f"{kept.name}: not an answer that was kept here"):
        list(Asker(teacher, AnswerCache(tmp_path)).ask(prompts(1)))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 400), st.lists(st.integers(0, 30), max_size=12), st.integers(1, 4))
def test_no_budget_is_exceeded_and_none_is_left_that_would_have_done(
    budget: int, costs: list[int], concurrency: int
) -> None:
    class Priced:
        name = "priced"

        def answer(self, messages: list[Message], sampling: Sampling) -> Answer:
            return Answer("", 0, costs[int(messages[0].text)])

    requests = [Request(i, [Message("user", f"{i:02d}")], Sampling(30)) for i in range(len(costs))]
    asking = Asker(Priced(), budget=budget, concurrency=concurrency)
    answered = [about for about, _ in asking.ask(requests)]
    most, spent, expected = most_tokens(requests[0].messages, Sampling(30)) if requests else 0, 0, []
    for i, cost in enumerate(costs):
        if spent + most > budget:
            break
        spent, expected = spent + cost, [*expected, i]
    assert answered == expected and asking.budget.spent == spent <= budget
