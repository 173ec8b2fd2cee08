"""What a worker does beside its jobs.

It looks after emails in doubt, and after records whose message was lost; asked to, it is a scheduler too.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from idem.errors import IdemError
from idem.reconcile import Reconciler
from workers.app import App
from workers.schedule.scheduler import SPREAD_SECONDS, Scheduler, keep_up

_log = logging.getLogger("idem.worker")

_ROUND_SECONDS = 1.0


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


@contextmanager
def keeping_up(app: App) -> Iterator[Callable[[], None]]:
    """Be a scheduler in a thread for as long as the context lasts.

    What is yielded raises once that thread has died: a worker that goes on without would miss every slot in silence.
    """
    stop, died = threading.Event(), list[BaseException]()
    scheduler = app.scheduler()
    scheduler.start()
    thread = threading.Thread(target=_keep_up, args=(scheduler, stop, died), name="idem-scheduler", daemon=True)
    thread.start()

    def check() -> None:
        if died:
            raise died[0]

    try:
        yield check
    finally:
        stop.set()
        # A round that is under way is done again by the next one, if it is not finished.
        thread.join(timeout=_ROUND_SECONDS)


def _keep_up(scheduler: Scheduler, stop: threading.Event, died: list[BaseException]) -> None:
    try:
        keep_up(scheduler, stop.wait, time.time, random.uniform(0, SPREAD_SECONDS))
    except BaseException as error:
        _log.error("the scheduler in this worker has died, and the worker ends with it")
        died.append(error)


def enqueue_due(app: App) -> None:
    """Enqueue the slots that are due now. Raises `IdemError` when the broker or the ledger does not answer."""
    scheduler = app.scheduler()
    scheduler.start()
    while scheduler.tick():
        pass


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
