"""Awaitable twins of methods that block: threads beside the event loop make the calls, and the loop goes on."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Concatenate, Final, Generic, ParamSpec, Protocol, Self, TypeVar, overload

#: As many calls as are under way at once, however many are awaited; enough to fill the requests of SQS.
THREADS: Final = 16

P = ParamSpec("P")
R = TypeVar("R")


class Threads:
    """Threads of one's own, so that nothing else that an application runs beside its loop can keep them busy."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="idem-enqueue")

    async def run(self, call: Callable[[], R]) -> R:
        """Make a call in the context of whoever awaits it.

        Cancelled before a thread has begun with it, it is never made; after that, it is made to its end.
        """
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._pool, context.run, call)

    def close(self) -> None:
        """Return once all calls that were begun have ended."""
        self._pool.shutdown()


class Owner(Protocol):
    """What has methods with awaitable twins."""

    @property
    def threads(self) -> Threads:
        """Where their calls are made."""
        ...


S = TypeVar("S", bound=Owner)


class Twin(Generic[S, P, R]):
    """The same method under another name, to be awaited on an asyncio event loop, which it does not block.

    An await that is cancelled leaves nothing half done: either nothing was enqueued, or what was under way is enqueued
    all the same. Under the same key, doing it again is free.
    """

    def __init__(self, method: Callable[Concatenate[S, P], R]) -> None:
        self._method = method
        self.__doc__ = f"`{method.__name__}`, to be awaited: see `workers.beside.Twin`."

    @overload
    def __get__(self, owner: None, kind: type[S]) -> Self: ...
    @overload
    def __get__(self, owner: S, kind: type[S]) -> Callable[P, Coroutine[Any, Any, R]]: ...
    def __get__(self, owner: S | None, kind: type[S]) -> Self | Callable[P, Coroutine[Any, Any, R]]:
        """The twin of an owner's method."""
        if owner is None:
            return self

        async def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return await owner.threads.run(partial(self._method, owner, *args, **kwargs))

        return call
