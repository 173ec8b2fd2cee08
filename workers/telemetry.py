"""What a process says about itself: one line an event, on standard error, without addresses and without secrets."""

from __future__ import annotations

import logging
import sys
import traceback

from idem.privacy import redact


class LineFormatter(logging.Formatter):
    """One line an event. An exception becomes its type and the place that raised it; all of it with `tracebacks`."""

    def __init__(self, *, tracebacks: bool) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        """The line, with every address masked."""
        time, level = self.formatTime(record, self.datefmt), record.levelname.lower()
        line = f"{time} {level:<8} {redact(record.getMessage(), limit=1_000)}"
        if not record.exc_info or record.exc_info[1] is None:
            return line
        if self._tracebacks:
            whole = "".join(traceback.format_exception(record.exc_info[1]))
            return "\n".join([line, *(redact(text, limit=1_000) for text in whole.splitlines())])
        return f"{line} [{describe_error(record.exc_info[1])}; run with --verbose for the traceback]"


def describe_error(error: BaseException) -> str:
    """The type of an exception, and the place that raised it; its message may hold anything."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


def configure_logging(*, verbose: bool) -> None:
    """Send our events, and dramatiq's warnings, to standard error; with `verbose`, one line for every email too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(tracebacks=verbose))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("idem").setLevel(logging.INFO if verbose else logging.WARNING)
