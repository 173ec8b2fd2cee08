"""The dramatiq actor: job -> send -> acknowledge, retry, or bury. The acknowledgement rule's other half.

What the actor says of a message, the broker does (`brokers.base`). It says `Acknowledge` only for a durable outcome;
an exception that leaves it saying nothing means that the message comes again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import dramatiq
from dramatiq.middleware import CurrentMessage

from idem.bulk import Group, Part, Ready
from idem.clock import Clock
from idem.email import Email
from idem.errors import BrokerError, EmailError, InvalidKey, JobError, JobTooLarge, LedgerError
from idem.gate import Gate
from idem.ledger import Ledger
from idem.outcome import NotSent
from idem.policy import Policy
from idem.protocol import Record, conflicts
from idem.send import Empty, Ended, Later, Refused, Render, Result, Sender, intent_of
from workers.brokers.base import Acknowledge, Bury, Disposition, JobBroker, Retry, dispose
from workers.jobs import ACTOR, QUEUE, Asked, Call, part_message, read_message, record_message

_log = logging.getLogger("idem.worker")

JobFunction = Callable[..., Email | Sequence[Email] | None]


class Performer:
    """Performs messages: finds the job, hands it to the sender, and says what becomes of the message."""

    def __init__(  # noqa: PLR0913 - the parts of a worker process
        self,
        sender: Sender,
        broker: JobBroker,
        functions: Mapping[str, JobFunction],
        *,
        ledger: Ledger,
        gate: Gate,
        policy: Policy,
        clock: Clock,
        timeouts: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self._sender = sender
        self._ledger = ledger
        self._gate = gate
        self._broker = broker
        self._functions = functions
        self._timeouts = timeouts
        self._policy = policy
        self._clock = clock
        #: Set when the provider refused the credentials: every email would meet the same, and only a person can help.
        self.credentials_refused = threading.Event()
        self._lock = threading.Lock()

    def perform(self, message: dramatiq.Message[None], payload: Mapping[str, Any]) -> Disposition:
        """Take the message as far as it goes now."""
        try:
            asked = read_message(payload, message.message_id)
        except (JobError, EmailError, InvalidKey) as error:
            _log.error("message %s is buried: %s", message.message_id, error)
            return Bury(str(error))
        if isinstance(asked, Call) and asked.job not in self._functions:
            return self._unknown_job(message, asked.job)
        key = asked.emails[0].key if isinstance(asked, Group) else asked.key
        try:
            remembered = self._remembered(message, asked)
            if remembered is None:
                _log.error("key %s: its message is older than the ledger remembers; it is buried", key)
                return Bury("it is older than the ledger remembers and may have been sent: enqueue it under a new key")
            wait = self._gate.enter()
            if wait and (wait := self._shortened(remembered, wait)) > 0:
                return Retry(wait, tried=False)
            source = self._render(remembered) if isinstance(remembered, Call) else remembered
            return self._dispose(message, key, self._sender.send(source))
        except (LedgerError, BrokerError) as error:
            _log.error("key %s: %s; the job stays in the queue", key, error)
            return Retry(self._pause(message))
        finally:
            self._gate.leave()

    def stop(self) -> None:
        """Let go of the threads that wait for a turn: the process is to stop."""
        self._gate.stop()

    def _shortened(self, asked: Asked, wait: float) -> float:
        """A closed gate does not outlast the window of a key in doubt: its last replay goes through, and may settle it.

        So does what is for another provider. Decided here, as the gate knows no records; reading one costs no claim.
        """
        keys = [ready.key for ready in asked.emails] if isinstance(asked, Group) else [asked.key]
        # Of emails that go in one request, the first in doubt speaks for all: they were claimed at one time.
        due = next((due for key in keys if (due := self._ledger.passes_at(key)) is not None), None)
        return wait if due is None else min(wait, due - self._clock.now())

    def _render(self, call: Call) -> Render:
        function = self._functions[call.job]
        return Render(
            call.key,
            call.job,
            lambda: function(*call.args, **call.kwargs),
            call.in_doubt,
            call.expires_at,
            self._timeouts.get(call.job),
        )

    def _remembered(self, message: dramatiq.Message[None], asked: Asked) -> Asked | None:
        """What of a message may be sent: not what the record may be gone of, or may go while we look.

        What is live is never forgotten, however old; nothing else is claimed any more.
        """
        if not self._policy.forgets(message.message_timestamp / 1000, self._clock.now()):
            return asked
        if isinstance(asked, Group):
            live = tuple(ready for ready in asked.emails if self._is_live(ready.key))
            return Group(live) if live else None
        return asked if self._is_live(asked.key) else None

    def _is_live(self, key: str) -> bool:
        record = self._ledger.read(key)
        return record is not None and not record.ended

    def _dispose(self, message: dramatiq.Message[None], key: str, result: Result) -> Disposition:
        match result:
            case Refused(record=record):
                _log.error("key %s already stands for another email; this one is buried", record.key)
                return Bury("its key already stands for another email or job")
            case Empty():
                _log.error("key %s: the ledger does not hold its email; the message is buried", key)
                return Bury("the ledger does not hold the email of its key")
            case Later(ready_at=ready_at, record=record, cause=cause):
                self._report_later(key, record, cause)
                return Retry(max(0.0, ready_at - self._clock.now()))
            case Ended(record=record, emails=parts):
                # Before the acknowledgement, so that a crash in between repeats some and loses none.
                refused = self._enqueue_parts(parts, message.message_timestamp)
                _log.info("key %s is %s%s", key, record.state, f" ({record.reason})" if record.reason else "")
                if refused is None:
                    return Acknowledge()
                _log.error("key %s: %s; its message is buried", key, refused)
                return Bury(str(refused))

    def _enqueue_parts(self, parts: Sequence[Part], timestamp: int) -> JobTooLarge | None:
        """Enqueue the emails of a list; why the queue will never have one, while it has all others."""
        refused = None
        for part in parts:
            try:
                self._enqueue_part(part, timestamp)
            except JobTooLarge as error:
                refused = refused or error
        return refused

    def _enqueue_part(self, part: Part, timestamp: int) -> None:
        """As old as the job: a redelivery of it must not make its emails look new to `Policy.forgets`."""
        try:
            self._broker.enqueue(replace(part_message(part), message_timestamp=timestamp))
        except JobTooLarge:
            record = self._kept(part)
            if record is None:
                raise
            if not record.ended:
                self._broker.enqueue(replace(record_message(record), message_timestamp=timestamp))

    def _kept(self, part: Part) -> Record | None:
        """The record of a durable list's email, where it holds the email: what names its key is enough, and small."""
        if not isinstance(part, Ready):
            return None
        record = self._ledger.read(part.key)
        if record is None or conflicts(record, intent_of(part)):
            return None
        return record if record.ended or record.resumable else None

    def _report_later(self, key: str, record: Record, cause: object) -> None:
        if isinstance(cause, NotSent) and cause.credentials:
            with self._lock:
                first = not self.credentials_refused.is_set()
                self.credentials_refused.set()
            if first:
                _log.error(
                    "%s refuses the credentials (%s): check IDEM_%s_TOKEN; jobs stay in the queue until that is mended",
                    record.provider,
                    record.reason,
                    record.provider.upper(),
                )
        elif cause is not None:
            _log.warning("key %s comes again later: %s", key, record.reason)

    def _unknown_job(self, message: dramatiq.Message[None], name: str) -> Disposition:
        """During a rolling deployment another worker may know it; after the time to give up, a person must."""
        age = self._clock.now() - message.message_timestamp / 1000
        if age >= self._policy.give_up_seconds:
            _log.error("no worker knew the job %r for %.0f s; its message %s is buried", name, age, message.message_id)
            return Bury(f"no worker knew the job {name!r}")
        _log.error("no job is named %r here: start the worker with --app MODULE:APP that declares it", name)
        return Retry(self._pause(message))

    def _pause(self, message: dramatiq.Message[None]) -> float:
        return self._policy.backoff(1 + message.options.get("tries", 0), jitter=1.0)


class _Actor(dramatiq.Actor[..., None]):
    """Called with whatever a message holds, even an argument named `self`, which dramatiq's own call trips over."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> None:
        self.fn(*args, **kwargs)


def declare_actor(broker: dramatiq.Broker, performer: Performer) -> None:
    """Declare on `broker` the one actor that all messages name."""

    def idem(*args: Any, **payload: Any) -> None:
        message = CurrentMessage.get_current_message()
        if message is None:
            raise RuntimeError("the actor runs inside a worker only")
        if args:
            dispose(message, Bury("the message is malformed: it has positional arguments"))
        else:
            dispose(message, performer.perform(message, payload))

    dramatiq.actor(broker=broker, actor_class=_Actor, actor_name=ACTOR, queue_name=QUEUE)(idem)
