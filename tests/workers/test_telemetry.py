"""What a process says about itself: one line an event, no address, no secret."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest

from workers.telemetry import LineFormatter, configure_logging, describe_error


@pytest.fixture
def restored() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("idem")
    handlers, level, our_level = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(our_level)


def _record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("idem", logging.ERROR, "f.py", 1, message, args, info)


def _raised() -> ValueError:
    with pytest.raises(ValueError, match="failed") as raised:
        raise ValueError("to ann@example.com\nfailed")
    return raised.value


def test_an_event_is_one_line_with_every_address_masked() -> None:
    line = LineFormatter(tracebacks=False).format(_record("to %s\nfrom %s\x1b[31m", "ann@example.com", "<b@c.d>"))

    assert line.endswith("error    to <address> from <<address>> [31m")
    assert "\n" not in line


def test_an_exception_is_its_type_and_its_place() -> None:
    line = LineFormatter(tracebacks=False).format(_record("it failed", error=_raised()))

    assert line.endswith("; run with --verbose for the traceback]")
    assert f"it failed [ValueError at {__file__}:" in line
    assert "ann" not in line
    assert "\n" not in line


def test_with_tracebacks_it_is_the_whole_with_addresses_masked() -> None:
    lines = LineFormatter(tracebacks=True).format(_record("it failed", error=_raised())).splitlines()

    assert lines[1] == "Traceback (most recent call last):"
    assert "ValueError: to <address>" in lines
    assert "ann" not in "".join(lines)


def test_exc_info_without_an_exception_is_no_exception() -> None:
    record = logging.LogRecord("idem", logging.ERROR, "f.py", 1, "fine", (), (None, None, None))

    assert LineFormatter(tracebacks=True).format(record).endswith("error    fine")


def test_an_error_without_a_traceback_has_no_place() -> None:
    assert describe_error(KeyError("secret")) == "KeyError"


def test_a_very_long_event_is_cut() -> None:
    assert len(LineFormatter(tracebacks=False).format(_record("x" * 100_000))) < 1_100


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(("verbose", "shown"), [(False, ["a warning"]), (True, ["an event", "a warning"])])
def test_events_are_shown_when_asked_for_and_warnings_always(
    capsys: pytest.CaptureFixture[str], shown: list[str], *, verbose: bool
) -> None:
    configure_logging(verbose=verbose)
    logging.getLogger("idem.worker").info("an event")
    logging.getLogger("dramatiq.worker").info("nothing of ours")
    logging.getLogger("idem.worker").warning("a warning")

    written = capsys.readouterr()
    assert [line.split(maxsplit=2)[2] for line in written.err.splitlines()] == shown
    assert written.out == ""
    assert logging.getLogger().handlers[0].stream is sys.stderr  # type: ignore[attr-defined]  # a StreamHandler
