"""How fast a provider may be asked, and whether at all: what every worker knows of it. Pure: time is an argument.

A `Pace` is the value of one cell of the store, changed by compare-and-set; `idem.gate` reads and writes it. It says:

    next_at   the instant of the next email that nobody has reserved: the theoretical arrival time of the generic cell
              rate algorithm (ITU-T I.371), one number instead of a bucket that somebody has to fill
    pause     the provider asked for one (429, Retry-After): afterwards everybody goes on
    circuit   the provider does not do its work. closed --failures--> open --time--> one probe --success--> closed
                                                                        ^---- failure: twice as long ----'

Clocks may be wrong. Nobody reserves far ahead, so that an instant far ahead is a wrong clock's and not believed. A stop
is an instant and a length: one who sees it for the first time waits no longer than its length, and, where it was
written since the last look, not much less either, whatever the two clocks say. A wrong clock costs delay, or some
requests that the provider refuses; no email is sent twice for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import msgspec

from idem.errors import SettingsError

#: How far ahead of now a block may begin; also about how long a block lasts.
AHEAD_SECONDS: Final = 1.0
#: Clocks this far apart count as right.
SKEW_SECONDS: Final = 5.0
#: Nobody stops for longer, whatever the provider asks for.
LONGEST_PAUSE_SECONDS: Final = 86_400.0
#: Failures in a row, each of another email, that open the circuit.
FAILURES: Final = 5
_FIRST_SECONDS = 1.0
_LONGEST_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `per_second * t + burst` emails in any `t` seconds, by everybody together."""

    per_second: float
    burst: float

    def __post_init__(self) -> None:
        if not self.per_second > 0:
            raise SettingsError(f"the rate is {self.per_second:g} emails a second: it must be more than 0")
        if not self.burst >= 2:  # noqa: PLR2004 - with 1, a token would have to be used at its very instant
            raise SettingsError(f"the burst is {self.burst:g} emails: it must be at least 2")

    @property
    def spacing(self) -> float:
        """Seconds from one email to the next."""
        return 1 / self.per_second

    @property
    def slack(self) -> float:
        """How long after its instant a token is good. It is the burst: what came late meets what comes in time."""
        return (self.burst - 1) * self.spacing

    @property
    def largest_block(self) -> int:
        """What one process reserves at the most: an email, or what goes out in `AHEAD_SECONDS`."""
        return max(1, int(self.per_second * AHEAD_SECONDS))


@dataclass(frozen=True, slots=True)
class Stop:
    """Nobody asks for `seconds` from `since`, by the clock of the worker that wrote it."""

    since: float
    seconds: float
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What is known of one provider. No value is ever stored twice: `version` is one higher at each change.

    `strikes` counts how often the circuit has opened since the provider last worked; while it is not 0 and `circuit` is
    over, one worker may probe. While one does, `probing` is set, and `circuit` ends when it is not waited for any more.
    """

    version: int = 0
    next_at: float = 0.0
    pause: Stop | None = None
    circuit: Stop | None = None
    strikes: int = 0
    probing: bool = False
    open_since: float | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """`count` emails, `spacing` apart; the first may go at `first`."""

    pace: Pace
    first: float


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Pace)


def encode(pace: Pace) -> bytes:
    """The cell's value."""
    return _ENCODER.encode(pace)


def decode(value: bytes | None) -> Pace:
    """The pace that a cell holds. What cannot be read is worth nothing: it is as if nobody had said anything."""
    if value is None:
        return Pace()
    try:
        return _DECODER.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Pace()


def reserve(pace: Pace, rate: Rate, count: int, now: float) -> Block | float:
    """Reserve the next `count` emails; or the seconds after which to ask again, when others have reserved enough."""
    first = max(pace.next_at, now - rate.slack)
    if first > now + AHEAD_SECONDS + max(AHEAD_SECONDS, rate.spacing) + SKEW_SECONDS:
        # Written by a clock that is far ahead; or ours is far behind, and then nobody minds what we write.
        first = now
    if first > now + AHEAD_SECONDS:
        return first - now - AHEAD_SECONDS
    changed = replace(pace, version=pace.version + 1, next_at=first + count * rate.spacing)
    return Block(changed, first)


def left_of(stop: Stop | None, now: float, looked_ago: float | None) -> float:
    """Seconds that a stop has left for one who has just seen it, and had looked `looked_ago` seconds before (or never).

    By the clock, as far as the clocks can be right: no more than its length, and, as it was written since the last
    look, no less than what that leaves of it.
    """
    if stop is None:
        return 0.0
    left = min(stop.since + stop.seconds - now, stop.seconds)
    least = 0.0 if looked_ago is None else stop.seconds - looked_ago
    return max(left, least, 0.0)


def limit(pace: Pace, now: float, seconds: float, detail: str, *, left: float) -> Pace:
    """The provider asks for a pause; `left` is what this worker sees of one. It works, so that its circuit closes."""
    seconds = min(seconds, LONGEST_PAUSE_SECONDS)
    if seconds <= left:
        return pace
    return replace(_closed(pace), pause=Stop(now, seconds, detail))


def trip(pace: Pace, now: float, detail: str, *, jitter: float, left: float) -> Pace:
    """Open the circuit, for twice as long as the last time; `left` is what this worker sees of one that is open."""
    if left > 0:
        return pace
    return replace(
        pace,
        version=pace.version + 1,
        circuit=Stop(now, pause_after(pace.strikes, jitter), detail),
        strikes=pace.strikes + 1,
        probing=False,
        open_since=now if pace.open_since is None else pace.open_since,
    )


def pause_after(strikes: int, jitter: float) -> float:
    """1 s, doubling to 5 min; `jitter` (0..1) takes up to half of it away."""
    return float(min(_LONGEST_SECONDS, _FIRST_SECONDS * 2.0 ** min(strikes, 32)) * (1 - jitter / 2))


def probe(pace: Pace, now: float, seconds: float, *, left: float) -> Pace:
    """Take the right to ask once, for `seconds`; whoever writes this first has it."""
    if not pace.strikes or left > 0:
        return pace
    detail = pace.circuit.detail if pace.circuit is not None else ""
    return replace(pace, version=pace.version + 1, circuit=Stop(now, seconds, detail), probing=True)


def close(pace: Pace) -> Pace:
    """The provider works."""
    return _closed(pace) if pace.strikes else pace


def _closed(pace: Pace) -> Pace:
    return replace(pace, version=pace.version + 1, circuit=None, strikes=0, probing=False, open_since=None)
