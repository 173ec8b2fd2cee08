"""The email backend: what Django sends is enqueued, and sent by a worker.

    IDEM_APP = "shop.mail:app"    which application enqueues; by default one with the settings of the environment
    IDEM_ON_COMMIT = True         enqueue once the transaction that is open has been committed; by default at once

Both are also arguments, `get_connection(app="shop.mail:app", on_commit=True)`, and options of a mailer in MAILERS.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from functools import cache, partial
from typing import Any

from django.conf import settings
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend
from django.db import transaction

from idem.email import Email
from idem.errors import IdemError
from workers.app import App
from workers.django.message import email_of
from workers.process import find_app

_FOR_SMTP = frozenset({"username", "password"})

_log = logging.getLogger("idem.enqueue")


class EmailBackend(BaseEmailBackend):  # type: ignore[misc]  # Django ships no types
    """Enqueue Django's emails: each under the key of its `Idempotency-Key` header, else under a new one.

    Several that are sent together are one bulk. What cannot be sent as Django means it is an `EmailError`, before any
    of them is enqueued. With `fail_silently`, no error of this package is raised; a warning is logged. A user name and
    a password, which Django passes on for SMTP, do nothing here.
    """

    def __init__(
        self,
        fail_silently: bool = False,  # noqa: FBT001, FBT002 - Django's signature
        *,
        app: str | None = None,
        on_commit: bool | None = None,
        **options: Any,
    ) -> None:
        # From Django 6.1 on, a backend says itself what it takes of these.
        super().__init__(**{name: value for name, value in options.items() if name not in _FOR_SMTP})
        self.fail_silently = fail_silently
        self._app_name = app
        self._on_commit = getattr(settings, "IDEM_ON_COMMIT", False) if on_commit is None else on_commit

    def send_messages(self, email_messages: Iterable[EmailMessage] | None) -> int:
        """Return how many are enqueued, or will be on commit; one without recipients is not."""
        try:
            emails = [email_of(message) for message in email_messages or () if message.recipients()]
            if emails:
                self._send(emails)
        except IdemError as error:
            self._fail(error)
            return 0
        return len(emails)

    def _send(self, emails: Sequence[Email]) -> None:
        app = app_named(self._app_name)
        if not self._on_commit:
            _enqueue(app, emails)
            return
        for email in emails:
            # Refuses what the provider cannot express, as long as the transaction can still be rolled back.
            app.message(email)
        transaction.on_commit(partial(self._send_committed, app, emails))

    def _send_committed(self, app: App, emails: Sequence[Email]) -> None:
        try:
            _enqueue(app, emails)
        except IdemError as error:
            self._fail(error)

    def _fail(self, error: IdemError) -> None:
        if not self.fail_silently:
            raise error
        _log.warning("Django's email is not enqueued: %s", error)


def _enqueue(app: App, emails: Sequence[Email]) -> None:
    if len(emails) == 1:
        app.enqueue(emails[0])
    else:
        app.enqueue_bulk(emails)


def app_named(name: str | None = None) -> App:
    """The application of that name, by default the one that Django's settings name, or one of the environment."""
    chosen = name or getattr(settings, "IDEM_APP", None)
    return _own_app(os.getpid()) if chosen is None else find_app(chosen, f"IDEM_APP {chosen!r}")


@cache
def _own_app(_process: int) -> App:
    """One for each process: connections are nothing to take along into a fork."""
    return App.from_env()
