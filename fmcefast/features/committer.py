"""Makes shards durable and commits them, on a thread of its own so that the producer does not wait for the disk."""

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread, current_thread
from weakref import WeakMethod

from fmcefast.features.shards import OpenShard


class Committer:
    """Calls `commit(shard)` for one shard after the other.

    Simple queues are whole after Ctrl-C at any moment; futures and locks are not.
    """

    def __init__(self, commit: Callable[[OpenShard], None]):
        self._commit = WeakMethod(commit)  # a writer that nobody holds any more must not live on for its thread
        self._todo: SimpleQueue = SimpleQueue()
        self._done: SimpleQueue = SimpleQueue()
        self.pending = 0  # shards that `finished` has not given back
        self._thread = Thread(target=self._serve, name="fmcefast-commit", daemon=True)
        self._thread.start()

    def submit(self, shard: OpenShard) -> None:
        self.pending += 1
        self._todo.put(shard)

    def finished(self, wait: bool) -> OpenShard | None:
        """The next shard that is committed; None when there is none (yet). Raises what `commit` raised for it."""
        if self.pending == 0 or (not wait and self._done.empty()):
            return None
        shard, error = self._done.get()
        self.pending -= 1
        if error is not None:
            raise error
        return shard

    def stop(self) -> None:
        """Wait until everything submitted is committed or has failed."""
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
            del commit, shard  # held on to, they would keep the writer alive
