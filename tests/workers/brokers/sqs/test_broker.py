"""What the broker promises, on two emulators."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from itertools import islice

import pytest

from idem.bulk import Ready
from idem.errors import BrokerError
from tests import services
from tests.workers.brokers.sqs.parts import (
    VISIBILITY_SECONDS,
    Proxy,
    Side,
    bucket,
    on_the_other_emulator,
    on_two_emulators,
    opened,
)
from tests.workers.parts import make_email, wait_for
from workers.brokers.base import UNSAID_SECONDS, Acknowledge, Bury, Retry
from workers.brokers.sqs import Names
from workers.brokers.sqs.broker import _Consumer
from workers.brokers.sqs.settling import Limits
from workers.jobs import ACTOR, QUEUE, Call, email_message, read_message


@on_the_other_emulator
class TestSettling:
    def test_an_acknowledged_message_is_gone(self, side: Side) -> None:
        side.enqueue()
        message = side.take()
        assert side.counts() == (0, 0, 1, 0)

        side.end(message, Acknowledge())

        assert side.counts() == (0, 0, 0, 0)

    def test_a_message_comes_as_it_was_sent(self, side: Side) -> None:
        sent = side.enqueue()
        message = side.take()

        assert (message.message_id, message.kwargs) == (sent.message_id, sent.kwargs)
        assert message.message_timestamp == sent.message_timestamp
        assert message.options == {"tries": 0}

    def test_a_retry_is_the_same_message_later_and_counted(self, side: Side) -> None:
        sent = side.enqueue()
        due = time.time() + 1
        side.end(side.take(), Retry(1.0))
        assert side.counts() == (0, 0, 1, 0)

        again = side.take()

        assert time.time() >= due
        assert again.message_id == sent.message_id
        assert again.options == {"tries": 1}

    def test_what_nobody_spoke_of_comes_again(self, side: Side) -> None:
        side.enqueue()
        side.consumer.ack(side.take())
        side.flush()

        assert side.counts() == (0, 0, 1, 0)

    def test_a_buried_message_is_kept_with_its_reason(self, side: Side) -> None:
        sent = side.enqueue()
        side.end(side.take(), Bury("its key stands for ann@example.com \x00 \ud800"))

        assert side.counts() == (0, 0, 0, 1)
        (found,) = side.broker.dead_letters()
        assert sent.message_id in found.payload.decode()
        assert found.reason.startswith("its key stands for <address>")

    def test_an_actor_that_is_not_ours_is_buried(self, side: Side) -> None:
        message = side.enqueue().copy(actor_name="theirs")
        side.end(side.take(), Acknowledge())
        side.broker.enqueue(message)
        side.consumer.nack(side.take())
        side.flush()

        assert "the actor theirs" in next(side.broker.dead_letters()).reason
        assert side.counts() == (0, 0, 0, 1)


class TestVisibility:
    @on_two_emulators
    def test_a_message_stays_hidden_while_it_is_in_hand(self, side: Side) -> None:
        """Prefetched ones too: nobody else gets either for longer than the timeout."""
        side.enqueue(1)
        side.enqueue(2)
        first = side.take()
        with opened(side.endpoint, side.names) as other:
            assert other.look(VISIBILITY_SECONDS * 1.8) is None

        side.end(first, Acknowledge())
        side.end(side.take(), Acknowledge())
        assert side.counts() == (0, 0, 0, 0)

    @on_the_other_emulator
    def test_what_a_dead_process_had_is_seen_by_another(self, side: Side) -> None:
        sent = side.enqueue()
        side.take()
        side.parts._holding.stop()  # what a kill does to it
        side.broker.stop_receiving()

        with opened(side.endpoint, side.names) as other:
            again = other.take()

            assert (again.message_id, again.options) == (sent.message_id, {"tries": 1})

    @on_the_other_emulator
    def test_that_takes_no_longer_than_was_asked_for(self, endpoint: str) -> None:
        """However long the queue hides messages by itself."""
        with opened(endpoint, visibility_seconds=600, hidden_seconds=VISIBILITY_SECONDS) as side:
            sent = side.enqueue()
            side.take()
            side.parts._holding.stop()
            side.broker.stop_receiving()

            with opened(endpoint, side.names, visibility_seconds=600) as other:
                assert other.take(10 * VISIBILITY_SECONDS).message_id == sent.message_id

    def test_a_message_that_somebody_else_has_by_now_is_no_obstacle(self, side: Side) -> None:
        """By a receipt that is stale, neither a delete nor anything else stalls, or takes it from the other one."""
        sent = side.enqueue()
        stale = [side.take()]
        side.parts._holding.stop()  # its timeout ends while it is worked on
        side.broker.stop_receiving()
        with opened(side.endpoint, side.names) as other:
            held = other.take()
            side.end(stale[0], Acknowledge())
            assert sum(side.counts()) == 1
            side.end(stale[0], Retry(0.0))
            other.end(held, Retry(0.0))

            again = other.take()

            assert again.message_id == sent.message_id
            other.end(again, Acknowledge())
            assert sum(side.counts()) == 0

    def test_prolonging_ends_where_sqs_ends_it(self, endpoint: str) -> None:
        with opened(endpoint, limits=Limits(linger_seconds=0.0, longest_hidden_seconds=3.0)) as side:
            side.enqueue()
            side.take()

            assert side.take().options == {"tries": 1}


class TestDelays:
    def test_a_delay_longer_than_sqs_has_is_chained_and_not_early(self, proxy: Proxy) -> None:
        """No hop counts as a try, and every one of them is a new message, which SQS does not let age."""
        with opened(proxy.endpoint, limits=Limits(longest_delay_seconds=1, linger_seconds=0.0)) as side:
            due = time.time() + 2.2
            sent = side.enqueue(delay=2200)

            message = side.take()

            assert time.time() >= due
            assert (message.message_id, message.options) == (sent.message_id, {"tries": 0})
            assert proxy.count()["SendMessageBatch"] >= 3
            side.end(message, Acknowledge())
            assert side.counts() == (0, 0, 0, 0)

    @on_the_other_emulator
    def test_a_delay_is_kept_by_sqs(self, side: Side) -> None:
        due = time.time() + 1.2
        side.enqueue(delay=1200)
        assert side.counts() == (0, 1, 0, 0)

        side.take()

        assert time.time() >= due

    def test_a_retry_longer_than_sqs_can_hide_is_sent_anew(self, endpoint: str) -> None:
        with opened(endpoint, limits=Limits(linger_seconds=0.0, longest_hidden_seconds=1.0)) as side:
            sent = side.enqueue()
            due = time.time() + 2
            side.end(side.take(), Retry(2.0))
            assert side.counts() == (0, 1, 0, 0)

            again = side.take()

            assert time.time() >= due
            assert (again.message_id, again.options) == (sent.message_id, {"tries": 1})

    def test_a_hop_that_cannot_be_sent_stays_where_it_is(self, proxy: Proxy) -> None:
        with opened(proxy.endpoint, limits=Limits(longest_delay_seconds=1, linger_seconds=0.0)) as side:
            sent = side.enqueue(delay=2000)
            due = time.time() + 1.9
            proxy.answer("SendMessageBatch", lambda _: {"status": 503, "json": {"__type": "ServiceUnavailable"}})

            message = side.take()

            assert time.time() >= due
            assert message.message_id == sent.message_id


class TestWear:
    """A queue that makes dead letters after six receipts: after three of them, a retry is sent anew."""

    @pytest.fixture
    def worn(self) -> Iterator[Side]:
        with opened(services.ministack()) as made:
            arn = made.broker.dead.attributes("QueueArn")["QueueArn"]
            policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 6})
            made.client.calls.set_queue_attributes(
                QueueUrl=made.broker.jobs.url(), Attributes={"RedrivePolicy": policy}
            )
            made.use(_Consumer(made.broker, QUEUE, 4, 0.05, 6))
            yield made

    def test_retries_never_make_a_dead_letter(self, worn: Side) -> None:
        sent = worn.enqueue()
        for tries in range(14):
            message = worn.take()
            assert message.options == {"tries": tries}
            worn.end(message, Retry(0.0))

        assert worn.take().message_id == sent.message_id
        assert worn.counts() == (0, 0, 1, 0)

    def test_what_is_never_settled_does(self, worn: Side) -> None:
        """The backstop: a message that kills its workers, or about which a mistake of ours says nothing."""
        sent = worn.enqueue()
        for _ in range(6):
            worn.consumer.requeue([worn.take()])
            worn.flush()

        wait_for(lambda: next(worn.consumer) is None and worn.counts() == (0, 0, 0, 1))
        (found,) = worn.broker.dead_letters()
        assert sent.message_id in found.payload.decode()
        assert "received too often" in found.reason

    def test_silence_is_counted_to_the_end(self, worn: Side) -> None:
        worn.enqueue()
        message = worn.take()
        message.delivery.receives = 5
        worn.end(message, Retry(UNSAID_SECONDS, said=False))

        assert worn.counts() == (0, 0, 1, 0)

    def test_an_old_message_is_sent_anew(self) -> None:
        with opened(services.ministack(), limits=Limits(linger_seconds=0.0, oldest_seconds=0.001)) as side:
            sent = side.enqueue()
            side.end(side.take(), Retry(1.0))
            assert side.counts() == (0, 1, 0, 0)

            again = side.take()

            assert (again.message_id, again.options) == (sent.message_id, {"tries": 1})


class TestForeign:
    EMAIL = {"from": "shop@example.com", "to": ["r@example.com"], "subject": "S", "text": "T"}  # noqa: RUF012 - read only

    def test_a_plain_object_is_a_job_under_its_message_id(self, side: Side) -> None:
        sent = side.send_raw(json.dumps({"job": "report", "args": ["2026-11-22"]}))
        message = side.take()

        assert (message.actor_name, message.queue_name) == (ACTOR, QUEUE)
        call = read_message(message.kwargs, message.message_id)
        assert call == Call(sent, "report", ["2026-11-22"], {})

    def test_its_key_stays_the_same_when_it_is_sent_anew(self) -> None:
        with opened(services.ministack(), limits=Limits(linger_seconds=0.0, oldest_seconds=0.001)) as side:
            sent = side.send_raw(json.dumps({"email": self.EMAIL}))
            side.end(side.take(), Retry(0.0))

            assert side.take().message_id == sent

    def test_it_is_as_old_as_its_first_copy(self, side: Side) -> None:
        """The ledger must not take for new what it may have forgotten."""
        before = int(time.time() * 1000)
        side.send_raw(json.dumps({"email": self.EMAIL}))
        first = side.take()
        time.sleep(0.01)
        side.end(first, Retry(0.0, tried=False))
        second = side.take()
        side.end(second, Bury("no"))
        (letter,) = side.broker.dead_letters()
        side.broker.requeue_dead(letter)
        third = side.take()

        # The clocks of the emulators are this machine's.
        assert before <= first.message_timestamp <= int(time.time() * 1000)
        assert {second.message_timestamp, third.message_timestamp} == {first.message_timestamp}
        assert third.delivery.sent_at * 1000 > first.message_timestamp

    def test_an_email_with_a_key(self, side: Side) -> None:
        side.send_raw(json.dumps({"email": self.EMAIL, "key": "welcome-42"}))
        message = side.take()
        ready = read_message(message.kwargs, message.message_id)

        assert isinstance(ready, Ready)
        assert ready.key == "welcome-42"
        assert ready.email.subject == "S"

    def test_an_envelope_of_sns(self, side: Side) -> None:
        inner = json.dumps({"job": "report", "kwargs": {"day": 1}})
        side.send_raw(json.dumps({"Type": "Notification", "MessageId": "sns-1", "TopicArn": "arn:t", "Message": inner}))
        message = side.take()

        assert message.message_id == "sns-1"
        assert message.kwargs == {"job": "report", "kwargs": {"day": 1}}

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ("hello", "it is not JSON"),
            ("[" * 5000, "it is not JSON"),
            ("[1]", "it is JSON, but not an object"),
            ('{"to": "ann@example.com"}', "neither `job` nor `email`"),
            ('{"Type": "Notification", "Message": "hi"}', "the message in its SNS envelope is not JSON"),
            ('{"Type": "SubscriptionConfirmation", "Message": "x"}', "neither `job` nor `email`"),
            ('{"queue_name":"default","actor_name":1}', "looks like one"),
            ('{"queue_name":', "looks like one"),
            ('{"idem_body_sha256":"../../etc"}', "it names no body in a bucket"),
        ],
    )
    def test_what_cannot_be_read_is_kept_with_the_reason(self, body: str, reason: str) -> None:
        with opened(services.ministack()) as side:
            side.send_raw(body)
            wait_for(lambda: next(side.consumer) is None and side.counts() == (0, 0, 0, 1))

            (found,) = side.broker.dead_letters()
            assert reason in found.reason
            assert found.payload.decode() == body
            assert "example.com" not in found.reason

    def test_attributes_that_make_no_sense_count_as_absent(self, side: Side) -> None:
        sent = side.send_raw(json.dumps({"job": "j"}), due="soon", tries="-1")
        message = side.take()

        assert (message.message_id, message.options) == (sent, {"tries": 0})

    def test_options_of_a_message_are_not_obeyed(self, side: Side) -> None:
        message, _ = email_message(make_email(), "k")
        side.broker.enqueue(message.copy(options={"eta": 1, "throws": "x", "tries": 9, "pipe_target": {}}))

        assert side.take().options == {"tries": 0}


class TestBodies:
    def test_a_large_job_travels_by_the_bucket(self) -> None:
        endpoint = services.ministack()
        with opened(endpoint, bucket=bucket(endpoint)) as side:
            message, _ = email_message(make_email(text="x" * 3_000_000), "large")
            side.broker.enqueue(message)

            taken = side.take()

            assert taken.kwargs == message.kwargs
            side.end(taken, Retry(0.0))
            side.end(side.take(), Acknowledge())
            assert side.counts() == (0, 0, 0, 0)

    def test_without_a_bucket_it_is_refused(self, side: Side) -> None:
        message, _ = email_message(make_email(text="x" * 1_100_000), "large")

        with pytest.raises(
            BrokerError, match=r"a job of 1,1\d\d,\d{3} bytes is too large for SQS, .* IDEM_BODIES_BUCKET"
        ):
            side.broker.enqueue(message)

    def test_the_largest_that_sqs_takes(self, side: Side) -> None:
        message, _ = email_message(make_email(text="x" * 1_043_000), "large")
        side.broker.enqueue(message)

        assert side.take().kwargs == message.kwargs

    def test_a_worker_without_the_bucket_leaves_it_alone(self) -> None:
        endpoint = services.ministack()
        with opened(endpoint, bucket=bucket(endpoint)) as side, opened(endpoint, side.names) as other:
            message, _ = email_message(make_email(text="x" * 2_000_000), "large")
            side.broker.enqueue(message)

            assert other.look(1.0) is None
            assert side.counts() == (0, 0, 1, 0)

    def test_a_body_that_is_gone_is_buried(self) -> None:
        endpoint = services.ministack()
        with opened(endpoint, bucket=bucket(endpoint)) as side:
            side.send_raw(json.dumps({"idem_body_sha256": "0" * 64}, separators=(",", ":")))
            wait_for(lambda: next(side.consumer) is None and side.counts() == (0, 0, 0, 1))

            assert "is not in the S3 bucket" in next(side.broker.dead_letters()).reason


@on_two_emulators
class TestDeadLetters:
    def test_they_say_how_often_they_were_tried_however_often_they_were_looked_at(self, side: Side) -> None:
        side.enqueue()
        side.end(side.take(), Retry(0.0))
        side.end(side.take(), Retry(0.0, tried=False))
        side.end(side.take(), Bury("no"))

        for _ in range(3):
            (letter,) = side.broker.dead_letters()
            assert (letter.key, letter.job, letter.tries) == ("key-1", "email", 1)
        assert side.broker.requeue_dead(letter)
        assert side.take().options == {"tries": 0}

    def test_they_are_listed_and_stay(self, side: Side) -> None:
        for number in range(12):
            side.enqueue(number)
            side.end(side.take(), Bury(f"reason {number}"))

        for _ in range(2):
            found = list(side.broker.dead_letters())
            assert {item.reason for item in found} == {f"reason {number}" for number in range(12)}
        assert len(list(islice(side.broker.dead_letters(), 5))) == 5
        wait_for(lambda: len(list(side.broker.dead_letters())) == 12)

    def test_one_is_requeued_under_its_key(self, side: Side) -> None:
        sent = side.send_raw(json.dumps({"job": "j"}))
        side.end(side.take(), Bury("no"))
        side.enqueue()
        side.end(side.take(), Bury("nor this"))
        (found,) = [item for item in side.broker.dead_letters() if item.reason == "no"]
        assert (found.key, found.job) == (sent, "j")

        assert side.broker.requeue_dead(found)

        assert side.take().message_id == sent
        assert [item.reason for item in side.broker.dead_letters()] == ["nor this"]
        assert not side.broker.requeue_dead(found)

    def test_a_receipt_that_is_over_is_replaced(self, side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
        """A person thinks for longer than SQS keeps the letters hidden, and another one looks in between."""
        monkeypatch.setattr("workers.brokers.sqs.dead._HIDDEN_SECONDS", 1)
        for number in range(3):
            side.enqueue(number)
            side.end(side.take(), Bury(f"reason {number}"))
        listed = side.broker.dead_letters()
        letters = [next(listed) for _ in range(3)]
        # Each has another receipt then.
        wait_for(lambda: len(list(side.broker.dead_letters())) == 3)
        first, second, third = sorted(letters, key=lambda letter: letter.reason)

        assert side.broker.requeue_dead(first)
        assert side.broker.drop_dead(second)

        assert side.take().kwargs["key"] == "key-0"
        wait_for(lambda: [letter.id for letter in side.broker.dead_letters()] == [third.id])
        assert [side.broker.requeue_dead(first), side.broker.drop_dead(second)] == [False, False]

    def test_one_is_dropped(self, side: Side) -> None:
        side.enqueue()
        side.end(side.take(), Bury("no"))
        (found,) = side.broker.dead_letters()

        assert side.broker.drop_dead(found)

        assert not side.broker.drop_dead(found)
        assert side.counts() == (0, 0, 0, 0)


@on_two_emulators
class TestFifo:
    @pytest.fixture
    def names(self) -> Names:
        return Names(services.REGION, f"f{time.time_ns()}", fifo=True)

    def test_jobs_of_different_keys_do_not_wait_for_each_other(self, endpoint: str, names: Names) -> None:
        with opened(endpoint, names) as side:
            side.enqueue(1)
            side.enqueue(2)
            first, second = side.take(), side.take()

            assert {first.kwargs["key"], second.kwargs["key"]} == {"key-1", "key-2"}

    def test_jobs_of_one_key_do(self, endpoint: str, names: Names) -> None:
        with opened(endpoint, names) as side:
            sent = [side.enqueue(1), side.enqueue(1)]
            taken = side.take()
            assert taken.message_id == sent[0].message_id
            side.end(taken, Acknowledge())

            assert side.take().message_id == sent[1].message_id

    def test_delays_and_burials(self, endpoint: str, names: Names) -> None:
        with opened(endpoint, names, limits=Limits(linger_seconds=0.0, longest_hidden_seconds=1.0)) as side:
            due = time.time() + 2
            side.enqueue(1, delay=2000)
            message = side.take()
            assert time.time() >= due
            side.end(message, Bury("no"))

            assert [item.reason for item in side.broker.dead_letters()] == ["no"]

    def test_a_job_sent_anew_keeps_its_group_and_is_not_taken_for_a_copy(self, endpoint: str, names: Names) -> None:
        with opened(endpoint, names, limits=Limits(linger_seconds=0.0, oldest_seconds=0.001)) as side:
            sent = side.enqueue(1)
            first = side.take()
            for _ in range(3):
                side.end(first, Retry(0.0))
                second = side.take()
                assert second.message_id == sent.message_id
                assert second.delivery.group == first.delivery.group
                first = second


@on_the_other_emulator
class TestShutdown:
    def test_what_was_not_begun_is_handed_back_and_deletes_are_done(self, endpoint: str) -> None:
        with opened(endpoint, limits=Limits(linger_seconds=60.0)) as side:
            for number in range(6):
                side.enqueue(number)
            taken = [side.take() for _ in range(4)]
            wait_for(lambda: side.counts()[2] == 6)
            for message in taken[:2]:
                side.end(message, Acknowledge())
            assert side.counts() == (0, 0, 6, 0)

            side.consumer.requeue(taken[2:3])
            side.consumer.close()

            # One is still being worked on when the process ends: it comes back by itself.
            assert side.counts() == (3, 0, 1, 0)

    def test_a_stopping_worker_receives_nothing_more(self, side: Side) -> None:
        side.enqueue(1)
        side.end(side.take(), Acknowledge())
        side.broker.stop_receiving()
        wait_for(lambda: not any(thread.is_alive() for thread in side.parts.receiving._threads))
        side.enqueue(2)

        assert side.look(0.5) is None
        assert side.counts() == (1, 0, 0, 0)


def test_nothing_is_received_that_no_thread_is_free_for(side: Side) -> None:
    """Four threads, and eight of a prefetch, for which there was no room after a full receipt."""
    side.broker.jobs_sender.send_all(
        [side.broker._outgoing(email_message(make_email(n), None)[0], None) for n in range(40)]
    )
    side.take()

    assert side.parts._holding.reserve(8, 0.0) == 0
    assert side.counts() == (30, 0, 10, 0)


def test_many_threads_send_together(proxy: Proxy) -> None:
    with opened(proxy.endpoint) as side:
        threads = [threading.Thread(target=side.enqueue, args=(number,)) for number in range(60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert side.counts() == (60, 0, 0, 0)
        assert proxy.count()["SendMessageBatch"] < 40


def test_emptiness_takes_several_readings(side: Side) -> None:
    assert not side.broker.is_empty()
    side.enqueue()
    assert not side.broker.is_empty()
    side.end(side.take(), Acknowledge())

    assert not side.broker.is_empty()
