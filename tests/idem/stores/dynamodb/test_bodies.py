"""Frozen bodies: in the item, beside it in a bucket, or refused."""

from __future__ import annotations

import hashlib
import os
import uuid

import pytest
from msgspec.structs import replace

from idem.errors import BodyTooLarge, LedgerUnavailable, LedgerUnusable
from idem.protocol import State
from idem.stores.dynamodb import Bucket, DynamoStore
from idem.stores.dynamodb.bodies import LARGEST_IN_ITEM
from tests import services
from tests.records import make_record

_ENDPOINTS = {"ministack": services.ministack, "moto": services.moto}


class Place:
    """A bucket and a store that keeps large bodies in it."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.connection = services.share("s3", endpoint)
        self.name = f"idem-{uuid.uuid4().hex}"
        self.namespace = uuid.uuid4().hex
        self.connection.client.create_bucket(Bucket=self.name)
        self.bucket = Bucket(self.connection, self.name)

    def store(self, bucket: Bucket | None) -> DynamoStore:
        connection = services.share("dynamodb", self.endpoint)
        table = services.table(self.endpoint)
        return DynamoStore(connection, table, namespace=self.namespace, bucket=bucket, grouped=False)

    def objects(self) -> list[str]:
        found = self.connection.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return [item["Key"] for item in found]


@pytest.fixture(params=_ENDPOINTS)
def place(request: pytest.FixtureRequest) -> Place:
    return Place(_ENDPOINTS[request.param]())


LARGE = os.urandom(LARGEST_IN_ITEM + 1)


def test_a_small_body_stays_in_the_item(place: Place) -> None:
    store = place.store(place.bucket)
    record = make_record(body=b"a body that compresses well " * 40_000)
    assert store.swap(None, record) is None
    assert store.read("k") == record
    assert place.objects() == []


def test_a_large_body_goes_beside_it_once(place: Place) -> None:
    """Named by its record and its content, and not written again by the transitions that follow."""
    store = place.store(place.bucket)
    record = make_record(body=LARGE)
    assert store.swap(None, record) is None
    assert store.swap(None, replace(record, claim_id="c2")) == record
    following = replace(record, version=2, state=State.UNSURE)
    assert store.swap(record, following) is None
    assert store.swap(record, following) == following
    assert store.read("k") == following
    assert list(store.list(State.UNSURE, 10)) == [following]
    assert len(place.objects()) == 1
    assert store.swap(following, replace(following, version=3, state=State.SENT, body=None)) is None
    found = store.read("k")
    assert found is not None
    assert found.body is None
    assert len(place.objects()) == 1, "a worker removes nothing"


def test_two_keys_share_no_object(place: Place) -> None:
    """One may be forgotten, with its object, while the other still needs it."""
    store = place.store(place.bucket)
    for key in ("a", "b"):
        assert store.swap(None, make_record(key, body=LARGE)) is None
    assert len(place.objects()) == 2


def test_without_a_bucket_it_is_refused_and_nothing_written(place: Place) -> None:
    store = place.store(None)
    with pytest.raises(BodyTooLarge, match="configure a bucket"):
        store.swap(None, make_record(body=LARGE))
    assert store.read("k") is None


def test_without_the_bucket_that_it_is_in_it_is_unusable(place: Place) -> None:
    place.store(place.bucket).swap(None, make_record(body=LARGE))
    with pytest.raises(LedgerUnusable, match="name the bucket"):
        place.store(None).read("k")


def test_a_missing_bucket_is_named_before_anything_is_written(place: Place) -> None:
    missing = Bucket(place.connection, f"missing-{uuid.uuid4().hex}")
    store = place.store(missing)
    with pytest.raises(LedgerUnusable, match=r"missing-.* does not exist"):
        store.swap(None, make_record(body=LARGE))
    assert store.read("k") is None
    with pytest.raises(LedgerUnusable, match=r"missing-.* does not exist"):
        store.check()
    place.store(place.bucket).check()


def test_a_body_that_was_lost_or_changed_is_not_sent(place: Place) -> None:
    store = place.store(place.bucket)
    store.swap(None, make_record(body=LARGE))
    (name,) = place.objects()
    place.connection.client.put_object(Bucket=place.name, Key=name, Body=b"something else")
    with pytest.raises(LedgerUnusable, match="changed"):
        store.read("k")
    place.connection.client.delete_object(Bucket=place.name, Key=name)
    with pytest.raises(LedgerUnusable, match="lost"):
        store.read("k")


def test_a_bucket_that_does_not_answer_is_unavailable(place: Place) -> None:
    store = place.store(Bucket(services.connect("s3", "http://127.0.0.1:9"), "b"))
    with pytest.raises(LedgerUnavailable):
        store.swap(None, make_record(body=LARGE))
    assert store.read("k") is None


def test_an_object_is_named_by_its_content(place: Place) -> None:
    name = place.bucket.put("pk", b"packed")
    assert name == f"idem/{hashlib.sha256(b'pk').hexdigest()}/{hashlib.sha256(b'packed').hexdigest()}"
    assert place.bucket.put("pk", b"packed") == name
    assert place.bucket.get(name) == b"packed"


def test_an_object_that_is_there_is_never_written_over(place: Place) -> None:
    name = place.bucket.put("pk", b"packed")
    place.connection.client.put_object(Bucket=place.name, Key=name, Body=b"changed by somebody")
    assert place.bucket.put("pk", b"packed") == name
    with pytest.raises(LedgerUnusable, match="changed"):
        place.bucket.get(name)


def test_a_damaged_body_is_not_sent(place: Place) -> None:
    store = place.store(None)
    store.swap(None, make_record(body=b"body"))
    client = services.share("dynamodb", place.endpoint).client
    client.update_item(
        TableName=services.table(place.endpoint),
        Key={"pk": {"S": f"{place.namespace}\x1fk"}},
        UpdateExpression="SET b = :b",
        ExpressionAttributeValues={":b": {"B": b"no zlib"}},
    )
    with pytest.raises(LedgerUnusable, match="damaged"):
        store.read("k")
