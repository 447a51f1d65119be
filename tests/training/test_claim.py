"""A folder belongs to one run at a time, however the runs before it ended."""

import fcntl
import os
from pathlib import Path

import pytest

from flamingo_lite.errors import FlamingoError
from flamingo_lite.training import claim


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "PATIENCE", 0.0)


def test_a_second_run_is_told_and_leaves_the_first_ones_lock(tmp_path: Path) -> None:
    with claim.claimed(tmp_path):
        for _ in range(2):
            with pytest.raises(FlamingoError, match="in use by another run"), claim.claimed(tmp_path):
                pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_on_a_file_that_its_owner_removes_meanwhile_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run opens the file, the owner removes it and ends, a third comes: two of them must not both go on."""
    flock = fcntl.flock

    def owner_ends_first(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        os.unlink(tmp_path / claim.FILE)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", owner_ends_first)
    with claim.claimed(tmp_path), pytest.raises(FlamingoError, match="in use"), claim.claimed(tmp_path):
        pass


def test_a_run_that_fails_leaves_the_folder_free(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it failed"), claim.claimed(tmp_path):
        raise ValueError("it failed")
    assert list(tmp_path.iterdir()) == []
    with claim.claimed(tmp_path):
        assert (tmp_path / claim.FILE).exists()
