"""What may be written to logs and records: words, never addresses."""

from __future__ import annotations

import re

from msgspec import Struct

# Only from the start of a word, and without going back: linear, whatever a provider answers.
_WORD = r"[^\s@<>\"'(),;:\[\]]"
_ADDRESS = re.compile(rf"(?<!{_WORD}){_WORD}++@{_WORD}++")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def redact(text: str, limit: int = 300) -> str:
    """`text` as one line of at most `limit` characters that UTF-8 can carry, with every email address masked."""
    line = _CONTROLS.sub(" ", _ADDRESS.sub("<address>", text)).strip()
    line = line.encode("utf-8", "replace").decode()
    return line if len(line) <= limit else line[: limit - 1] + "…"


class Private(Struct, frozen=True):
    """What may hold an email (`body`), or the arguments of a job (`call`): its `repr` shows neither."""

    def __repr__(self) -> str:
        shown = (name for name in self.__struct_fields__ if name not in {"body", "call"})
        given = (f"{name}={value!r}" for name in shown if (value := getattr(self, name)) is not None)
        return f"{type(self).__name__}({', '.join(given)})"
