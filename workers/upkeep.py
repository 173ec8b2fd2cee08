"""What a worker does beside its jobs: look after emails in doubt, and after records whose message was lost."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from idem.errors import IdemError
from idem.reconcile import Reconciler
from workers.app import App

_log = logging.getLogger("idem.worker")


@contextmanager
def looking_after(app: App) -> Iterator[None]:
    """Reconcile in a thread for as long as the context lasts, at once and then every so often."""
    stop = threading.Event()
    arguments = (app.reconciler(), app.settings.reconcile_seconds, stop)
    thread = threading.Thread(target=_keep_reconciling, args=arguments, name="idem-reconciler", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        # A look-up that is under way ends by its deadline; nothing is lost when the process does not wait for it.
        thread.join(timeout=1.0)


def _keep_reconciling(reconciler: Reconciler, seconds: float, stop: threading.Event) -> None:
    while not stop.is_set():
        _reconcile(reconciler)
        # Not all workers at one instant: whoever comes second finds little to do.
        stop.wait(seconds * random.uniform(0.5, 1.5))


def _reconcile(reconciler: Reconciler) -> None:
    try:
        steps = reconciler.run()
    except IdemError as error:
        _log.warning("emails in doubt cannot be looked after now: %s", error)
    except Exception:
        # The next round may fare better, and the jobs go on meanwhile.
        _log.exception("looking after emails in doubt failed")
    else:
        if steps:
            said = ", ".join(f"{count} {step}" for step, count in steps.items())
            _log.info("looked after emails in doubt: %s", said)
