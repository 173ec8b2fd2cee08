"""The queues: made by `create` alone, and refused with one line when they are not as they must be."""

from __future__ import annotations

import json
import uuid

import pytest

from idem.errors import BrokerError, SettingsError
from tests import services
from tests.workers.brokers.sqs.parts import Proxy, bucket, client, on_two_emulators, refusal
from workers.brokers.sqs import Bucket, Client, Names, SqsBroker


@pytest.fixture
def names() -> Names:
    return Names(services.REGION, f"s{uuid.uuid4().hex}")


def _broker(endpoint: str, names: Names, bucket: Bucket | None = None) -> SqsBroker:
    return SqsBroker(client(endpoint), names, visibility_seconds=90, bucket=bucket)


class TestNames:
    def test_standard_and_fifo(self) -> None:
        assert Names.parse("eu-west-1/mail") == Names("eu-west-1", "mail")
        fifo = Names.parse("eu-west-1/mail.fifo")
        assert (fifo.jobs, fifo.dead) == ("mail-default.fifo", "mail-default-dead.fifo")
        assert str(fifo) == "sqs://eu-west-1/mail.fifo"

    @pytest.mark.parametrize(
        "place", ["", "eu-west-1", "eu-west-1/", "/mail", "eu/a/b", "eu/a b", "eu/.fifo", "eu/" + "x" * 61]
    )
    def test_nonsense_is_refused(self, place: str) -> None:
        with pytest.raises(SettingsError, match="IDEM_BROKER_URL names no queue"):
            Names.parse(place)


@on_two_emulators
class TestCreate:
    @pytest.mark.parametrize("fifo", [False, True])
    def test_both_queues_as_they_must_be(self, endpoint: str, names: Names, *, fifo: bool) -> None:
        broker = _broker(endpoint, Names(names.region, names.prefix, fifo))
        (said, *_) = broker.create()

        assert "a job for 14 days; one that was received 1,000 times" in said
        found = broker.jobs.attributes("All")
        assert found["VisibilityTimeout"] == "90"
        assert json.loads(found["RedrivePolicy"])["maxReceiveCount"] in {1000, "1000"}
        assert found.get("FifoQueue", "false") == str(fifo).lower()

    def test_what_is_there_stays(self, endpoint: str, names: Names) -> None:
        broker = _broker(endpoint, names)
        broker.create()
        _set(broker, VisibilityTimeout="120")

        broker.create()

        assert broker.jobs.attributes("All")["VisibilityTimeout"] == "120"

    def test_nobody_else_makes_a_queue(self, endpoint: str, names: Names) -> None:
        broker = _broker(endpoint, names)
        for call in (broker.check, broker.backlog, lambda: list(broker.dead_letters())):
            with pytest.raises(BrokerError, match=r"does not exist in .*: run idem init"):
                call()


class TestCheck:
    @pytest.fixture
    def broker(self, names: Names) -> SqsBroker:
        made = _broker(services.ministack(), names)
        made.create()
        return made

    def test_the_other_type(self, broker: SqsBroker) -> None:
        fifo = _broker(services.ministack(), broker.names.other)

        with pytest.raises(
            BrokerError, match=rf"but a standard queue {broker.names.jobs} does: write IDEM_BROKER_URL=sqs"
        ):
            fifo.check()

    def test_no_redrive(self, broker: SqsBroker) -> None:
        queue = broker.jobs.name
        broker._client.calls.delete_queue(QueueUrl=broker.jobs.url())
        broker._client.calls.create_queue(QueueName=queue, Attributes={"VisibilityTimeout": "90"})

        with pytest.raises(
            BrokerError, match=rf"{queue} has no redrive policy: .* {broker.names.dead} and a maxReceive"
        ):
            broker.check()

    @pytest.mark.parametrize(
        ("attribute", "value", "problem"),
        [
            (
                "VisibilityTimeout",
                "30",
                "has a VisibilityTimeout of 30, less than IDEM_VISIBILITY_SECONDS: set it to 90",
            ),
            ("MaximumMessageSize", "262144", "has a MaximumMessageSize of 262,144, less than the size of a job"),
        ],
    )
    def test_too_little(self, broker: SqsBroker, attribute: str, value: str, problem: str) -> None:
        _set(broker, **{attribute: value})

        with pytest.raises(BrokerError, match=problem):
            broker.check()

    def test_dead_letters_after_few_receipts(self, broker: SqsBroker) -> None:
        policy = json.loads(broker.jobs.attributes("RedrivePolicy")["RedrivePolicy"]) | {"maxReceiveCount": 5}
        _set(broker, RedrivePolicy=json.dumps(policy))

        with pytest.raises(BrokerError, match="makes a dead letter after 5 receipts"):
            broker.check()

    def test_dead_letters_somewhere_else(self, broker: SqsBroker, names: Names) -> None:
        other = _broker(services.ministack(), Names(names.region, f"{names.prefix}2"))
        other.create()
        _set(broker, RedrivePolicy=other.jobs.attributes("RedrivePolicy")["RedrivePolicy"])

        with pytest.raises(BrokerError, match=rf"sends its dead letters to {other.names.dead}: make {names.dead} the"):
            broker.check()

    def test_dead_letters_kept_for_too_short(self, broker: SqsBroker) -> None:
        broker._client.calls.set_queue_attributes(
            QueueUrl=broker.dead.url(), Attributes={"MessageRetentionPeriod": "3600"}
        )

        with pytest.raises(BrokerError, match=r"keeps messages for 3,600 s and .* for 1,209,600 s"):
            broker.check()

    def test_no_encryption_is_said(self, broker: SqsBroker) -> None:
        _set(broker, SqsManagedSseEnabled="false")

        assert "is not encrypted" in broker.check()[1]

    def test_a_bucket_that_is_not_there(self, broker: SqsBroker) -> None:
        names, endpoint = broker.names, services.ministack()
        good = bucket(endpoint)
        assert _broker(endpoint, names, good).check()
        lost = Bucket(Client("s3", services.REGION, endpoint), f"gone-{uuid.uuid4().hex}")

        with pytest.raises(BrokerError, match=r"the S3 bucket gone-.* does not exist in this region: create it"):
            _broker(endpoint, names, lost).check()
        lost.close()
        good.close()

    @pytest.mark.parametrize(
        ("code", "problem"),
        [
            ("AccessDeniedException", "may not do sqs:GetQueueUrl; allow them that action"),
            ("ExpiredToken", "refuses expired AWS credentials"),
            ("InvalidClientTokenId", "refuses the AWS credentials"),
        ],
    )
    def test_credentials(self, proxy: Proxy, names: Names, code: str, problem: str) -> None:
        proxy.answer("GetQueueUrl", refusal(code))

        with pytest.raises(BrokerError, match=problem):
            _broker(proxy.endpoint, names).check()


def test_both_queues_are_encrypted(names: Names) -> None:
    """Fauxqs does not know that attribute."""
    broker = _broker(services.ministack(), names)

    assert len(broker.create()) == 1
    assert broker.jobs.attributes("All")["SqsManagedSseEnabled"] == "true"
    assert broker.dead.attributes("All")["SqsManagedSseEnabled"] == "true"


def test_there_is_one_queue(names: Names) -> None:
    with pytest.raises(BrokerError, match="none named other"):
        _broker("http://127.0.0.1:1", names).declare_queue("other")


def _set(broker: SqsBroker, **attributes: str) -> None:
    broker._client.calls.set_queue_attributes(QueueUrl=broker.jobs.url(), Attributes=attributes)
