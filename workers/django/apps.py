"""What Django asks when it starts: whether emails can be enqueued with these settings. Nothing is connected to."""

from __future__ import annotations

from collections.abc import Sequence
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
    """`idem.E001` when our backend is the one in use and could enqueue nothing."""
    try:
        backend = import_string(settings.EMAIL_BACKEND)
    except ImportError:
        # Django's own to tell.
        return []
    if not (isinstance(backend, type) and issubclass(backend, EmailBackend)):
        return []
    try:
        found = app_named().settings
        wiring.check_with(found)
        wiring.build_broker(found)
        wiring.open_store(found)
    except IdemError as error:
        return [Error(str(error), hint="No email can be enqueued before this is mended.", id="idem.E001")]
    return []
