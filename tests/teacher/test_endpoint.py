"""The endpoint teacher: what it needs before anything is asked, and how it reads a server's wish for rest."""

import email.utils
import functools
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.errors import FlamingoError
from flamingo_lite.teacher import Message, Sampling, TeacherOptions, TryAgain, make_teacher
from flamingo_lite.teacher.endpoint import Endpoint, _read, retry_after
from tests.teacher.teacher_server import teacher_server


def test_without_a_key_the_cloud_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(
        FlamingoError, match="the environment has no MY_KEY; expected the endpoint's key there"
    ):
        Endpoint("model", key_variable="MY_KEY")


def test_a_server_of_ones_own_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with teacher_server() as server:
        answer = Endpoint("model", server.url, "MY_KEY").answer([Message("user", "hello")], Sampling(9))
    assert (answer.text, answer.prompt_tokens, answer.answer_tokens) == ("answer to hello", 7, 5)


def test_a_key_that_no_header_can_hold_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "schlüssel")
    with pytest.raises(FlamingoError, match="MY_KEY in the environment is no key") as error:
        Endpoint("model", "http://127.0.0.1:9/v1", "MY_KEY")
    assert "schlüssel" not in str(error.value)


def test_a_try_that_the_server_has_charged_for_says_so() -> None:
    with teacher_server(lambda prompt, number: "garbage" if number else "503") as server:
        teacher = Endpoint("model", server.url)
        may_have_cost = []
        for _ in range(2):
            with pytest.raises(TryAgain) as error:
                teacher.answer([Message("user", "hello")], Sampling(9))
            may_have_cost.append(error.value.may_have_cost)
    assert may_have_cost == [False, True]


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": None, "completion_tokens": 3}, {"prompt_tokens": -1}, 7]
)
def test_an_answer_whose_cost_is_not_said_counts_as_the_most_it_can_have_cost(usage: object) -> None:
    body = json.dumps(
        {"choices": [{"message": {"content": "yes"}, "finish_reason": "length"}], "usage": usage}
    )
    answer = _read(body.encode(), functools.partial(int, 99))
    assert answer.tokens == 99 and answer.text == "yes" and answer.is_cut


@settings(deadline=None)
@given(st.integers(2, 100_000))
def test_rest_is_asked_for_in_seconds_or_as_a_date(seconds: int) -> None:
    assert retry_after({"retry-after": str(seconds)}) == seconds
    date = email.utils.formatdate(time.time() + seconds, usegmt=True)
    assert (read := retry_after({"retry-after": date})) is not None and abs(read - seconds) < 2


@pytest.mark.parametrize(
    ("value", "seconds"), [("-3", 0), ("soon", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)]
)
def test_no_rest_is_read_from_the_past_or_from_nonsense(value: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": value}) == seconds
    assert retry_after({}) is None


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("endpont", {}, "did you mean 'endpoint'"),
        ("endpoint", {}, "the endpoint teacher needs model=NAME"),
        ("local", {}, "the local teacher needs model=NAME"),
        ("local", {"model": "/nowhere"}, "/nowhere: cannot be loaded as a causal language model"),
        ("endpoint", {"base_url": "localhost:8000"}, "expected an address that begins with http://"),
        ("endpoint", {"budget": 0}, "budget is 0; expected 1 token or more"),
        ("endpoint", {"tries": 0}, "tries is 0; expected 1 or more"),
        ("endpoint", {"timeout": 0.0}, "timeout is 0.0; expected seconds above 0"),
        ("endpoint", {"temperature": -1.0}, "temperature is -1.0; expected 0 or more"),
    ],
)
def test_wrong_options_are_one_line(name: str, options: dict[str, object], expected: str) -> None:
    with pytest.raises(FlamingoError, match=expected):
        make_teacher(name, TeacherOptions(**options))  # type: ignore[arg-type]
