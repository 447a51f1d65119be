"""A budget of tokens that threads share: what a request may cost is set aside before it is sent, so the limit holds."""

import threading


class Budget:
    """`limit`: None for none. `spent`: tokens of all that was settled."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.spent = 0
        self._reserved = 0
        self._lock = threading.Lock()

    def reserve(self, tokens: int) -> bool:
        """Sets tokens aside if the limit allows it, and says whether it did."""
        with self._lock:
            if self.limit is not None and self.spent + self._reserved + tokens > self.limit:
                return False
            self._reserved += tokens
            return True

    def settle(self, reserved: int, spent: int) -> None:
        """What was set aside has come to `spent`."""
        with self._lock:
            self._reserved -= reserved
            self.spent += spent
