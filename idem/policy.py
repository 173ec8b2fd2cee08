"""The arithmetic of durations: what must be longer than what, windows, margins, backoff. Pure; all are in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from idem.errors import SettingsError

#: Longest pause between two attempts. SQS cannot delay a message for longer (15 minutes), so nothing else does.
MAX_DELAY_SECONDS = 900.0
#: What a message is hidden for beyond its claim's lease: more than a request to the queue takes before the claim.
_AFTER_LEASE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Rule:
    """One duration that must be shorter than another; `fields` are the durations that it is made of."""

    fields: tuple[str, ...]
    shorter: str
    seconds: float
    sign: str
    longer: str
    bound: float
    reason: str

    @property
    def holds(self) -> bool:
        """Whether it does; a duration that is no number never holds."""
        return self.seconds < self.bound or (self.sign == "<=" and self.seconds == self.bound)

    def __str__(self) -> str:
        return f"{self.shorter} {self.seconds:.10g} s {self.sign} {self.longer} {self.bound:.10g} s"

    @property
    def refusal(self) -> str:
        """What to say when it does not hold."""
        return (
            f"the {self.shorter} ({self.seconds:.10g} s) must be {self.sign} the {self.longer} ({self.bound:.10g} s), "
            f"or {self.reason}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """Every duration of a deployment, and what must be longer than what (DESIGN section 8).

    None means: `window_seconds`, no keys at the provider, or not known here; `retention_seconds`, the ledger forgets
    nothing; `queue_seconds` and `dead_letter_seconds`, a message waits there until somebody takes it.
    """

    http_timeout_seconds: float = 20.0
    lease_seconds: float = 60.0
    visibility_seconds: float = 90.0
    shutdown_seconds: float = 30.0
    give_up_seconds: float = 86_400.0
    window_seconds: float | None = None
    retention_seconds: float | None = None
    queue_seconds: float | None = None
    dead_letter_seconds: float | None = None

    @property
    def margin_seconds(self) -> float:
        """See `Policy.margin_seconds`."""
        return _margin(self.window_seconds, self.lease_seconds, self.http_timeout_seconds)

    @property
    def hidden_seconds(self) -> float:
        """How long a message is kept from other workers after the last sign of life of the one that has it.

        Before its claim is over they could only put it off, and soon afterwards they can go on: for no longer than
        that, however long the visibility of the queue is.
        """
        return min(self.visibility_seconds, self.lease_seconds + _AFTER_LEASE_SECONDS)

    @property
    def memory_seconds(self) -> float | None:
        """How old a message may be for an absent record to mean that it was never sent; see `memory_of`."""
        return None if self.retention_seconds is None else memory_of(self.retention_seconds)

    def rules(self) -> Iterator[Rule]:
        """All that apply, in the order in which an email meets them."""
        yield _request_within_lease(self.http_timeout_seconds, self.lease_seconds)
        yield Rule(
            ("lease_seconds", "visibility_seconds"), "lease", self.lease_seconds, "<=",
            "visibility", self.visibility_seconds,
            "a dead worker's job would come back before its claim ends, and be put off once more",
        )  # fmt: skip
        yield Rule(
            ("http_timeout_seconds", "shutdown_seconds"), "HTTP timeout", self.http_timeout_seconds, "<",
            "shutdown", self.shutdown_seconds,
            "a stopping worker would leave a request in doubt that was only slow",
        )  # fmt: skip
        if self.window_seconds is not None:
            yield from self._window_rules(self.window_seconds)
        if self.memory_seconds is not None:
            yield from self._memory_rules(self.memory_seconds)

    def check(self) -> None:
        """Raise `SettingsError` with the reason for the first rule that does not hold."""
        for rule in self.rules():
            if not rule.holds:
                names = " or ".join(f"IDEM_{name.upper()}" for name in rule.fields)
                raise SettingsError(f"{rule.refusal}: set {names}")

    def _window_rules(self, window: float) -> Iterator[Rule]:
        yield _margin_within_window(self.margin_seconds, window)
        # No attempt begins within the margin (`Policy.window_open`), which is longer than a lease and a request: what
        # began just before it has ended while the provider still knows the key.
        yield Rule(
            ("visibility_seconds", "window_seconds"), "visibility", self.visibility_seconds, "<",
            "window less its margin", window - self.margin_seconds,
            "a job would come back after a crash when its key may not be used again",
        )  # fmt: skip

    def _memory_rules(self, memory: float) -> Iterator[Rule]:
        yield Rule(
            ("give_up_seconds", "retention_seconds"), "time to give up", self.give_up_seconds, "<",
            "nine tenths of the retention", memory,
            "a job could wait for longer than its key is remembered",
        )  # fmt: skip
        if self.queue_seconds is not None and self.dead_letter_seconds is not None:
            # Among the dead letters it comes from the queue, and goes back there with a delay.
            life = self.queue_seconds + self.dead_letter_seconds + MAX_DELAY_SECONDS
            yield Rule(
                ("retention_seconds",), "life of a message, dead letters included,", life, "<",
                "nine tenths of the retention", memory,
                "a message could outlive the record that says that it was sent",
            )  # fmt: skip


def memory_of(retention_seconds: float) -> float:
    """Nine tenths of the retention: until that age, a message whose key has no record was never sent.

    A record that a message led to ended after the message was enqueued, and is kept for the retention from then on. The
    tenth is for clocks that disagree, as that of the window is. Beyond, an absent record proves nothing, and a person
    decides: how long a queue, a dead letter or a backup of either keeps a message does not matter then.
    """
    return 0.9 * retention_seconds


def _margin(window_seconds: float | None, lease_seconds: float, http_timeout_seconds: float) -> float:
    return max(0.1 * (window_seconds or 0.0), 2 * (lease_seconds + http_timeout_seconds))


def _request_within_lease(http_timeout_seconds: float, lease_seconds: float) -> Rule:
    return Rule(
        ("http_timeout_seconds", "lease_seconds"), "HTTP timeout", http_timeout_seconds, "<", "lease", lease_seconds,
        "a claim ends while its request is still running",
    )  # fmt: skip


def _margin_within_window(margin_seconds: float, window_seconds: float) -> Rule:
    return Rule(
        ("window_seconds", "lease_seconds"), "margin", margin_seconds, "<", "provider's window", window_seconds,
        "nothing could ever be sent again after a crash (the margin is the larger of 10 % of the window and twice "
        "lease + HTTP timeout)",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How long things may take, checked against each other once (DESIGN section 8).

    `window_seconds` is how long the provider remembers a key; None for a provider that has no keys. `memory_seconds` is
    how long the ledger does (see `memory_of`); None for one that forgets nothing.
    """

    lease_seconds: float = 60.0
    http_timeout_seconds: float = 20.0
    window_seconds: float | None = None
    give_up_seconds: float = 86_400.0
    backoff_seconds: float = 1.0
    memory_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("lease_seconds", "http_timeout_seconds", "give_up_seconds", "backoff_seconds"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} is {getattr(self, name)}: it must be more than 0")
        rules = [_request_within_lease(self.http_timeout_seconds, self.lease_seconds)]
        if self.window_seconds is not None:
            rules.append(_margin_within_window(self.margin_seconds, self.window_seconds))
        for rule in rules:
            if not rule.holds:
                raise SettingsError(rule.refusal)

    @property
    def margin_seconds(self) -> float:
        """What is taken off the window for a wrong clock, a long lease and a slow request (rule 7)."""
        return _margin(self.window_seconds, self.lease_seconds, self.http_timeout_seconds)

    def forgets(self, enqueued_at: float, now: float) -> bool:
        """Whether the ledger may have forgotten what became of a message that was enqueued then."""
        return self.memory_seconds is not None and now >= enqueued_at + self.memory_seconds

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
