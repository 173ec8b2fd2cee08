"""Servers of every kind behind the Redis broker: how one is named, what it answers, and what it can lose."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from dramatiq.broker import MessageProxy
from dramatiq.errors import ConnectionClosed

from idem.errors import BrokerError, BrokerUnavailable, SettingsError
from idem.privacy import redact
from tests.ports import free_port
from tests.valkey import DURABLE, Cluster, Sentinels, Server, ask, wait_for
from tests.workers.parts import Sandbox, StartIdem, make_email
from workers.brokers import servers
from workers.brokers.base import Acknowledge, Backlog, Bury, Retry, dispose
from workers.brokers.redis import RedisBroker
from workers.brokers.servers import connect, translate
from workers.jobs import QUEUE, email_message

_README = Path(__file__).parent.parent.parent.parent / "README.md"

StartServer = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartServer]:
    servers: list[Server] = []

    def start(*options: str) -> Server:
        servers.append(Server(tmp_path / f"server{len(servers)}", *options))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def open_broker() -> Iterator[Callable[[str], RedisBroker]]:
    brokers: list[RedisBroker] = []

    def open_broker(url: str) -> RedisBroker:
        brokers.append(RedisBroker(connect(url), namespace="test", visibility_seconds=2))
        brokers[-1].declare_queue(QUEUE)
        return brokers[-1]

    yield open_broker
    for broker in brokers:
        broker.close()


OpenBroker = Callable[[str], RedisBroker]


def _enqueue(broker: RedisBroker, key: str = "k") -> None:
    broker.enqueue(email_message(make_email(), key)[0])


def _work(broker: RedisBroker) -> None:
    """All that can happen to a message."""
    consumer = broker.consume(QUEUE, prefetch=10, timeout=10)
    for said in (Acknowledge(), Retry(60), Retry(0), Bury("because")):
        _enqueue(broker)
        message = next(consumer)
        assert isinstance(message, MessageProxy)
        dispose(message, said)
        consumer.ack(message)
    again = next(consumer)
    assert isinstance(again, MessageProxy)
    consumer.requeue([again])
    consumer.close()
    broker.enqueue(email_message(make_email(), "later")[0], delay=60_000)
    assert not broker.woken("nothing", 0.01)
    (letter,) = broker.dead_letters()
    assert broker.requeue_dead(letter)
    assert broker.backlog() == Backlog(ready=2, delayed=2, in_flight=0, dead=0)


def _has_loopback_6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


class TestUrls:
    @pytest.mark.parametrize(
        "url",
        [
            "redis://",
            "redis:///0",
            "redis://h:port/0",
            "redis://h/db",
            "redis://h/0?nobody=knows",
            "redis://ann:se/cret@h:1/0",
            "redis+other://h",
            "unix:///x",
            "embedded+sentinel://x",
            "redis+cluster://h/1",
            "redis+cluster://",
            "redis+sentinel://h",
            "redis+sentinel://h/jobs/x",
            "redis+sentinel://h/jobs/0/1",
            "redis+sentinel://h:x/jobs",
            "redis+sentinel://h,,h/jobs",
            "redis+sentinel://:secret@h/jobs?nobody=knows",
        ],
    )
    def test_what_is_malformed_is_refused_at_once_and_shows_no_password(self, url: str) -> None:
        with pytest.raises(SettingsError, match="redis\\+sentinel://host:port,host:port/SERVICE/db") as caught:
            connect(url)

        assert "'se" not in str(caught.value)
        assert "secret" not in str(caught.value)
        # What commands print: nothing in the advice may look like an email address.
        assert redact(str(caught.value), 1_000) == str(caught.value)

    @pytest.mark.parametrize(
        "url",
        [
            "redis://h",
            "redis://ann:p%2Fw@h:1/3",
            "rediss://h:1/0?ssl_ca_certs=/ca.pem",
            "redis+cluster://ann:pw@h:7000",
            "rediss+cluster://h:7000?ssl_ca_certs=/ca.pem",
            "redis+sentinel://h1,h2:26380,[::1]:26379/jobs/3",
            "rediss+sentinel://ann:pw@h1/jobs?ssl_ca_certs=/ca.pem&sentinel_username=s&sentinel_password=pw",
        ],
    )
    def test_nothing_is_connected_before_it_is_used(self, url: str) -> None:
        connect(url).close()


def _allow(server: Server, *rules: str) -> str:
    """The URL of a user with these rights."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "ann", "reset", "on", ">secret", *rules)
    return server.url.replace("redis://", "redis://ann:secret@")


def _rights() -> list[str]:
    (text,) = re.findall(r"^```text\n(.*?)^```$", _README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return list(text.split())


class TestRights:
    def test_what_the_readme_names_is_enough(self, start: StartServer, open_broker: OpenBroker) -> None:
        broker = open_broker(_allow(start(*DURABLE), "~{idem:*", "resetchannels", "-@all", *_rights()))

        assert "synced at every write" in broker.check()[0]
        _work(broker)

    @pytest.mark.parametrize(
        "right", [right for right in _rights() if right not in {"+eval", "+ping", "+select", "+config|get"}]
    )
    def test_each_of_them_is_needed_and_named_by_the_check(
        self, start: StartServer, open_broker: OpenBroker, right: str
    ) -> None:
        server = start()
        rules = [rule for rule in _rights() if rule != right]
        with server.client() as client:
            ask(client, "SCRIPT", "LOAD", open_broker(server.url)._script._text)
        broker = open_broker(_allow(server, "~{idem:*", "-@all", *rules))

        with pytest.raises(BrokerError, match=f"'{right[1:]}'") as caught:
            broker.check()

        assert "README" in str(caught.value)
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("right", ["sadd", "zadd", "rpush", "hset", "srem", "hdel", "lpop", "zrem", "time"])
    def test_a_right_that_is_taken_away_loses_no_job(
        self, start: StartServer, open_broker: OpenBroker, right: str
    ) -> None:
        """Whatever was half done, with the right given back every job is there to be worked on."""
        server = start()
        full, limited = open_broker(server.url), open_broker(_allow(server, "~*", "+@all"))
        keys = {f"k{number}" for number in range(3)}
        for key in sorted(keys):
            _enqueue(full, key)
        consumer = limited.consume(QUEUE, prefetch=1, timeout=1)
        message = next(consumer)
        assert isinstance(message, MessageProxy)
        _allow(server, "~*", "+@all", f"-{right}")
        dispose(message, Retry(0))
        with contextlib.suppress(ConnectionClosed):
            consumer.ack(message)
        with contextlib.suppress(ConnectionClosed):
            next(limited.consume(QUEUE, prefetch=1, timeout=1))
        with contextlib.suppress(ConnectionClosed):
            consumer.requeue([message])

        with server.client() as client:
            client.zadd(f"{full.namespace}:__heartbeats__", {limited.broker_id: 1})
        heir = full.consume(QUEUE, prefetch=100, timeout=1)
        seen: set[str] = set()
        full.maintain(QUEUE)

        def found() -> bool:
            message = next(heir)
            if isinstance(message, MessageProxy):
                seen.add(message.kwargs["key"])
            return seen == keys

        wait_for(found)

    def test_keys_that_are_not_permitted(self, start: StartServer, open_broker: OpenBroker) -> None:
        broker = open_broker(_allow(start(), "~other:*", "+@all"))

        for act in (broker.check, broker.backlog, lambda: _enqueue(broker)):
            with pytest.raises(BrokerError, match="does not permit"):
                act()


class TestAnswers:
    def test_a_wrong_password(self, start: StartServer, open_broker: OpenBroker) -> None:
        broker = open_broker(_allow(start(), "~*", "+@all").replace("secret", "wr0ng"))

        with pytest.raises(BrokerError, match="does not let us in: check user and password") as caught:
            _enqueue(broker)
        assert "wr0ng" not in str(caught.value)

    def test_a_missing_password(self, start: StartServer, open_broker: OpenBroker) -> None:
        server = start()
        with server.client() as client:
            client.config_set("requirepass", "secret")

        for url in (server.url, server.url.replace("redis://", "redis+cluster://").removesuffix("/0")):
            with pytest.raises(BrokerError, match="wants a password: write redis://user:<password>@"):
                _enqueue(open_broker(url))

    def test_a_read_only_replica(self, start: StartServer, open_broker: OpenBroker) -> None:
        primary, replica = start(*DURABLE), start(*DURABLE)
        with replica.client() as client:
            client.replicaof("127.0.0.1", str(primary.port))
        broker = open_broker(replica.url)
        wait_for(lambda: _says(broker, "is a read-only replica"))

        with pytest.raises(BrokerError, match="is a read-only replica: name the primary"):
            broker.check()
        with pytest.raises(ConnectionClosed, match="is a read-only replica"):
            next(broker.consume(QUEUE, timeout=10))

    def test_a_full_server_takes_no_job_and_gives_out_those_that_it_has(
        self, start: StartServer, open_broker: OpenBroker
    ) -> None:
        server = start(*DURABLE)
        broker = open_broker(server.url)
        for number in range(4):
            _enqueue(broker, f"k{number}")
        with server.client() as client:
            client.config_set("maxmemory", "1")

        with pytest.raises(BrokerUnavailable, match="is out of memory, and takes no new jobs: raise its maxmemory"):
            _enqueue(broker, "new")
        with pytest.raises(BrokerUnavailable, match="is out of memory"):
            broker.enqueue(email_message(make_email(), "new")[0], delay=1)
        consumer = broker.consume(QUEUE, prefetch=10, timeout=10)
        for said in (Acknowledge(), Retry(60), Bury("because")):
            message = next(consumer)
            assert isinstance(message, MessageProxy)
            dispose(message, said)
            consumer.ack(message)
        broker._maintained_at = 0.0
        broker.maintain(QUEUE)

        assert broker.backlog() == Backlog(ready=0, delayed=1, in_flight=1, dead=1)

    def test_a_server_that_cannot_save(self, start: StartServer, open_broker: OpenBroker) -> None:
        server = start("--save", "3600 1")
        broker = open_broker(server.url)
        _enqueue(broker)
        with server.client() as client:
            shutil.rmtree(server.directory)
            client.bgsave()
            wait_for(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")

        with pytest.raises(BrokerUnavailable, match="cannot save to its disk, and takes no writes"):
            _enqueue(broker)
        assert broker.backlog().ready == 1

    def test_too_few_replicas(self, start: StartServer, open_broker: OpenBroker) -> None:
        broker = open_broker(start("--min-replicas-to-write", "1").url)

        with pytest.raises(BrokerUnavailable, match="has too few replicas, and takes no writes"):
            _enqueue(broker)

    def test_a_server_that_is_still_loading(self, start: StartServer, open_broker: OpenBroker) -> None:
        """It looks up from its loading every 1,024 commands, and says so."""
        server = start("--appendonly", "yes")
        broker = open_broker(server.url)
        _enqueue(broker)
        with server.client() as client, client.pipeline(transaction=False) as pipeline:
            for number in range(30_000):
                pipeline.set(f"filler-{number}", number)
            pipeline.execute()
        server.kill()
        options, server.options = server.options, (*server.options, "--key-load-delay", "100")
        server.start(answering=False)

        wait_for(lambda: _says(broker, "is still loading its data: wait"))
        server.kill()
        server.options = options
        server.start()
        assert broker.backlog().ready == 1

    def test_one_node_of_a_cluster_and_what_is_none(
        self, cluster: Cluster, start: StartServer, open_broker: OpenBroker
    ) -> None:
        said = set()
        for server in cluster.servers:
            with contextlib.suppress(BrokerError):
                _enqueue(open_broker(server.url))
                continue
            said.add(server.port)
        assert len(said) == 2
        with pytest.raises(BrokerError, match="is no cluster: write redis://host:port/db"):
            _enqueue(open_broker(start().url.replace("redis://", "redis+cluster://").removesuffix("/0")))


# No such server is to be had for a test: what they say of themselves is in their INFO, which redis-py reads as it can.


@pytest.mark.parametrize("version", ["5.0.14", "4.0.9", 5.0, 5])
def test_a_redis_that_is_too_old_is_refused(version: object) -> None:
    with pytest.raises(BrokerError, match="is a Redis before 6: upgrade it, or name another one") as caught:
        servers._check_version({"redis_version": version})
    assert f"({version})" in str(caught.value)


@pytest.mark.parametrize("info", [{"redis_version": "6.0.0"}, {"redis_version": 7.2}, {"redis_version": "12.0.1"}, {}])
def test_a_redis_that_is_new_enough_or_does_not_say_is_taken(info: dict[str, object]) -> None:
    servers._check_version(info)


def test_every_check_looks_at_the_version(
    start: StartServer, open_broker: OpenBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_OLDEST_REDIS", 99)

    with pytest.raises(BrokerError, match="is a Redis before"):
        open_broker(start(*DURABLE).url).check()


def test_a_redis_that_is_too_old_to_be_greeted_is_named() -> None:
    """Newer clients begin with HELLO, which such a server does not know: it never comes to be asked for its version."""
    said = redis.ResponseError("unknown command `HELLO`, with args beginning with: `3`, ")

    assert "is a Redis before 6: upgrade it" in str(translate(said))


def _says(broker: RedisBroker, words: str) -> bool:
    """Whether the server refuses a job so; it must not take it."""
    with pytest.raises(BrokerError) as caught:
        _enqueue(broker, "refused")
    return words in str(caught.value)


class TestDurability:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (DURABLE, "synced at every write: no job is lost by a kill of the server or a power cut"),
            (("--appendonly", "yes", "--appendfsync", "everysec"), "up to 2 s of them"),
            (("--appendonly", "yes", "--appendfsync", "no"), "a power cut some 30 s"),
            (("--save", "60 1"), "loses the jobs since the last snapshot"),
            ((), "a restart of the server loses all jobs"),
        ],
    )
    def test_what_is_on_the_disk(
        self, start: StartServer, open_broker: OpenBroker, options: tuple[str, ...], words: str
    ) -> None:
        on_disk, elsewhere = open_broker(start(*options).url).check()

        assert words in on_disk
        assert elsewhere == "no replica: the loss of the server's machine loses its jobs"

    def test_what_replicas_are_good_for(self, start: StartServer, open_broker: OpenBroker) -> None:
        primary, replica = start(*DURABLE), start()
        with replica.client() as client:
            client.replicaof("127.0.0.1", str(primary.port))
        broker = open_broker(primary.url)
        wait_for(lambda: "1 replica, told of a write after it was answered" in broker.check()[1])
        assert "set 'min-replicas-to-write 1'" in broker.check()[1]

        with primary.client() as client:
            client.config_set("min-replicas-to-write", "1")
            client.config_set("min-replicas-max-lag", "7")

        assert broker.check()[1].endswith("a failover can lose the jobs of 7 s")

    @pytest.mark.parametrize("options", [DURABLE, ("--appendonly", "yes", "--appendfsync", "everysec")])
    def test_jobs_in_every_place_survive_a_kill_of_the_server(
        self, start: StartServer, open_broker: OpenBroker, options: tuple[str, ...]
    ) -> None:
        """A kill, not a power cut: what a process has written, the kernel keeps. It waits while the disk is slow."""
        server = start(*options)
        broker = open_broker(server.url)
        _work(broker)
        consumer = broker.consume(QUEUE, prefetch=1, timeout=10)
        held = next(consumer)
        assert isinstance(held, MessageProxy)
        before = broker.backlog()
        with server.client() as client:
            wait_for(lambda: client.info("persistence")["aof_buffer_length"] == 0)

        server.kill()
        server.start()

        assert broker.backlog() == before == Backlog(ready=1, delayed=2, in_flight=1, dead=0)
        dispose(held, Retry(0))
        consumer.ack(held)
        assert broker.backlog() == Backlog(ready=1, delayed=3, in_flight=0, dead=0)

    def test_without_an_append_only_file_a_restart_loses_them_as_doctor_says(
        self, start: StartServer, open_broker: OpenBroker
    ) -> None:
        server = start()
        broker = open_broker(server.url)
        _work(broker)

        server.kill()
        server.start()

        assert broker.backlog() == Backlog(0, 0, 0, 0)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), *DURABLE)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.kill()


class TestCluster:
    def test_all_moves_work_and_every_key_is_on_one_node(self, cluster: Cluster, open_broker: OpenBroker) -> None:
        broker = open_broker(cluster.url)
        with contextlib.ExitStack() as stack:
            nodes = [stack.enter_context(server.client()) for server in cluster.servers]
            for node in nodes:
                node.flushall()

            _work(broker)

            assert sorted(bool(node.dbsize()) for node in nodes) == [False, False, True]
        assert "synced at every write" in broker.check()[0]

    def test_a_worker_is_woken(self, cluster: Cluster, open_broker: OpenBroker) -> None:
        broker = open_broker(cluster.url)
        _enqueue(broker)

        assert broker.woken(QUEUE, 5)


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[Sentinels]:
    sentinels = Sentinels(tmp_path / "sentinels", *DURABLE)
    try:
        sentinels.start()
        yield sentinels
    finally:
        sentinels.kill()


class TestSentinels:
    def test_all_moves_work(self, sentinels: Sentinels, open_broker: OpenBroker) -> None:
        broker = open_broker(sentinels.url)

        _work(broker)

        assert "a failover can lose the last jobs" in broker.check()[1]

    def test_the_primary_is_killed_and_jobs_keep_flowing(
        self,
        sentinels: Sentinels,
        environ: dict[str, str],
        sandbox: Sandbox,
        start_idem: StartIdem,
    ) -> None:
        """Every enqueue that failed is repeated under its key, as the README says; then every email goes out once."""
        broker = RedisBroker(connect(sentinels.url), namespace=environ["IDEM_NAMESPACE"], visibility_seconds=2)
        broker.declare_queue(QUEUE)
        worker = start_idem("worker", "--threads", "2", env={"IDEM_BROKER_URL": sentinels.url})
        sandbox.order("delay", delay_ms=20)
        failed = 0
        for number in range(60):
            if number == 20:
                wait_for(sandbox.accepted)
                sentinels.servers[0].kill()
            message, _ = email_message(make_email(number), f"k{number}")
            while not _taken(broker, message):
                failed += 1

        expected = sorted(f"r{number}@example.com" for number in range(60))
        lost = set(expected)

        def sent() -> bool:
            lost.difference_update(sandbox.recipients())
            return not lost

        # Replication is asynchronous: jobs that were answered for in the last instant may be gone with the primary.
        with contextlib.suppress(AssertionError):
            wait_for(lambda: sent() or not broker.backlog().pending)
        for number in range(60):
            if f"r{number}@example.com" in lost:
                broker.enqueue(email_message(make_email(number), f"k{number}")[0])
        wait_for(sent)

        assert failed
        assert worker.stop() == 0
        assert sorted(sandbox.recipients()) == expected
        broker.close()

    def test_no_sentinel_and_no_primary(self, open_broker: OpenBroker, sentinels: Sentinels) -> None:
        nobody = f"redis+sentinel://127.0.0.1:{free_port()}/jobs/0"
        with pytest.raises(BrokerUnavailable, match="has no primary that its sentinels know of"):
            _enqueue(open_broker(nobody))
        with pytest.raises(BrokerUnavailable, match="has no primary that its sentinels know of"):
            _enqueue(open_broker(sentinels.url.replace("/jobs/", "/other/")))


def _taken(broker: RedisBroker, message: object) -> bool:
    with contextlib.suppress(BrokerError):
        broker.enqueue(message)  # type: ignore[arg-type]  # one of dramatiq's
        return True
    return False


class TlsFront:
    """TLS before a plain server: real certificates, real handshakes."""

    def __init__(self, directory: Path, server: Server) -> None:
        self.ca, key = _certificate(directory)
        self._server = server
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.ca, key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"rediss://localhost:{self._listener.getsockname()[1]}/0"

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            client = stack.enter_context(self._context.wrap_socket(plain, server_side=True))
            server = stack.enter_context(socket.create_connection(("127.0.0.1", self._server.port)))
            back = threading.Thread(target=_relay, args=(server, client), daemon=True)
            back.start()
            _relay(client, server)
            server.shutdown(socket.SHUT_RDWR)
            back.join()


def _certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for `localhost`, signed by itself, and its key."""
    openssl = shutil.which("openssl")
    assert openssl is not None, "the tests need openssl"
    certificate, key = directory / "cert.pem", directory / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    return certificate, key


_UNTRUSTED = r"has a certificate that is not to be trusted: name its CA in IDEM_BROKER_URL \(\?ssl_ca_certs=FILE\)"


def _relay(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1_000_000):
            target.sendall(data)


def test_tls_with_a_ca_of_ones_own(start: StartServer, open_broker: OpenBroker, tmp_path: Path) -> None:
    front, other = TlsFront(tmp_path, start()), tmp_path / "other"
    other.mkdir()
    try:
        _enqueue(open_broker(f"{front.url}?ssl_ca_certs={front.ca}"))
        with pytest.raises(BrokerUnavailable, match=_UNTRUSTED):
            _enqueue(open_broker(front.url))
        with pytest.raises(BrokerUnavailable, match=_UNTRUSTED):
            _enqueue(open_broker(f"{front.url}?ssl_ca_certs={_certificate(other)[0]}"))
        with pytest.raises(BrokerUnavailable, match=_UNTRUSTED):
            _enqueue(open_broker(f"{front.url}?ssl_ca_certs={front.ca}".replace("localhost", "127.0.0.1")))
        with pytest.raises(BrokerUnavailable, match="No such file"):
            _enqueue(open_broker(f"{front.url}?ssl_ca_certs={tmp_path}/nowhere.pem"))
    finally:
        front.close()


@pytest.mark.skipif(not socket.has_ipv6 or not _has_loopback_6(), reason="this machine has no IPv6")
def test_an_address_of_ipv6(start: StartServer, open_broker: OpenBroker) -> None:
    broker = open_broker(start("--bind", "::1", "127.0.0.1").url.replace("127.0.0.1", "[::1]"))

    _enqueue(broker)

    assert broker.backlog().ready == 1
