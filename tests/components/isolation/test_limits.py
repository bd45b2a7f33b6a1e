"""How much memory a process that opens a stranger's file may take."""

from __future__ import annotations

import os

import pytest

from edgeline.errors import UserError
from edgeline.isolation import limits


@pytest.fixture(autouse=True)
def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(limits.MEMORY_LIMIT, raising=False)


def test_the_memory_limit_is_half_of_the_machines() -> None:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert limits.memory_bytes() == max(whole // 2, 4 * 2**30)


def test_a_memory_limit_holds_until_its_end() -> None:
    before = limits.memory_bytes()
    with limits.memory(6.5):
        assert limits.memory_bytes() == int(6.5 * 2**30)
        with limits.memory(None):
            assert limits.memory_bytes() == int(6.5 * 2**30)
        with limits.memory(8):
            assert limits.memory_bytes() == 8 * 2**30
        assert limits.memory_bytes() == int(6.5 * 2**30)
    assert limits.memory_bytes() == before
    assert limits.MEMORY_LIMIT not in os.environ


@pytest.mark.parametrize("given", ["much", "1", "nan", "-4", "1e30", ""])
def test_a_memory_limit_in_the_environment_that_is_none(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(limits.MEMORY_LIMIT, given)
    with pytest.raises(
        UserError, match=f"{limits.MEMORY_LIMIT} must be a number of GiB, at least 4, received '{given}'"
    ):
        limits.memory_bytes()


@pytest.mark.parametrize("given", [1, 3.9, float("nan"), -4, 1e30, float("inf")])
def test_a_memory_limit_that_is_none(given: float) -> None:
    with pytest.raises(UserError, match="memory limit must be at least 4 GiB"), limits.memory(given):
        pass
    assert limits.MEMORY_LIMIT not in os.environ
