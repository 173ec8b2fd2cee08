"""What is particular to the Redis store: its server's word, its lists, its retention, and a cluster's slots."""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import random
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from msgspec.structs import replace
from redis.cluster import RedisCluster
from redis.crc import key_slot

from idem.bulk import Ready
from idem.errors import LedgerError, LedgerUnavailable, LedgerUnusable, SettingsError
from idem.ledger import Claim, Ledger
from idem.outcome import Accepted
from idem.policy import Policy
from idem.protocol import ENDED, Intent, Record, State
from idem.send import Ended, Render, Sender
from idem.stores import redis as module
from idem.stores.redis import RedisStore, Sync, connector
from tests import valkey
from tests.fakes import FakeClock, FakeProvider, make_email
from tests.ports import free_port
from tests.records import make_record
from tests.valkey import DURABLE, Cluster, Proxy, Server, ask, wait_for

_SPAWN = multiprocessing.get_context("spawn")
_OPEN = (State.RENDERING, State.SENDING, State.RETRY, State.UNSURE, State.IN_DOUBT)


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("valkey"), *DURABLE)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(_shared: Server) -> Server:
    """The module's server, emptied; not to be killed."""
    with _shared.client() as client:
        client.flushall()
        client.script_flush()
    return _shared


@pytest.fixture
def store(server: Server) -> Iterator[RedisStore]:
    with contextlib.closing(server.store()) as store:
        yield store


StartServer = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartServer]:
    """Start a server of the test's own, with these options."""
    started: list[Server] = []

    def start(*options: str) -> Server:
        server = Server(tmp_path / f"valkey{len(started)}", *options)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), *DURABLE)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.kill()


def advance(record: Record, state: State, **changes: Any) -> Record:
    return replace(record, version=record.version + 1, state=state, **changes)


def write(store: RedisStore, *records: Record) -> Record:
    """Write a record's versions one after the other."""
    old = None
    for record in records:
        assert store.swap(old, record) is None
        old = record
    return records[-1]


def names(client: redis.Redis, pattern: str = "*") -> list[bytes]:
    """The keys of the database."""
    return cast("list[bytes]", client.keys(pattern))


def name_of(client: redis.Redis, part: str) -> bytes:
    """The one key of the database that has this part."""
    [name] = names(client, f"*}}:{part}*")
    return name


# -- what it costs --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def commands(server: Server) -> Iterator[list[str]]:
    """What clients ask of the server meanwhile: each is a round trip."""
    seen: list[str] = []
    with server.client() as client, client.monitor() as opened:
        monitor: Any = opened
        yield seen
        client.echo("that was it")
        while (said := monitor.next_command())["command"] != "ECHO that was it":
            name = said["command"].split()[0].upper()
            if said["client_type"] != "lua" and name not in {"HELLO", "CLIENT"}:
                seen.append(name)


def test_an_email_costs_two_round_trips_and_its_redelivery_one(server: Server, store: RedisStore) -> None:
    """Three for a job that builds its email in the worker; nothing is read before it is written."""
    clock = FakeClock()
    provider = FakeProvider(clock)
    ledger = Ledger(store, policy=Policy(window_seconds=86_400.0), provider="fake", clock=clock)
    sender = Sender(ledger, provider, clock=clock, http_timeout_seconds=20.0, namespace="default")
    ready, render = Ready("ready", make_email()), Render("render", "job", make_email)
    sender.send(Ready("warm up: the server learns the script", make_email()))
    for source, expected in ((ready, 2), (ready, 1), (render, 3), (render, 1)):
        with commands(server) as seen:
            assert isinstance(sender.send(source), Ended)
        assert seen == ["EVALSHA"] * expected
    assert len(provider.accepted) == 3


def test_a_server_that_does_not_know_the_script_is_told_it_once(server: Server, store: RedisStore) -> None:
    first = make_record()
    assert store.read("k") is None
    with commands(server) as seen:
        assert store.swap(None, first) is None
        assert store.swap(None, first) == first
    assert seen == ["EVALSHA", "EVAL", "EVALSHA"]


def test_an_email_that_was_sent_is_on_no_list(server: Server, store: RedisStore) -> None:
    """What is left of it is its record, and a share of a counter."""
    write(store, make_record(), advance(make_record(), State.SENT))
    with server.client() as client:
        found = sorted(name.decode().partition("}:")[2] for name in names(client))
    assert found == ["counts", "record:k"]


# -- where the keys are ---------------------------------------------------------------------------------------------


def test_what_belongs_to_a_record_is_in_one_slot_whatever_its_name(server: Server) -> None:
    for namespace in ("default", "", "}", "{", "a}:record:x", "a/b", "*", "é"):
        with contextlib.closing(server.store(namespace)) as store, server.client() as client:
            client.flushall()
            write(store, make_record("}k{"), advance(make_record("}k{"), State.RETRY))
            found = names(client)
            assert len(found) == 3
            assert len({key_slot(name) for name in found}) == 1
            assert [record.key for record in store.list(State.RETRY, 10)] == ["}k{"]


def test_the_shards_load_the_nodes_of_a_cluster_alike() -> None:
    """Of 30,000 keys, none of three nodes has more than 40 %."""
    store = RedisStore(connector("redis://127.0.0.1:1"))
    names = [store._name(module._shard(f"order-{number}"), "record") for number in range(30_000)]
    nodes = Counter(key_slot(name.encode()) * 3 // 16_384 for name in names)
    assert max(nodes.values()) < 12_000


def test_a_record_is_found_while_its_slot_moves_to_another_node(cluster: Cluster) -> None:
    """Slots are migrated under two writers: they follow, no update is lost, and each record is listed."""
    with contextlib.closing(cluster.store("moving")) as store, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for server in cluster.servers]
        records = [make_record(f"k{number}", state=State.RETRY) for number in range(20)]
        for record in records:
            write(store, record)
        stop = threading.Event()
        written: list[Record] = list(records)

        def work(part: int) -> None:
            while not stop.is_set():
                for index in range(part, len(written), 2):
                    new = advance(written[index], State.RETRY)
                    with contextlib.suppress(LedgerUnavailable):
                        met = store.swap(written[index], new)
                        # After a lost answer, one's own write is what one meets.
                        assert met in (None, new)
                        written[index] = new

        threads = [threading.Thread(target=work, args=(part,)) for part in range(2)]
        for thread in threads:
            thread.start()
        target = ask(clients[1], "CLUSTER", "MYID")
        for first in range(0, 5_000, 1_000):
            clients[0].execute_command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", first, first + 999, "NODE", target)
            wait_for(functools.partial(_has, clients[1], target, first + 999))
        stop.set()
        for thread in threads:
            thread.join()
        assert [store.read(record.key) for record in written] == written
        assert {record.key for record in store.list(State.RETRY, 100)} == {record.key for record in records}
        assert +Counter(store.count()) == Counter({State.RETRY: 20})


def _has(client: redis.Redis, node: bytes, slot: int) -> bool:
    """Whether the node has that slot, as `client`'s node sees it."""
    ranges = ask(client, "CLUSTER", "SLOTS")
    return any(first <= slot <= last and primary[2] == node for first, last, primary, *_ in ranges)


def test_a_cluster_is_checked_node_by_node(cluster: Cluster) -> None:
    with contextlib.closing(cluster.store()) as store:
        assert store.durability().sync is Sync.ALWAYS
        with cluster.servers[2].client() as client:
            client.config_set("appendfsync", "everysec")
            assert store.durability().sync is Sync.EVERYSEC
            client.config_set("appendfsync", "always")


def test_one_node_of_a_cluster_is_not_taken_for_a_server(cluster: Cluster) -> None:
    with contextlib.closing(RedisStore(connector(cluster.servers[0].url))) as store:
        # Slot 9,529: on another node.
        other = next(key for key in map(str, range(10_000)) if module._shard(key) == 0)
        with pytest.raises(LedgerUnusable, match=r"redis\+cluster://"):
            store.swap(None, make_record(other))
        with pytest.raises(LedgerUnusable, match=r"redis\+cluster://"):
            store.check()


def test_the_client_of_a_cluster_does_not_retry(cluster: Cluster) -> None:
    """By default it would, and its nodes' clients once more below it."""
    client = connector(cluster.url)()
    assert isinstance(client, RedisCluster)
    assert client.retry.get_retries() == 0
    for node in client.get_nodes():
        with contextlib.closing(client.get_redis_connection(node)) as below:
            retry = below.get_retry()
            assert retry is not None
            assert retry.get_retries() == 0
            below.connection_pool.disconnect()
    client.close()


def test_a_server_is_not_taken_for_a_cluster(server: Server) -> None:
    with (
        contextlib.closing(RedisStore(connector(server.url.replace("redis://", "redis+cluster://")))) as store,
        pytest.raises(LedgerUnavailable, match="not enabled"),
    ):
        store.read("k")


def test_a_cluster_that_lacks_a_part(tmp_path: Path) -> None:
    """What was on the lost node is not answered for, and the others say that the cluster is down."""
    cluster = Cluster(tmp_path, *DURABLE)
    try:
        cluster.start()
        with contextlib.closing(cluster.store()) as store:
            write(store, make_record())
            cluster.servers[2].kill()
            with cluster.servers[0].client() as client:
                wait_for(lambda: b"cluster_state:fail" in ask(client, "CLUSTER", "INFO"))
            for number in range(10):
                with pytest.raises(LedgerUnavailable, match=r"lacks a part|does not answer"):
                    store.swap(None, make_record(f"k{number}"))
    finally:
        cluster.kill()


# -- races ----------------------------------------------------------------------------------------------------------


def test_of_processes_that_claim_a_new_key_one_wins_each_round(server: Server) -> None:
    _assert_one_winner_a_round(server.url)


def test_of_processes_that_claim_a_new_key_in_a_cluster_one_wins_each_round(cluster: Cluster) -> None:
    _assert_one_winner_a_round(cluster.url)


def _assert_one_winner_a_round(url: str, rounds: int = 100) -> None:
    barrier, results = _SPAWN.Barrier(3), _SPAWN.Queue()
    processes = [_SPAWN.Process(target=valkey.create, args=(url, rounds, barrier, results, f"c{n}")) for n in range(3)]
    with _running(processes):
        won = [results.get(timeout=60) for _ in processes]
    assert [sum(each) for each in zip(*won, strict=True)] == [1] * rounds


def test_processes_that_write_one_record_lose_no_update(server: Server, store: RedisStore) -> None:
    """Four processes raise one version to 500: each step was made by exactly one of them."""
    store.swap(None, make_record(version=0))
    results: Any = _SPAWN.Queue()
    processes = [_SPAWN.Process(target=valkey.contend, args=(server.url, 500, results, f"c{n}")) for n in range(4)]
    with _running(processes):
        wins = [results.get(timeout=60) for _ in processes]
    found = store.read("k")
    assert found is not None
    assert found.version == 500
    assert sum(wins) == 500
    assert +Counter(store.count()) == Counter({State.SENDING: 1})


@contextlib.contextmanager
def _running(processes: list[Any]) -> Iterator[None]:
    for process in processes:
        process.start()
    try:
        yield
        for process in processes:
            process.join(30)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()


# -- lost and late answers ------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with contextlib.closing(Proxy(server)) as proxy:
        yield proxy


@pytest.fixture
def far(proxy: Proxy, store: RedisStore) -> Iterator[RedisStore]:
    """A store whose answers the proxy can lose; the server knows the script."""
    store.swap(None, make_record("warm up"))
    with contextlib.closing(RedisStore(connector(proxy.url))) as far:
        yield far


def test_a_lost_answer_is_not_known_to_be_written_and_nothing_is_repeated(
    proxy: Proxy, far: RedisStore, store: RedisStore
) -> None:
    first, second = make_record(), advance(make_record(), State.SENT)
    for old, new in [(None, first), (first, second)]:
        proxy.to_lose, asked = 1, len(proxy.calls)
        with pytest.raises(LedgerUnavailable, match="does not answer"):
            far.swap(old, new)
        assert store.read("k") == new, "it was applied"
        assert len(proxy.calls) == asked + 1, "the client did not ask again by itself"
        assert far.swap(old, new) == new, "a repetition meets one's own write"


@pytest.mark.parametrize("lost", [1, 2, 5])
def test_a_ledger_heals_lost_answers(proxy: Proxy, far: RedisStore, store: RedisStore, lost: int) -> None:
    """Of the claim and of the settlement: it asks again, meets its own write, and knows it."""
    ledger = Ledger(far, policy=Policy(window_seconds=86_400.0), provider="fake", clock=FakeClock())
    proxy.to_lose = lost
    claim = ledger.claim(Intent("k", fingerprint="f"))
    assert isinstance(claim, Claim)
    assert store.read("k") == claim.record
    proxy.to_lose = lost
    settled = ledger.settle(claim, Accepted("m1"))
    found = store.read("k")
    assert isinstance(settled, Record)
    assert found is not None
    assert (found.state, found.version, found.attempts, found.evidence) == (State.SENT, 2, 1, ())
    assert (settled.state, settled.version) == (State.SENT, 2)
    assert len(proxy.calls) == 2 * lost + 2


@pytest.mark.parametrize("further", range(1, 6))
def test_a_call_that_arrives_again_late_changes_nothing(
    proxy: Proxy, far: RedisStore, store: RedisStore, further: int
) -> None:
    """The very bytes of every earlier call, after up to five transitions more: the record, list and count stay."""
    states = [State.UNSURE, State.SENDING, State.RETRY, State.SENDING, State.SENT]
    records = [make_record()]
    for state in states[:further]:
        records.append(advance(records[-1], state))
    for old, new in zip([None, *records], records, strict=False):
        assert far.swap(old, new) is None
    counts = store.count()
    for call in proxy.calls:
        assert proxy.repeat(call).startswith(b"*3\r\n"), "refused, with the record that stands there"
    assert store.read("k") == records[-1]
    assert store.count() == counts
    _assert_lists_are_right(store)


# -- kill -9 --------------------------------------------------------------------------------------------------------


def test_what_was_answered_survives_a_kill_of_the_server(start: StartServer) -> None:
    """Twenty kills right after an answer: the write is there when the server is back, and so are list and count."""
    server = start(*DURABLE)
    record: Record | None = None
    for number in range(20):
        with contextlib.closing(server.store()) as store:
            new = make_record() if record is None else advance(record, _OPEN[number % 5], body=b"x" * 100 * number)
            assert store.swap(record, new) is None
            server.kill()
            with pytest.raises(LedgerUnavailable, match="does not answer"):
                store.read("k")
            server.start()
            assert store.read("k") == new, "the same client, on a new connection"
            assert [found.key for found in store.list(new.state, 10)] == ["k"]
            record = new


def test_a_kill_between_any_two_writes_leaves_lists_and_counts_right(start: StartServer) -> None:
    """Eight kills at some moment while four threads write: a record and its entry are written in one step."""
    random.seed(7)
    server = start("--appendonly", "yes")
    for number in range(8):
        with contextlib.closing(server.store(str(number))) as store:
            threads = [threading.Thread(target=_write_until_it_dies, args=(store, f"{number}/{n}")) for n in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(random.uniform(0.02, 0.1))
            server.kill()
            for thread in threads:
                thread.join()
            server.start()
            _assert_lists_are_right(store)


def _write_until_it_dies(store: RedisStore, prefix: str) -> None:
    with contextlib.suppress(LedgerUnavailable):
        for number in range(100_000):
            record = make_record(f"{prefix}/{number}")
            store.swap(None, record)
            store.swap(record, advance(record, random.choice(list(State))))


def _assert_lists_are_right(store: RedisStore) -> None:
    """Every list and count is what looking at all the records says."""
    counts = store.count()
    for state in State:
        keys = sorted(record.key for record in store.list(state, 1_000_000))
        assert keys == sorted(store._scan(state, 1_000_000)), state
        assert counts.get(state, 0) == len(keys), state


# -- lists, counts and retention ------------------------------------------------------------------------------------


def test_only_what_has_ended_without_doubt_expires(server: Server, store: RedisStore) -> None:
    """And what is opened again is kept again."""
    days = 86_400_000
    for state in State:
        write(store, make_record(state, state=State.SENDING), advance(make_record(state), state))
    with server.client() as client:
        for state in State:
            left = client.pttl(name_of(client, f"record:{state}"))
            if state in ENDED - {State.IN_DOUBT}:
                assert 90 * days - 60_000 <= left <= 91 * days
            else:
                assert left == -1
        rejected = advance(make_record("rejected"), State.REJECTED)
        assert store.swap(rejected, advance(rejected, State.RETRY)) is None
        assert client.pttl(name_of(client, "record:rejected")) == -1
    _assert_lists_are_right(store)


def test_without_a_retention_nothing_expires(server: Server) -> None:
    with contextlib.closing(server.store(retention_seconds=None)) as store, server.client() as client:
        write(store, make_record(), advance(make_record(), State.SENT))
        assert client.pttl(name_of(client, "record:k")) == -1
        assert store.count()[State.SENT] == 1


@pytest.mark.parametrize("updated_at", [0.0, 4e9])
def test_a_wrong_clock_of_a_worker_does_not_move_the_expiry(server: Server, updated_at: float) -> None:
    """A worker that believes it is 1970 must not make the server forget at once."""
    with contextlib.closing(server.store(retention_seconds=3_600.0)) as store, server.client() as client:
        write(store, make_record(), advance(make_record(), State.SENT, updated_at=updated_at))
        assert 3_590 <= client.ttl(name_of(client, "record:k")) <= 3_641


def test_what_expired_is_off_the_lists_and_the_counts_and_its_key_is_new(server: Server) -> None:
    with contextlib.closing(server.store(retention_seconds=0.3)) as store, server.client() as client:
        for number in range(5):
            write(store, make_record(f"k{number}", state=State.REJECTED, updated_at=number))
        doubtful = write(store, make_record("doubtful", state=State.IN_DOUBT))
        held = write(store, make_record("held", state=State.SENT))
        wait_for(lambda: store.read("held") is None and not client.keys("*record:k*"))
        wait_for(lambda: +Counter(store.count()) == Counter({State.IN_DOUBT: 1}))
        fresh = write(store, make_record("fresh", state=State.REJECTED, updated_at=99.0))
        assert list(store.list(State.REJECTED, 2)) == [fresh], "the expired ones, longer unchanged, are not in the way"
        assert len(client.keys("*}:in:rejected")) == 1, "and their entries are gone"
        assert list(store.list(State.IN_DOUBT, 10)) == [doubtful]
        with pytest.raises(LedgerUnusable, match="vanished"):
            store.swap(held, advance(held, State.SENT))
        assert store.swap(None, make_record("held")) is None


def test_passed_counters_are_cleared_away(server: Server) -> None:
    with contextlib.closing(server.store(retention_seconds=0.2)) as store, server.client() as client:
        for number in range(10):
            old = store.read("k")
            write(store, make_record(state=State.SENT)) if old is None else store.swap(old, advance(old, State.SENT))
            time.sleep(0.05 * (number % 3))
        time.sleep(0.3)
        write(store, make_record(state=State.SENT))
        assert client.hlen(name_of(client, "counts")) == 1


def _neighbours(number: int) -> list[str]:
    """Keys whose records are on the same lists."""
    keys = (f"k{each}" for each in itertools.count())
    return list(islice((key for key in keys if module._shard(key) == module._shard("k0")), number))


def test_what_expired_records_left_on_a_list_goes_without_being_listed(server: Server) -> None:
    """Else a list that nobody asks for, as that of what was rejected, would grow for as long as the ledger lives."""
    keys, long_ago = _neighbours(12), time.time() - 3_600.0
    with contextlib.closing(server.store(retention_seconds=0.2)) as store, server.client() as client:
        for key in keys[:6]:
            write(store, make_record(key, state=State.REJECTED, updated_at=long_ago))
        wait_for(lambda: not client.keys("*:record:*"))
        for key in keys[6:]:
            write(store, make_record(key, state=State.REJECTED, updated_at=time.time() + 60.0))
        assert client.zcard(name_of(client, "in:rejected")) == 6, "those six"


def test_an_old_entry_whose_record_is_kept_stays_on_its_list(server: Server) -> None:
    """It was written with a longer retention, or by a worker whose clock was wrong."""
    kept, *others = _neighbours(4)
    with contextlib.closing(server.store(retention_seconds=None)) as store:
        write(store, make_record(kept, state=State.REJECTED, updated_at=1.0))
    with contextlib.closing(server.store(retention_seconds=0.2)) as store:
        for key in others:
            write(store, make_record(key, state=State.REJECTED, updated_at=time.time()))
        assert kept in {record.key for record in store.list(State.REJECTED, 10)}


def test_an_entry_stays_while_its_record_may_be_on_another_node(cluster: Cluster) -> None:
    """A slot moves key by key: what is missing here has gone only when the slot has come to rest."""
    gone, moving, after = _neighbours(3)
    with contextlib.closing(cluster.store("slot")) as store, contextlib.ExitStack() as stack:
        slot = key_slot(store._name(module._shard(gone), "counts").encode())
        owner = next(server for server in cluster.servers if _owns(server, slot))
        other = next(server for server in cluster.servers if server is not owner)
        here, there = stack.enter_context(owner.client()), stack.enter_context(other.client())
        write(store, make_record(gone, state=State.REJECTED, updated_at=1.0))
        first = write(store, make_record(moving))
        write(store, make_record(after))
        here.delete(store._name(module._shard(gone), "record", gone))
        entries = store._name(module._shard(gone), "in", State.REJECTED)
        here.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ask(there, "CLUSTER", "MYID"))
        assert store.swap(first, advance(first, State.REJECTED)) is None
        assert set(here.zrange(entries, 0, -1)) == {gone.encode(), moving.encode()}
        here.execute_command("CLUSTER", "SETSLOT", slot, "STABLE")
        assert store.swap(make_record(after), advance(make_record(after), State.REJECTED)) is None
        assert set(here.zrange(entries, 0, -1)) == {moving.encode(), after.encode()}


def _owns(server: Server, slot: int) -> bool:
    with server.client() as client:
        return _has(client, ask(client, "CLUSTER", "MYID"), slot)


def test_an_entry_without_its_record_is_dropped_when_it_is_listed(server: Server, store: RedisStore) -> None:
    """Someone deleted a record by hand; and one whose state differs from its entry's keeps its own entry only."""
    for number in range(3):
        write(store, make_record(f"k{number}", state=State.IN_DOUBT, updated_at=number))
    with server.client() as client:
        client.delete(name_of(client, "record:k0"))
        entry = name_of(client, "record:k2").replace(b"record:k2", b"in:retry")
        client.zadd(entry, {"k2": 0.0})
        assert [record.key for record in store.list(State.IN_DOUBT, 1)] == ["k1"]
        assert list(store.list(State.RETRY, 10)) == []
        assert not client.exists(entry)
    assert [record.key for record in store.list(State.IN_DOUBT, 10)] == ["k1", "k2"]


def test_an_entry_whose_record_has_come_back_is_not_dropped(store: RedisStore) -> None:
    """A list read the record while it was in another state; by the time of the drop it is right again."""
    doubtful = write(store, make_record(), advance(make_record(), State.IN_DOUBT))
    assert store._drop_entry(State.IN_DOUBT, "k") == 0
    assert list(store.list(State.IN_DOUBT, 10)) == [doubtful]


def test_lists_hold_while_records_move(store: RedisStore) -> None:
    """What stays in a state is on its list at every instant, however busy the list is."""
    for number in range(20):
        write(store, make_record(f"stay{number}", state=State.UNSURE))
    stop = threading.Event()

    def move() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            first = make_record(f"move{number}", state=State.UNSURE, updated_at=1.0)
            write(store, first, advance(first, State.SENT))

    mover = threading.Thread(target=move)
    mover.start()
    for _ in range(30):
        found = {record.key for record in store.list(State.UNSURE, 1_000)}
        assert {key for key in found if key.startswith("stay")} == {f"stay{number}" for number in range(20)}
    stop.set()
    mover.join()


def _fill(store: RedisStore, state: State, number: int = 250) -> list[Record]:
    """Records in that state, the one longest unchanged first."""
    made = [make_record(f"k{each:03}", state=state, updated_at=each, durable=True) for each in range(number)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda record: store.swap(None, record), made)) == [None] * number
    return made


@pytest.mark.parametrize(
    "listing",
    [lambda store: store.list(State.PENDING, 1_000), lambda store: store.asked(1_000)],
    ids=["list", "asked"],
)
def test_a_list_is_read_a_page_at_a_time(
    server: Server, store: RedisStore, listing: Callable[[RedisStore], Iterator[Record]]
) -> None:
    """Whoever wants the first one does not load the bodies of all."""
    made = _fill(store, State.PENDING)
    listed = listing(store)
    with commands(server) as seen:
        assert next(listed) == made[0]
    assert seen.count("HMGET") == 100
    with commands(server) as seen:
        assert list(listed) == made[1:]
    assert seen.count("HMGET") == 150


def test_a_list_holds_while_records_change_between_its_pages(server: Server, store: RedisStore) -> None:
    """Once what stays, also when it is written again meanwhile; never what has left, be it by hand."""
    made = _fill(store, State.RETRY)
    listed = store.list(State.RETRY, 240)
    assert next(listed) == made[0]
    for record in (made[0], made[150]):
        assert store.swap(record, advance(record, State.RETRY, updated_at=999.0)) is None
    assert store.swap(made[160], advance(made[160], State.SENT)) is None
    with server.client() as client:
        client.delete(name_of(client, "record:k170"))
    expected = [record.key for record in made[1:242] if record.key not in {"k160", "k170"}]
    assert [record.key for record in listed] == expected, "an entry without its record keeps no other from its place"


# -- what cannot be trusted -----------------------------------------------------------------------------------------


def _spoil(**fields: bytes) -> Callable[[redis.Redis, bytes], Any]:
    return lambda client, name: client.hset(name, mapping=cast("Any", fields))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_spoil(record=b'{"v":3}', claim=b"newer"), "version 3.*upgrade"),
        (_spoil(state=b"teleported"), "teleported.*upgrade"),
        (_spoil(record=b'{"v":1,"key":"\xff"}', claim=b"other"), "damaged"),
        (lambda client, name: client.hdel(name, "version", "record"), "damaged"),
        (lambda client, name: client.hdel(name, "version", "claim", "state", "record", "counter"), "damaged"),
    ],
)
def test_a_record_that_cannot_be_read_is_one_clear_error_and_stays(
    server: Server, store: RedisStore, spoil: Callable[[redis.Redis, bytes], Any], says: str
) -> None:
    held = write(store, make_record(body=b"x"))
    with server.client() as client:
        name = name_of(client, "record")
        spoil(client, name)
        before = {each: client.dump(each) for each in names(client)}
        with pytest.raises(LedgerUnusable, match=says):
            store.read("k")
        for old in (None, held):
            with pytest.raises(LedgerUnusable, match=says):
                store.swap(old, advance(held, State.SENT))
        assert {each: client.dump(each) for each in names(client)} == before


def test_an_unknown_state_is_reported_by_the_count(server: Server, store: RedisStore) -> None:
    write(store, make_record())
    with server.client() as client:
        client.hincrby(name_of(client, "counts"), "teleported", 1)
    with pytest.raises(LedgerUnusable, match="upgrade"):
        store.count()


def test_a_key_that_another_program_wrote(server: Server, store: RedisStore) -> None:
    write(store, make_record())
    with server.client() as client:
        name = name_of(client, "record")
        client.delete(name)
        client.set(name, "something else")
    with pytest.raises(LedgerUnusable, match="another program"):
        store.swap(None, make_record())


# -- servers that must not be used ----------------------------------------------------------------------------------


def refusal(store: RedisStore, attempt: Callable[[], Any] | None = None) -> str:
    """The one line with which the ledger is refused."""
    with contextlib.closing(store), pytest.raises(LedgerError) as caught:
        attempt() if attempt else store.check()
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    "policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-random", "volatile-ttl"]
)
def test_a_server_that_may_evict_is_refused(start: StartServer, policy: str) -> None:
    server = start(*DURABLE, "--maxmemory-policy", policy)
    assert server.store().durability().sync is Sync.ALWAYS, "without a limit, nothing is evicted"
    with server.client() as client:
        client.config_set("maxmemory", "100mb")
        assert f"may evict records (maxmemory-policy {policy})" in refusal(server.store())
        client.config_set("maxmemory-policy", "noeviction")
    assert server.store().durability().sync is Sync.ALWAYS


# No such server is to be had for a test: what they say of themselves is in their INFO, which redis-py reads as it can.


@pytest.mark.parametrize("version", ["5.0.14", "4.0.9", 5.0, 5])
def test_a_redis_that_is_too_old_is_refused(version: object) -> None:
    with pytest.raises(LedgerUnusable, match="is a Redis before 6: upgrade it, or name another one") as caught:
        module._check_version({"redis_version": version})
    assert f"({version})" in str(caught.value)


@pytest.mark.parametrize("info", [{"redis_version": "6.0.0"}, {"redis_version": 7.2}, {"redis_version": "12.0.1"}, {}])
def test_a_redis_that_is_new_enough_or_does_not_say_is_taken(info: dict[str, object]) -> None:
    module._check_version(info)


def test_every_check_looks_at_the_version(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OLDEST_REDIS", 99)
    assert "is a Redis before" in refusal(server.store())


def test_a_redis_that_is_too_old_to_be_greeted_is_named() -> None:
    """Newer clients begin with HELLO, which such a server does not know: it never comes to be asked for its version."""
    said = module._translate(redis.ResponseError("unknown command `HELLO`, with args beginning with: `3`, "))
    assert isinstance(said, LedgerUnusable)
    assert "is a Redis before 6: upgrade it" in str(said)


@pytest.mark.parametrize(
    ("options", "sync", "says"),
    [
        (DURABLE, Sync.ALWAYS, "survives"),
        (("--appendonly", "yes"), Sync.EVERYSEC, "2 s of writes"),
        (("--appendonly", "yes", "--appendfsync", "no"), Sync.SYSTEM, "30 s of writes"),
    ],
)
def test_a_check_says_how_durable_the_ledger_is(
    start: StartServer, options: tuple[str, ...], sync: Sync, says: str
) -> None:
    server = start(*options)
    found = server.store().durability()
    assert found.sync is sync
    assert says in found.statement
    assert "no replica" in found.replicas_statement
    with server.client() as client:
        assert names(client) == [], "nothing was written"


def test_a_server_that_forgets_is_refused_unless_it_is_accepted(start: StartServer) -> None:
    """Snapshots do not count: they forget minutes."""
    server = start("--save", "60 1")
    assert "no append-only file" in refusal(server.store())
    found = server.store().durability(accept_volatile=True)
    assert found.sync is Sync.NONE
    assert "forgets keys" in found.statement


def allow(server: Server, *rules: str) -> str:
    """The URL of a user with these rights; the database stays as it is."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "ann", "reset", "on", ">secret", *rules)
    return server.url.replace("redis://", "redis://ann:secret@")


def test_a_server_that_does_not_show_its_settings_is_judged_by_its_report(start: StartServer) -> None:
    """As managed ones are, which know no CONFIG: their INFO tells the policy, and not when the file is synced."""
    server = start(*DURABLE, "--maxmemory-policy", "allkeys-lru")
    url = allow(server, "~idem-ledger:*", "+@all", "-config")
    assert RedisStore(connector(url)).durability().sync is Sync.EVERYSEC
    with server.client() as client:
        client.config_set("maxmemory", "100mb")
    assert "allkeys-lru" in refusal(RedisStore(connector(url)))


NEEDED = ["evalsha", "exists", "hdel", "hgetall", "hincrby", "hkeys", "hmget", "hset", "persist", "pexpireat", "ping"]
NEEDED += ["scan", "time", "zadd", "zrange", "zrem"]


def test_the_rights_that_the_check_asks_for_are_enough(server: Server) -> None:
    """With exactly those, and what a client needs to connect and the check to look, everything works."""
    rules = ["-@all", *(f"+{command}" for command in [*NEEDED, "eval", "info"])]
    with contextlib.closing(RedisStore(connector(allow(server, "~idem-ledger:*", *rules)))) as store:
        assert store.durability().sync is Sync.EVERYSEC
        for state in State:
            write(store, make_record(state, body=b"x"), advance(make_record(state), state))
        with server.client() as client:
            client.delete(name_of(client, "record:retry"))
        _list_all(store)
        store.count()


def _list_all(store: RedisStore) -> None:
    for state in State:
        list(store.list(state, 10))


@pytest.mark.parametrize("command", NEEDED)
def test_a_missing_right_is_named_by_the_check(server: Server, command: str) -> None:
    url = allow(server, "~idem-ledger:*", "+@all", f"-{command}")
    line = refusal(RedisStore(connector(url)))
    assert re.search(rf"\b{command}\b", line)
    assert "ACL SETUSER" in line
    assert "secret" not in line


@pytest.mark.parametrize("command", ["info", "eval"])
def test_a_right_without_which_nothing_can_be_checked_is_named_too(server: Server, command: str) -> None:
    line = refusal(RedisStore(connector(allow(server, "~idem-ledger:*", "+@all", f"-{command}"))))
    assert f"'{command}'" in line


def test_keys_that_are_not_permitted(server: Server) -> None:
    url = allow(server, "~other:*", "+@all")
    assert "idem-ledger:*" in refusal(RedisStore(connector(url)))
    store = RedisStore(connector(url))
    assert "idem-ledger:*" in refusal(store, lambda: store.swap(None, make_record()))


@pytest.mark.parametrize("command", ["evalsha", "hset", "hincrby", "zadd", "zrem", "hdel", "pexpireat"])
def test_a_right_that_is_taken_away_is_named_and_no_list_loses_a_record(
    server: Server, store: RedisStore, command: str
) -> None:
    """A script that is refused half-way keeps what it did: a record is on its list before it is in its state."""
    held = [write(store, make_record(key, body=b"x")) for key in ("a", "b")]
    limited = RedisStore(connector(allow(server, "~idem-ledger:*", "+@all", f"-{command}")))
    said = []
    for old, new in (
        (None, make_record("c", state=State.RETRY)),
        (held[0], advance(held[0], State.IN_DOUBT, body=None)),
        (held[1], advance(held[1], State.REJECTED, body=None)),
    ):
        try:
            assert limited.swap(old, new) is None
        except LedgerUnusable as error:
            said.append(str(error))
    limited.close()
    assert said
    assert all(f"'{command}'" in line for line in said)
    for state in (State.IN_DOUBT, State.REJECTED, State.RETRY, State.SENDING):
        assert sorted(record.key for record in store.list(state, 10)) == sorted(store._scan(state, 10))


def test_a_wrong_password(server: Server) -> None:
    store = RedisStore(connector(allow(server, "~*", "+@all").replace("secret", "wrong")))
    line = refusal(store, lambda: store.swap(None, make_record()))
    assert "does not let us in" in line
    assert "wrong" not in line


def test_a_missing_password(start: StartServer) -> None:
    """Of a server and of a cluster's node, whose client wraps what it meets."""
    server = start(*DURABLE)
    with server.client() as client:
        client.config_set("requirepass", "secret")
    for url in (server.url, server.url.replace("redis://", "redis+cluster://")):
        store = RedisStore(connector(url))
        assert "does not let us in" in refusal(store, functools.partial(store.read, "k"))


def test_a_read_only_replica(start: StartServer) -> None:
    primary, replica = start(*DURABLE), start(*DURABLE)
    with primary.client() as client, replica.client() as other:
        other.replicaof("127.0.0.1", str(primary.port))
        wait_for(lambda: client.info("replication").get("connected_slaves") == 1)
    found = primary.store().durability()
    assert found.replicas == 1
    assert "a failover can take back" in found.replicas_statement
    assert "read-only replica" in refusal(replica.store())
    store = replica.store()
    assert "read-only replica" in refusal(store, lambda: store.swap(None, make_record()))


def test_a_server_out_of_memory_writes_nothing(server: Server) -> None:
    """Not even a part of what belongs together; what is there is still read."""
    with contextlib.closing(server.store()) as store, server.client() as client:
        held = write(store, make_record())
        before = {name: client.dump(name) for name in names(client)}
        client.config_set("maxmemory", "1")
        try:
            for old, new in ((None, make_record("new")), (held, advance(held, State.SENT))):
                with pytest.raises(LedgerUnavailable, match="out of memory"):
                    store.swap(old, new)
            assert store.read("k") == held
            assert {name: client.dump(name) for name in names(client)} == before
        finally:
            client.config_set("maxmemory", "0")
        assert store.swap(held, advance(held, State.SENT)) is None


def test_a_server_that_cannot_save(start: StartServer) -> None:
    server = start("--save", "3600 1")
    store = server.store()
    write(store, make_record())
    with server.client() as client:
        shutil.rmtree(server.directory)
        client.bgsave()
        wait_for(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
    assert "cannot save to its disk" in refusal(store, lambda: store.swap(None, make_record("k2")))


def test_a_server_that_is_still_loading(start: StartServer) -> None:
    """It looks up from its loading every 1,024 commands, and says so."""
    server = start("--appendonly", "yes")
    with contextlib.closing(server.store()) as store, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write(store, make_record(f"k{number}")), range(1_500)))
    server.kill()
    server.options = (*server.options, "--key-load-delay", "500")
    server.start(answering=False)
    said = []
    with contextlib.closing(server.store()) as store:
        while "loading" not in (line := _complaint(store)):
            said.append(line)
    assert all("does not answer" in line for line in said), "the port was not open yet"


def _complaint(store: RedisStore) -> str:
    with pytest.raises(LedgerUnavailable) as caught:
        store.swap(None, make_record("new"))
    return str(caught.value)


def test_a_server_that_is_not_there() -> None:
    store = RedisStore(connector(f"redis://127.0.0.1:{free_port()}"))
    assert "does not answer" in refusal(store, lambda: store.read("k"))


def test_nothing_is_connected_before_it_is_used() -> None:
    """Of a cluster too, whose client connects when it is made."""
    RedisStore(connector(f"redis+cluster://127.0.0.1:{free_port()}")).close()


@pytest.mark.parametrize(
    "url", ["http://x", "redis://ann:se/cret@x:1", "redis+cluster", "unix+cluster://x", "redis", ""]
)
def test_what_is_no_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(SettingsError, match="redis://") as caught:
        connector(url)
    assert "'se'" not in str(caught.value)


def test_a_cell_that_passes_is_forgotten_and_one_that_stays_is_not(server: Server, store: RedisStore) -> None:
    """Written again without an end, it stays as well."""
    with server.client() as client:
        assert store.swap_cell("c", None, b"1", keep_seconds=3_600.5) is None
        [name] = names(client, "*/cell/c}:cell")
        assert 3_500_000 < cast("int", client.pttl(name)) <= 3_600_500
        assert store.swap_cell("c", b"1", b"2") is None
        assert client.pttl(name) == -1
        assert store.swap_cell("d", None, b"1", keep_seconds=0.001) is None
        wait_for(lambda: store.read_cell("d") is None)
        assert store.swap_cell("d", None, b"2") is None
