"""Runs a loop's work on a thread; its errors are raised one iteration later."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """One job at a time beside the loop. The block ends when the last job has."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fmcefast-background")
        self._job: Future | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Start `job` once the one before is done. Raises what that one raised."""
        self._finish()
        self._job = self._pool.submit(job)

    def _finish(self) -> None:
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        self._pool.shutdown()
        if kind is None:
            self._finish()
