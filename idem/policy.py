"""The arithmetic of durations: leases, windows, margins, backoff. Pure; every duration is in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from idem.errors import SettingsError

#: Longest pause between two attempts. SQS cannot delay a message for longer (15 minutes), so nothing else does.
MAX_DELAY_SECONDS = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How long things may take, checked against each other once (DESIGN section 8).

    `window_seconds` is how long the provider remembers a key; None for a provider that has no keys.
    """

    lease_seconds: float = 60.0
    http_timeout_seconds: float = 20.0
    window_seconds: float | None = None
    give_up_seconds: float = 86_400.0
    backoff_seconds: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lease_seconds", "http_timeout_seconds", "give_up_seconds", "backoff_seconds"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} is {getattr(self, name)}: it must be more than 0")
        if self.http_timeout_seconds >= self.lease_seconds:
            raise SettingsError(
                f"the HTTP timeout ({self.http_timeout_seconds:g} s) must be shorter than the lease "
                f"({self.lease_seconds:g} s), or a claim ends while its request is still running"
            )
        if self.window_seconds is not None and self.margin_seconds >= self.window_seconds:
            raise SettingsError(
                f"the provider's window ({self.window_seconds:g} s) must be longer than its margin "
                f"({self.margin_seconds:g} s = the larger of 10 % of it and twice lease + HTTP timeout), or nothing "
                "could ever be sent again after a crash"
            )

    @property
    def margin_seconds(self) -> float:
        """What is taken off the window for a wrong clock, a long lease and a slow request (rule 7)."""
        return max(0.1 * (self.window_seconds or 0.0), 2 * (self.lease_seconds + self.http_timeout_seconds))

    def window_open(self, unsure_since: float, now: float) -> bool:
        """Whether the same bytes may go out again under the same key: only well inside the provider's memory."""
        if self.window_seconds is None:
            return False
        return now < unsure_since + self.window_seconds - self.margin_seconds

    def last_replay(self, unsure_since: float) -> float:
        """When the last attempt under a key in doubt should begin: one lease before its window closes."""
        return unsure_since + (self.window_seconds or 0.0) - self.margin_seconds - self.lease_seconds

    def backoff(self, attempts: int, jitter: float, retry_after: float | None = None) -> float:
        """The pause before the attempt after `attempts` ones, never shorter than the provider asked for.

        `jitter` is drawn from 0..1 by the caller; with full jitter, what failed together does not return together.
        """
        ceiling = min(MAX_DELAY_SECONDS, self.backoff_seconds * 2.0 ** min(attempts - 1, 32))
        return max(ceiling * max(jitter, 0.1), retry_after or 0.0)
