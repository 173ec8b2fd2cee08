"""What SQS refuses, in part or as a whole, and answers that are lost: nothing is, and nobody is held up."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from dramatiq.errors import ConnectionClosed

from idem.errors import BrokerError, BrokerUnavailable
from tests.workers.brokers.sqs.parts import Answer, Fault, Proxy, Side, client, refusal, times
from tests.workers.parts import make_email, wait_for
from workers.brokers.base import Acknowledge, Bury, Retry
from workers.brokers.sqs import Bucket, Client
from workers.brokers.sqs.failures import KINDS, Kind, Place, failure, kind_of, translated
from workers.jobs import email_message

_UNAVAILABLE = refusal("ServiceUnavailable", status=503)


def _lost(_: Answer) -> None:
    """It was done, and nobody hears of it."""


def _refuse_first(code: str) -> Fault:
    """Of a batch that was done, the first is said to have failed."""

    def change(answer: Answer) -> Answer:
        first, *rest = answer["Successful"]
        return {"Successful": rest, "Failed": [{"Id": first["Id"], "Code": code, "SenderFault": False}]}

    return change


class TestSends:
    @pytest.mark.parametrize("fault", [_lost, lambda _: {}, lambda _: {"Successful": []}])
    def test_a_send_of_which_nothing_is_known_is_not_repeated_in_secret(
        self, proxy: Proxy, faulty: Side, fault: Fault
    ) -> None:
        """The caller is told, and repeats it under the same key."""
        proxy.change("SendMessageBatch", fault)

        with pytest.raises(BrokerUnavailable):
            faulty.enqueue()

        assert proxy.count()["SendMessageBatch"] == 1
        assert faulty.counts() == (1, 0, 0, 0)

    def test_each_message_of_a_batch_has_its_own_answer(self, proxy: Proxy, faulty: Side) -> None:
        proxy.change("SendMessageBatch", _refuse_first("InternalError"))
        messages = [email_message(make_email(number), None)[0] for number in range(4)]

        results = faulty.broker.enqueue_many(messages)

        assert [type(result) for result in results] == [BrokerUnavailable, *[type(None)] * 3]

    def test_of_threads_that_send_together_only_those_hear_of_a_failure_that_it_concerns(
        self, proxy: Proxy, faulty: Side
    ) -> None:
        def refuse_odd(answer: Answer) -> Answer:
            return {
                "Successful": [one for one in answer["Successful"] if int(one["Id"]) % 2 == 0],
                "Failed": [
                    {"Id": one["Id"], "Code": "InternalError"} for one in answer["Successful"] if int(one["Id"]) % 2
                ],
            }

        proxy.change("SendMessageBatch", refuse_odd)
        results: list[bool] = []
        threads = [threading.Thread(target=lambda n=n: results.append(_sent(faulty, n))) for n in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        sizes = [len(asked["Entries"]) for action, asked in proxy.requests if action == "SendMessageBatch"]
        assert sum(sizes) == 40
        assert results.count(False) == sum(size // 2 for size in sizes)

    def test_a_batch_holds_one_mib_at_the_most(self, proxy: Proxy, faulty: Side) -> None:
        messages = [email_message(make_email(number, text="x" * 300_000), None)[0] for number in range(7)]

        assert faulty.broker.enqueue_many(messages) == [None] * 7

        assert [len(asked["Entries"]) for action, asked in proxy.requests if action == "SendMessageBatch"] == [3, 3, 1]

    def test_a_burial_that_cannot_be_sent_is_tried_again(
        self, proxy: Proxy, faulty: Side, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("workers.brokers.sqs.settling.UNSAID_SECONDS", 1.0)
        faulty.enqueue()
        message = faulty.take()
        proxy.answer("SendMessageBatch", _UNAVAILABLE)
        faulty.end(message, Bury("no"))
        assert faulty.counts() == (0, 0, 1, 0)
        proxy.mend()

        faulty.end(faulty.take(), Bury("no"))

        assert faulty.counts() == (0, 0, 0, 1)


class TestDeletes:
    @pytest.mark.parametrize("fault", [_UNAVAILABLE, refusal("AccessDeniedException"), refusal("ExpiredToken")])
    def test_a_delete_that_fails_is_done_again_and_holds_nobody_up(
        self, proxy: Proxy, faulty: Side, fault: Fault
    ) -> None:
        faulty.enqueue()
        proxy.answer("DeleteMessageBatch", times(2, fault))
        faulty.end(faulty.take(), Acknowledge())
        assert faulty.counts() == (0, 0, 1, 0)

        wait_for(lambda: next(faulty.consumer) is None and faulty.counts() == (0, 0, 0, 0))

    def test_what_cannot_be_deleted_comes_again(self, proxy: Proxy, faulty: Side) -> None:
        sent = faulty.enqueue()
        proxy.answer("DeleteMessageBatch", _UNAVAILABLE)
        faulty.end(faulty.take(), Acknowledge())

        again = faulty.take()

        assert again.message_id == sent.message_id
        faulty.flush()
        before = proxy.count()["DeleteMessageBatch"]
        faulty.flush()
        assert proxy.count()["DeleteMessageBatch"] == before

    def test_one_of_ten_that_fails_is_done_again_alone(self, proxy: Proxy, faulty: Side) -> None:
        proxy.answer("DeleteMessageBatch", _delete_all_but_first(proxy))
        for number in range(10):
            faulty.enqueue(number)
        for _ in range(10):
            faulty.parts.ack(_said(faulty.take()))

        wait_for(lambda: next(faulty.consumer) is None and faulty.counts() == (0, 0, 0, 0))

        sizes = [len(asked["Entries"]) for action, asked in proxy.requests if action == "DeleteMessageBatch"]
        assert sum(sizes) == 11

    def test_one_that_is_stale_is_let_go(self, proxy: Proxy, faulty: Side) -> None:
        faulty.enqueue()
        proxy.change("DeleteMessageBatch", _refuse_first("ReceiptHandleIsInvalid"))
        faulty.end(faulty.take(), Acknowledge())
        faulty.flush()

        assert proxy.count()["DeleteMessageBatch"] == 1

    def test_a_retry_that_fails_is_done_again(self, proxy: Proxy, faulty: Side) -> None:
        sent = faulty.enqueue()
        proxy.answer("ChangeMessageVisibilityBatch", times(1, _UNAVAILABLE))
        faulty.end(faulty.take(), Retry(0.0))

        assert faulty.take().message_id == sent.message_id


class TestStopping:
    def test_what_fails_is_done_again_while_there_is_time(self, proxy: Proxy, faulty: Side) -> None:
        for number in range(4):
            faulty.enqueue(number)
        taken = [faulty.take() for _ in range(4)]
        proxy.answer("DeleteMessageBatch", times(5, _UNAVAILABLE))
        for message in taken:
            faulty.end(message, Acknowledge())

        faulty.consumer.close()

        assert faulty.counts() == (0, 0, 0, 0)

    def test_a_queue_that_refuses_is_not_asked_without_end(self, proxy: Proxy, faulty: Side) -> None:
        sent = faulty.enqueue()
        proxy.answer("DeleteMessageBatch", _UNAVAILABLE)
        faulty.end(faulty.take(), Acknowledge())

        faulty.consumer.close()

        assert 3 <= proxy.count()["DeleteMessageBatch"] <= 10
        faulty.restart()
        assert faulty.take().message_id == sent.message_id


class TestReceipts:
    @pytest.mark.parametrize("fault", [_UNAVAILABLE, refusal("OverLimit"), refusal("ExpiredToken")])
    def test_a_receipt_that_fails_is_tried_again(
        self, proxy: Proxy, faulty: Side, fault: Fault, caplog: pytest.LogCaptureFixture
    ) -> None:
        proxy.answer("ReceiveMessage", times(1, fault))
        faulty.enqueue()

        faulty.take()

        assert "no job can be received" in caplog.text

    def test_a_receipt_that_is_denied_names_the_action(
        self, proxy: Proxy, faulty: Side, caplog: pytest.LogCaptureFixture
    ) -> None:
        message = "User: arn:x is not authorized to perform: sqs:ReceiveMessage on resource: arn:y"
        proxy.answer("ReceiveMessage", times(1, refusal("AccessDeniedException", message)))
        faulty.enqueue()

        faulty.take()

        assert "may not do sqs:ReceiveMessage; allow them that action" in caplog.text

    def test_what_was_received_without_our_knowing_comes_again(self, proxy: Proxy, faulty: Side) -> None:
        sent = faulty.enqueue()
        proxy.change("ReceiveMessage", _lose_first_message())

        assert faulty.take().message_id == sent.message_id

    def test_a_queue_that_is_gone_is_a_lost_connection(self, proxy: Proxy, faulty: Side) -> None:
        proxy.answer("GetQueueAttributes", refusal("QueueDoesNotExist"))

        with pytest.raises(ConnectionClosed):
            _ = faulty.consumer

    def test_prolonging_survives_failures(self, proxy: Proxy, faulty: Side) -> None:
        faulty.enqueue()
        message = faulty.take()
        proxy.answer("ChangeMessageVisibilityBatch", times(1, _UNAVAILABLE))
        wait_for(lambda: proxy.count()["ChangeMessageVisibilityBatch"] >= 4)

        assert faulty.counts() == (0, 0, 1, 0)
        faulty.end(message, Acknowledge())


@pytest.mark.parametrize("code", KINDS)
def test_every_code_says_what_to_do(code: str) -> None:
    place = Place("the SQS queue q", "run idem init")
    error = failure(place, "sqs:SendMessage", {"Code": f"AWS.SimpleQueueService.{code}", "Message": "ann@example.com"})

    assert str(error).startswith("the SQS queue q")
    assert "example.com" not in str(error)
    assert isinstance(error, BrokerUnavailable) == (KINDS[code] in {Kind.BUSY, Kind.EXPIRED, Kind.STALE})


def test_codes_that_are_new_to_us() -> None:
    assert kind_of({"Code": "com.amazonaws.sqs#Brandnew"}, 400) is Kind.WRONG
    assert kind_of({"Code": "Brandnew"}, 500) is Kind.BUSY
    assert kind_of({}) is Kind.BUSY


def test_whatever_is_raised_is_one_of_ours() -> None:
    place = Place("the SQS queue q", "run idem init")
    with (
        pytest.raises(BrokerUnavailable, match=r"does not answer \(ValueError\)"),
        translated(place, "sqs:SendMessage"),
    ):
        raise ValueError


def test_credentials_that_expire_in_the_middle_lose_nothing(
    proxy: Proxy, faulty: Side, caplog: pytest.LogCaptureFixture
) -> None:
    said = r"^the SQS queue \S+ refuses expired AWS credentials \(ExpiredToken\): renew them$"
    first = faulty.enqueue(1)
    message = faulty.take()
    expired = refusal("ExpiredToken", "The security token included in the request is expired", status=403)
    for action in ("SendMessageBatch", "ReceiveMessage", "ChangeMessageVisibilityBatch", "DeleteMessageBatch"):
        proxy.answer(action, expired)
    with pytest.raises(BrokerUnavailable, match=said):
        faulty.enqueue(2)
    faulty.end(message, Retry(0.0))
    proxy.mend()

    second = faulty.enqueue(2)
    taken = [faulty.take(), faulty.take()]
    for one in taken:
        faulty.end(one, Acknowledge())

    assert {one.message_id for one in taken} == {first.message_id, second.message_id}
    assert "what it was to do with 1 messages is tried again" in caplog.text
    wait_for(lambda: next(faulty.consumer) is None and faulty.counts() == (0, 0, 0, 0))


def test_nobody_listens_there() -> None:
    faulty = Client("sqs", "us-east-1", "http://127.0.0.1:1")
    client("http://127.0.0.1:1")
    with pytest.raises(BrokerUnavailable, match="the S3 bucket b does not answer"):
        Bucket(faulty, "b").check()
    faulty.close()


def test_settings_that_boto_refuses() -> None:
    with pytest.raises(BrokerError, match="check the region, the profile and the endpoint"):
        _ = Client("sqs", "us-east-1", "no-url").calls


def _sent(side: Side, number: int) -> bool:
    try:
        side.enqueue(number)
    except BrokerUnavailable:
        return False
    return True


def _said(message: Any) -> Any:
    message.__dict__["idem_disposition"] = Acknowledge()
    return message


def _delete_all_but_first(proxy: Proxy) -> Fault:
    """Once; the one that fails is not deleted."""
    left = [1]

    def fault(asked: Answer) -> Answer | None:
        if left.pop() if left else 0:
            first, *rest = asked["Entries"]
            for entry in rest:
                proxy_client = client(proxy.endpoint).calls
                proxy_client.delete_message(QueueUrl=asked["QueueUrl"], ReceiptHandle=entry["ReceiptHandle"])
            failed = [{"Id": first["Id"], "Code": "InternalError", "SenderFault": False}]
            return {"status": 200, "json": {"Successful": [{"Id": entry["Id"]} for entry in rest], "Failed": failed}}
        return None

    return fault


def _lose_first_message() -> Fault:
    """The answer to the first receipt that brought a message is lost."""
    left = [1]
    return lambda answer: None if answer.get("Messages") and left and left.pop() else answer
