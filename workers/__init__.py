"""Who does the work: what a user declares (`App`), the queue, the worker processes, the commands.

A job is a function that returns an `idem.Email`; the framework sends what it returns, once. The README shows one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idem.content import by_content
    from workers.app import App, DeclaredJob
    from workers.schedule.slots import Slot
    from workers.settings import Settings
    from workers.webhooks.event import Event

__all__ = ["App", "DeclaredJob", "Event", "Settings", "Slot", "by_content"]

_HOMES = {
    "App": "workers.app",
    "DeclaredJob": "workers.app",
    "Event": "workers.webhooks.event",
    "Settings": "workers.settings",
    "Slot": "workers.schedule.slots",
    "by_content": "idem.content",
}


def __getattr__(name: str) -> Any:
    # Found when asked for: `idem --help` should not wait for a queue library.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'workers' has no attribute {name!r}")
