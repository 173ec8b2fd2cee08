"""What Django asks when it starts: whether emails can be enqueued with these settings. Nothing is connected to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.utils.module_loading import import_string

from idem.errors import IdemError
from workers import wiring
from workers.django.backend import EmailBackend, app_named


class IdemConfig(AppConfig):  # type: ignore[misc]  # Django ships no types
    """`"workers.django"` among the INSTALLED_APPS."""

    name = "workers.django"
    label = "idem"
    verbose_name = "idem-workers"

    def ready(self) -> None:
        """Have the settings checked."""
        register(check_settings)


def check_settings(app_configs: object, **_options: Any) -> Sequence[CheckMessage]:  # noqa: ARG001 - Django's signature
    """`idem.E001` for each application that our backend is to enqueue with, and could enqueue nothing."""
    problems = (_problem(app) for app in sorted(set(_apps()), key=str))
    hint = "No email can be enqueued before this is mended."
    return [Error(problem, hint=hint, id="idem.E001") for problem in problems if problem is not None]


def _apps() -> Iterator[str | None]:
    """The applications, by name, of the mailers that are ours; before Django 6.1 there is one mailer."""
    mailers = getattr(settings, "MAILERS", None)
    for mailer in [{"BACKEND": settings.EMAIL_BACKEND}] if mailers is None else mailers.values():
        try:
            backend = import_string(mailer.get("BACKEND", ""))
        except ImportError:
            # Django's own to tell.
            continue
        if isinstance(backend, type) and issubclass(backend, EmailBackend):
            yield mailer.get("OPTIONS", {}).get("app")


def _problem(app: str | None) -> str | None:
    try:
        found = app_named(app).settings
        wiring.check_with(found)
        wiring.build_broker(found)
        wiring.open_store(found)
    except IdemError as error:
        return str(error)
    return None
