"""Asking a teacher many things: a few at once, answers in order, from the cache where they are known, within a budget.

What comes out is a function of the requests, the answers and the budget: threads and restarts change nothing.
"""

import random
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.teacher.budget import Budget
from flamingo_lite.teacher.cache import AnswerCache, described, key_of
from flamingo_lite.teacher.messages import Answer, Message, Sampling, Teacher, TryAgain, most_tokens

T = TypeVar("T")

LONGEST_PAUSE = 30.0
"""Seconds between two tries where the server asks for none."""
LONGEST_WAIT = 300.0
"""A server that asks to be left alone for longer has not answered."""
MAX_FAILURES_IN_A_ROW = 5
"""So many requests in a row without an answer, and the run stops: the next would fare no better."""


@dataclass(frozen=True)
class Request(Generic[T]):
    """`about`: handed back with the answer."""

    about: T
    messages: Sequence[Message]
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class Failure:
    """There is no answer. `reason`: the word under which it is counted."""

    reason: str
    message: str


@dataclass
class Tally:
    """`answers`: all, those `from_cache` included; `tokens`: theirs, each counted once, without what failed tries cost."""

    answers: int = 0
    from_cache: int = 0
    tokens: int = 0
    retries: int = 0
    failures: Counter[str] = field(default_factory=Counter)


@dataclass
class _Pending(Generic[T]):
    about: T
    key: str
    outcome: "Future[Answer | Failure]"
    is_known: bool
    """It is in the cache, or was asked for by another request."""


class Asker:
    """Asks `teacher`. `budget`: tokens that all answers together may cost, those in the cache included, and the tries of
    earlier runs that came to nothing; None: no limit. `tries`: per request; `pause`: seconds before the second.

    `is_spent` says whether something was left unasked because of the budget.
    """

    def __init__(
        self,
        teacher: Teacher,
        cache: AnswerCache | None = None,
        budget: int | None = None,
        concurrency: int = 8,
        tries: int = 6,
        pause: float = 0.5,
    ) -> None:
        self.teacher, self.cache, self.budget = teacher, cache, Budget(budget)
        self.concurrency, self.tries, self.pause = concurrency, tries, pause
        self.tally = Tally()
        self.is_spent = False
        self._counted: set[str] = set()
        self._answers: set[str] = set()
        self._has_begun = False
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._failures_in_a_row = 0

    def ask(self, requests: Iterable[Request[T]]) -> Iterator[tuple[T, Answer | Failure]]:
        """What each request is about, and what came of it, in the order of the requests; it ends early when the next
        request might exceed the budget. Equal requests are asked once where there is a cache.

        Errors: `FlamingoError` when the teacher answers nothing.
        """
        pending: deque[_Pending[T]] = deque()
        with ExitStack() as stack:
            if self.cache is not None:
                stack.enter_context(self.cache.lock())
                if not self._has_begun:
                    self.budget.settle(0, self.cache.all_lost())
                self._has_begun = True
            pool = stack.enter_context(ThreadPoolExecutor(self.concurrency))
            # Undone in reverse: what was not sent is not sent, nobody sleeps on, and then the pool is waited for.
            stack.callback(self._stopping.set)
            stack.callback(lambda: [each.outcome.cancel() for each in pending])
            self._stopping.clear()
            for request in requests:
                while (sent := self._sent(request, pending, pool)) is None:
                    if not pending:
                        self.is_spent = True
                        return
                    yield self._settled(pending)
                pending.append(sent)
            while pending:
                yield self._settled(pending)

    def _sent(
        self, request: Request[T], pending: "deque[_Pending[T]]", pool: ThreadPoolExecutor
    ) -> _Pending[T] | None:
        """None while too many are under way, or what they may cost leaves too little."""
        if len(pending) >= 2 * self.concurrency:
            return None
        key = key_of(described(self.teacher.name, request.messages, request.sampling))
        for other in pending:
            if other.key == key:
                return _Pending(request.about, key, other.outcome, True)
        if self.cache is not None and (answer := self.cache.get(key)) is not None:
            tokens = 0 if key in self._counted else answer.tokens
            if not self.budget.reserve(tokens):
                return None
            self.budget.settle(tokens, tokens)
            self._counted.add(key)
            known: Future[Answer | Failure] = Future()
            known.set_result(answer)
            return _Pending(request.about, key, known, True)
        if not self.budget.reserve(most_tokens(request.messages, request.sampling)):
            return None
        lost = 0 if self.cache is None else self.cache.lost(key)
        self._counted.add(key)
        return _Pending(request.about, key, pool.submit(self._answered, request, key, lost), False)

    def _settled(self, pending: "deque[_Pending[T]]") -> tuple[T, Answer | Failure]:
        """Waits for the first of `pending` and counts what came of it. Errors: `FlamingoError` after too many failures."""
        first = pending[0]
        outcome = first.outcome.result()
        pending.popleft()
        if isinstance(outcome, Answer):
            self.tally.answers += 1
            self.tally.from_cache += first.is_known
            if first.key not in self._answers:
                self._answers.add(first.key)
                self.tally.tokens += outcome.tokens - outcome.lost_tokens
            self._failures_in_a_row = 0
            return first.about, outcome
        self.tally.failures[outcome.reason] += 1
        # A server that answers others and not this one is a server that answers.
        is_its_own = outcome.reason == "refused" and self.tally.answers > 0
        self._failures_in_a_row = 0 if is_its_own else self._failures_in_a_row + 1
        # With the budget spent, tries that were not made say nothing of the server, and the run ends anyway.
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW and not self.is_spent:
            raise FlamingoError(
                f"{self.teacher.name}: {self._failures_in_a_row} requests in a row were left without an answer "
                f"({outcome.message}); what was answered is kept: mend the cause, then run the same command again"
            )
        return first.about, outcome

    def _answered(self, request: Request[Any], key: str, lost: int) -> Answer | Failure:
        """Tries until there is an answer, which is then in the cache. `lost`: what earlier runs may have paid for none.

        Runs on a thread of the pool.
        """
        most = most_tokens(request.messages, request.sampling)
        for number in range(1, self.tries + 1):
            if self.cache is not None:
                self.cache.begin(key, most)
            try:
                answer = replace(self.teacher.answer(request.messages, request.sampling), lost_tokens=lost)
            except TryAgain as error:
                if error.may_have_cost:
                    lost += most
                    self.budget.settle(most, most)
                    if number == self.tries or not self.budget.reserve(most):
                        self.is_spent |= number < self.tries
                        return Failure(error.reason, str(error))
                else:
                    self._was_free(key)
                if not self._may_try_again(number, error.after):
                    self.budget.settle(most, 0)
                    return Failure(error.reason, str(error))
            except BaseException as error:
                self.budget.settle(most, 0)
                self._was_free(key)
                if isinstance(error, SampleError):
                    return Failure(error.reason, str(error))
                raise
            else:
                if self.cache is not None:
                    about = described(self.teacher.name, request.messages, request.sampling)
                    self.cache.put(key, about, answer)
                    self.cache.forget(key)
                self.budget.settle(most, answer.tokens - lost)
                return answer
        raise AssertionError("the last try returns")

    def _was_free(self, key: str) -> None:
        if self.cache is not None:
            self.cache.undo(key)

    def _may_try_again(self, number: int, after: float | None) -> bool:
        """Waits as the server asks, else twice as long each time, spread so that threads do not come back together."""
        wait = min(self.pause * 2 ** (number - 1), LONGEST_PAUSE) * random.uniform(0.75, 1.25)
        wait = wait if after is None else after
        if number == self.tries or wait > LONGEST_WAIT or self._stopping.wait(wait):
            return False
        with self._lock:
            self.tally.retries += 1
        return True
