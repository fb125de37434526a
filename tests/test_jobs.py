"""Jobs on threads: order, failures, and how many work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import pytest
from bitconv.system import jobs


def numbered(number: int, keep_going: Callable[[], None]) -> tuple[int, int]:
    time.sleep(0.001 * (number % 3))
    return number, threading.get_ident()


@pytest.mark.parametrize("threads", [1, 3, 64])
def test_results_come_in_the_order_of_the_jobs(threads: int) -> None:
    found = list(jobs.run([partial(numbered, number) for number in range(40)], threads))
    assert [number for number, _ in found] == list(range(40))


def test_more_threads_than_can_work_do_not_all_work() -> None:
    """They would only wait for Python's lock."""
    found = jobs.run([partial(numbered, number) for number in range(200)], 64)
    assert 1 < len({thread for _, thread in found}) <= 8


def test_the_first_job_that_fails_decides() -> None:
    def fail(number: int, keep_going: Callable[[], None]) -> None:
        time.sleep(0.02 if number == 2 else 0)
        if number >= 2:
            raise ValueError(number)

    with pytest.raises(ValueError, match="2"):
        list(jobs.run([partial(fail, number) for number in range(8)], 8))


def test_jobs_are_told_to_stop_where_one_failed() -> None:
    stopped = []
    started = threading.Event()

    def wait(keep_going: Callable[[], None]) -> None:
        started.set()
        try:
            while True:
                keep_going()
                time.sleep(0.001)
        except jobs.Stopped:
            stopped.append(True)
            raise

    def fail(keep_going: Callable[[], None]) -> None:
        assert started.wait(10)
        raise ValueError

    with pytest.raises(ValueError):
        list(jobs.run([fail, wait], 2))
    assert stopped
