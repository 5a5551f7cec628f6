"""Commits finished shards on a thread, so that the producer does not wait for the disk."""

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread, current_thread
from weakref import WeakMethod

from fmcefast.features.shards import OpenShard


class Committer:
    """Calls `commit(shard)` on a thread, one shard at a time.

    It uses SimpleQueue, which survives Ctrl-C at any moment; futures and locks do not.
    """

    def __init__(self, commit: Callable[[OpenShard], None]):
        self._commit = WeakMethod(commit)  # the thread must not keep an abandoned writer alive
        self._todo: SimpleQueue = SimpleQueue()
        self._done: SimpleQueue = SimpleQueue()
        self.pending = 0  # submitted shards that `finished` has not returned
        self._thread = Thread(target=self._serve, name="fmcefast-commit", daemon=True)
        self._thread.start()

    def submit(self, shard: OpenShard) -> None:
        self.pending += 1
        self._todo.put(shard)

    def finished(self, wait: bool) -> OpenShard | None:
        """The next committed shard, or None when there is none (yet). Raises what `commit` raised for it."""
        if self.pending == 0 or (not wait and self._done.empty()):
            return None
        shard, error = self._done.get()
        self.pending -= 1
        if error is not None:
            raise error
        return shard

    def stop(self) -> None:
        """Wait until every submitted shard is committed or has failed."""
        self._todo.put(None)
        if current_thread() is not self._thread:
            self._thread.join()

    def _serve(self) -> None:
        while (shard := self._todo.get()) is not None:
            commit = self._commit()
            try:
                if commit is not None:
                    commit(shard)
                self._done.put((shard, None))
            except BaseException as error:
                self._done.put((shard, error))
            del commit, shard  # these references would keep the writer alive
