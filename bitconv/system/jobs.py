"""Running many jobs on a few threads: the work inside them releases the GIL."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias, TypeVar

from bitconv.system.errors import check_number

MAX_THREADS = 1024
# Jobs hold Python's lock for about a seventh of their time: more threads than this spend theirs waiting for it.
_WORKERS = 8

Result = TypeVar("Result")
KeepGoing: TypeAlias = Callable[[], None]  # called often; raises Stopped where the work should end
Progress: TypeAlias = Callable[[int, int], None]  # done and total, in bytes or tokens


class Stopped(Exception):  # noqa: N818 - not an error: another job's failure or an interrupt asked for it
    """A job gave up because its result is no longer wanted."""


def default_threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count(threads: int | None) -> int:
    """`threads`, or where None as many as there are cores. BitconvError where they are none or too many."""
    threads = default_threads() if threads is None else threads
    check_number("threads", threads, 1, MAX_THREADS)
    return threads


def run(jobs: Sequence[Callable[[Callable[[], None]], Result]], threads: int | None) -> Iterator[Result]:
    """The results of the jobs, in their order, each as soon as it and those before it are done.

    threads: as thread_count takes it; eight work at most.

    A job is called with a function that it calls often, and that raises Stopped when the job should give up. The
    first job in order that fails decides the error, whatever the number of threads.
    """
    threads = thread_count(threads)
    stop = threading.Event()

    def keep_going() -> None:
        if stop.is_set():
            raise Stopped

    pool = ThreadPoolExecutor(min(threads, _WORKERS))
    try:
        for future in [pool.submit(job, keep_going) for job in jobs]:
            yield future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
