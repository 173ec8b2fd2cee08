"""A Django project, run as a process: `project.py check`, or `project.py send`, which prints what each sending gave."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.core import mail
from django.core.management import call_command
from django.db import transaction


def _mailers(options: str) -> dict[str, Any]:
    """The backend in the one setting, or, from Django 6.1 on, as a mailer with options."""
    backend = "workers.django.EmailBackend"
    if not options:
        return {"EMAIL_BACKEND": backend}
    return {"MAILERS": {"default": {"BACKEND": backend, "OPTIONS": json.loads(options)}}}


def _configure() -> None:
    settings.configure(
        SECRET_KEY="x",
        ALLOWED_HOSTS=["testserver"],
        ADMINS=[("Admin", "admin@example.com")],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "project.db"}},
        DEFAULT_FROM_EMAIL="shop@example.com",
        SERVER_EMAIL="server@example.com",
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "workers.django"],
        ROOT_URLCONF="django.contrib.auth.urls",
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "DIRS": [Path(django.__file__).parent / "contrib" / "admin" / "templates"],
                "APP_DIRS": True,
            }
        ],
        USE_TZ=True,
        **_mailers(os.environ.get("PROJECT_MAILERS", "")),
        **({"IDEM_APP": os.environ["PROJECT_APP"]} if "PROJECT_APP" in os.environ else {}),
    )
    django.setup()


def _keyed(name: str, key: str, **options: Any) -> int:
    message = mail.EmailMessage(name, "B", None, [f"{name}@example.com"], headers={"Idempotency-Key": key}, **options)
    sent: int = message.send()
    return sent


def _reset_password() -> int:
    from django.contrib.auth.models import User  # noqa: PLC0415 - once Django is set up
    from django.test import Client  # noqa: PLC0415 - the same

    User.objects.create_user("ann", "reset@example.com", "x")
    answer: Any = Client().post("/password_reset/", {"email": "reset@example.com"})
    status: int = answer.status_code
    return status


def _wrong(*, silently: bool) -> object:
    """The second of two cannot be sent."""
    emails = [mail.EmailMultiAlternatives("wrong", "B", None, [f"wrong{number}@example.com"]) for number in range(2)]
    emails[1].attach_alternative("BEGIN:VCALENDAR", "text/calendar")
    try:
        return mail.get_connection(fail_silently=silently).send_messages(emails)
    except ValueError as error:
        return str(error)


def _in_transaction(name: str, *, commit: bool) -> object:
    connection = mail.get_connection(on_commit=True)
    atomic: Any = transaction.atomic
    with atomic():
        sent = _keyed(name, name, connection=connection)
        transaction.set_rollback(not commit)
    return sent


def _too_many_tags() -> object:
    message: Any = mail.EmailMessage(
        "tags", "B", None, ["tags@example.com"], connection=mail.get_connection(on_commit=True)
    )
    message.tags = ["a", "b"]
    try:
        return message.send()
    except ValueError as error:
        return str(error)


_SENDING: dict[str, Callable[[], object]] = {
    "send_mail": lambda: mail.send_mail("one", "B", None, ["one@example.com"], html_message="<p>B</p>"),
    "send_mass_mail": lambda: mail.send_mass_mail(
        [("mass", "B", None, [f"mass{number}@example.com"]) for number in range(3)]
    ),
    "mail_admins": lambda: mail.mail_admins("admins", "B"),
    "password reset": _reset_password,
    "keyed": lambda: [_keyed("keyed", "k1") for _ in range(2)],
    "nobody": lambda: mail.EmailMessage("nobody", "B").send(),
    "none": lambda: mail.get_connection().send_messages([]),
    "wrong": lambda: _wrong(silently=False),
    "wrong, silently": lambda: _wrong(silently=True),
    "committed": lambda: _in_transaction("committed", commit=True),
    "rolled back": lambda: _in_transaction("rolled", commit=False),
    "what the provider does not take": _too_many_tags,
}

if __name__ == "__main__":
    _configure()
    if sys.argv[1] == "check":
        call_command("check")
    else:
        call_command("migrate", verbosity=0)
        sys.stdout.write(json.dumps({name: send() for name, send in _SENDING.items()}))
