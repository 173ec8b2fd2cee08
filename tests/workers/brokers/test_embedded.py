"""The embedded server: one for each directory, there when it is needed, gone when nobody needs it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from dramatiq.errors import ConnectionClosed

from idem.errors import BrokerUnavailable
from tests.workers.parts import RunIdem, StartIdem, alive, children_of, make_email, processes_with, wait_for
from workers.brokers.embedded import EmbeddedBroker, EmbeddedServer
from workers.jobs import QUEUE, email_message

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

#: A user in a process of its own: enqueues one job, says so, and stays.
_USER = """
import sys, time
from pathlib import Path
from idem.email import Email
from workers.brokers.embedded import EmbeddedBroker, EmbeddedServer
from workers.jobs import QUEUE, email_message
broker = EmbeddedBroker(Path(sys.argv[1]), namespace="test", visibility_seconds=5)
broker.declare_queue(QUEUE)
email = Email(from_="a@example.com", to="b@example.com", subject="S", text="T")
broker.enqueue(email_message(email, None)[0])
print("enqueued", flush=True)
time.sleep(600)
"""


class Place:
    """A directory with an embedded server, and the processes that use it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.users: list[subprocess.Popen[str]] = []
        self.brokers: list[EmbeddedBroker] = []

    def broker(self) -> EmbeddedBroker:
        broker = EmbeddedBroker(self.directory, namespace="test", visibility_seconds=5)
        broker.declare_queue(QUEUE)
        self.brokers.append(broker)
        return broker

    def start_user(self) -> subprocess.Popen[str]:
        """Begin a user's process; `enqueued` on its output says that it has."""
        command = [sys.executable, "-c", _USER, str(self.directory)]
        user = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.users.append(user)
        return user

    def enqueue(self, broker: EmbeddedBroker) -> None:
        broker.enqueue(email_message(make_email(), None)[0])

    def keepers(self) -> list[int]:
        return [pid for pid in processes_with(f"{self.directory}\0") if "keeper.py" in _command(pid)]

    def servers(self) -> list[int]:
        return [child for keeper in self.keepers() for child in children_of(keeper)]

    def everything(self) -> list[int]:
        """Every process that names the directory, and every server: its working directory is there."""
        return [*processes_with(str(self.directory)), *_processes_in(self.directory)]

    def has_socket(self) -> bool:
        """Whether a server's end of a connection is open: its threads may outlive its entry in the process table."""
        return str(EmbeddedServer(self.directory).socket_path) in Path("/proc/net/unix").read_text()

    def is_closing(self) -> bool:
        """Whether the keeper has noticed that the last user has gone: it holds the users' lock for itself."""
        with (self.directory / "users.lock").open("w") as users:
            try:
                fcntl.flock(users, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def is_quiet(self) -> bool:
        return not (self.has_socket() or self.everything())

    def close(self) -> None:
        for broker in self.brokers:
            broker.close()
        for user in self.users:
            user.kill()
            user.wait()
            if user.stdout is not None:
                user.stdout.close()
        for pid in self.servers():
            # One that a test has stopped does not hear that it should end; one that has ended needs nothing.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        wait_for(self.is_quiet)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _processes_in(directory: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if entry.readlink() == directory and alive(int(entry.parent.name)):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def _enqueued(user: subprocess.Popen[str]) -> bool:
    assert user.stdout is not None
    return user.stdout.readline() == "enqueued\n"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "queue")
    yield place
    place.close()


def test_processes_that_name_one_directory_share_one_server(place: Place) -> None:
    user = place.start_user()
    assert _enqueued(user)
    broker = place.broker()

    assert broker.backlog().ready == 1
    assert len(place.keepers()) == len(place.servers()) == 1


def test_the_server_itself_holds_the_lock_that_keeps_a_second_one_away(place: Place) -> None:
    """Not its keeper alone, which may be killed; where the kernel does not end the server with it, it lives on."""
    place.enqueue(place.broker())
    (server,) = place.servers()

    held = {str(entry.readlink()) for entry in Path(f"/proc/{server}/fd").iterdir()}
    assert str(place.directory / "server.lock") in held


def test_of_eight_processes_that_start_at_once_one_starts_the_server(place: Place) -> None:
    users = [place.start_user() for _ in range(8)]

    assert all(_enqueued(user) for user in users)
    assert len(place.keepers()) == len(place.servers()) == 1
    assert place.broker().backlog().ready == 8


def test_the_server_stops_with_its_last_user(place: Place) -> None:
    first, second = place.broker(), place.broker()
    place.enqueue(first)
    assert second.backlog().ready == 1
    server = place.servers()

    first.close()
    assert second.backlog().ready == 1
    assert place.servers() == server

    second.close()
    wait_for(lambda: not (place.has_socket() or _processes_in(place.directory)))
    assert not (place.directory / "valkey.sock").exists()


def test_the_server_stops_when_all_users_are_killed(place: Place) -> None:
    users = [place.start_user(), place.start_user()]
    assert all(_enqueued(user) for user in users)

    for user in users:
        user.kill()
        user.wait()

    wait_for(place.is_quiet)


def test_a_server_that_hangs_does_not_outlive_its_last_user(place: Place) -> None:
    """Whoever comes next waits for it to be gone, and finds the jobs."""
    broker = place.broker()
    place.enqueue(broker)
    (hung,) = place.servers()
    os.kill(hung, signal.SIGSTOP)

    broker.close()
    wait_for(place.is_closing)

    assert place.broker().backlog().ready == 1
    assert hung not in place.servers()


def test_what_was_enqueued_outlives_a_kill_of_everything(place: Place) -> None:
    """The user, the keeper and the server, in this order, right after `enqueue` returned."""
    for number in range(1, 11):
        user = place.start_user()
        assert _enqueued(user)
        for pid in (user.pid, *place.keepers(), *place.servers()):
            os.kill(pid, signal.SIGKILL)
        user.wait()
        wait_for(place.is_quiet)

        broker = place.broker()
        assert broker.backlog().ready == number
        broker.close()
        wait_for(place.is_quiet)


@pytest.mark.parametrize("victims", [Place.servers, Place.keepers])
def test_the_next_command_brings_a_killed_server_back(place: Place, victims: Callable[[Place], list[int]]) -> None:
    broker = place.broker()
    place.enqueue(broker)
    before = place.servers()

    for pid in victims(place):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not place.has_socket())

    assert broker.backlog().ready == 1
    place.enqueue(broker)
    assert broker.backlog().ready == 2
    assert len(place.keepers()) == len(place.servers()) == 1
    assert place.servers() != before


def test_a_server_that_does_not_answer_gets_no_second_one_beside_it(place: Place) -> None:
    """Two servers would write one append-only file; a hung one is waited for, and its jobs are there afterwards."""
    broker = place.broker()
    place.enqueue(broker)
    (server,) = place.servers()
    os.kill(server, signal.SIGSTOP)
    # Whatever makes the socket useless, such as a full backlog of connections: somebody tries to start a server.
    (place.directory / "valkey.sock").rename(place.directory / "away.sock")
    user = place.start_user()
    keeper = wait_for(lambda: [pid for pid in place.keepers() if server not in children_of(pid)])

    assert not wait_briefly(lambda: children_of(keeper[0]))
    os.kill(server, signal.SIGKILL)

    assert _enqueued(user)
    assert broker.backlog().ready == 2


def wait_briefly(condition: Callable[[], object]) -> bool:
    """Whether the condition comes true within half a second, which is long for a server's start."""
    try:
        wait_for(condition, seconds=0.5)
    except pytest.fail.Exception:
        return False
    return True


def test_what_is_written_is_on_the_disk_before_it_is_answered_and_never_evicted(place: Place) -> None:
    """A kill cannot tell: what a process has written, the kernel keeps. A power cut could."""
    client = place.broker().link.client

    found = {name: client.config_get(name)[name] for name in ("appendonly", "appendfsync", "maxmemory-policy", "port")}
    assert found == {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "port": "0"}


def test_an_append_only_file_cut_short_by_a_crash_is_no_obstacle(place: Place) -> None:
    broker = place.broker()
    place.enqueue(broker)
    for pid in (*place.keepers(), *place.servers()):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not place.has_socket())
    (log,) = place.directory.glob("appendonlydir/*.incr.aof")
    with log.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nha")

    assert broker.backlog().ready == 1


def test_a_directory_deeper_than_a_socket_path_can_be(tmp_path: Path) -> None:
    place = Place(tmp_path.joinpath(*["a-directory-with-a-long-name"] * 6))
    broker = place.broker()
    try:
        place.enqueue(broker)
        other = place.start_user()
        assert _enqueued(other)

        assert broker.backlog().ready == 2
        assert len(place.servers()) == 1
    finally:
        place.close()


@pytest.mark.parametrize("name", ["two words", "ünïcode", "quo'te", 'quo"te', "back\\slash", "#?%20", "--dir"])
def test_a_directory_with_any_name(tmp_path: Path, name: str) -> None:
    place = Place(tmp_path / name)
    try:
        place.enqueue(place.broker())
        assert (place.directory / "appendonlydir").is_dir()
        assert len(place.servers()) == 1
    finally:
        place.close()


def test_only_the_owner_can_reach_the_server(place: Place) -> None:
    place.enqueue(place.broker())

    assert place.directory.stat().st_mode & 0o077 == 0
    assert (place.directory / "valkey.sock").stat().st_mode & 0o077 == 0


def test_a_directory_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broker = EmbeddedBroker(tmp_path / "file" / "queue", namespace="test", visibility_seconds=5)
    broker.declare_queue(QUEUE)

    with pytest.raises(BrokerUnavailable, match=r"cannot start \(Not a directory\): name a directory that can be"):
        broker.backlog()
    with pytest.raises(ConnectionClosed):
        broker.consume(QUEUE, timeout=10)
    broker.close()


def test_a_server_that_ends_at_once_is_one_clear_error(place: Place) -> None:
    (place.directory / "appendonlydir").mkdir(parents=True)
    (place.directory / "appendonlydir" / "appendonly.aof.manifest").write_text("junk")

    with pytest.raises(BrokerUnavailable, match=r"does not start: see .*valkey\.log"):
        place.broker().backlog()


def test_a_broker_that_was_not_used_leaves_nothing_behind(place: Place) -> None:
    place.broker().close()

    assert not place.directory.exists()


def test_a_broker_can_be_used_again_after_it_was_closed(place: Place) -> None:
    broker = place.broker()
    place.enqueue(broker)
    broker.close()
    wait_for(lambda: not (place.has_socket() or _processes_in(place.directory)))

    assert broker.backlog().ready == 1


def test_packages_of_the_users_own_in_the_working_directory_do_not_come_first(
    tmp_path: Path, run_idem: RunIdem, start_idem: StartIdem
) -> None:
    for name in ("workers", "idem", "redis"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    env = {"IDEM_BROKER_URL": "embedded://queue"}

    line = '{"from": "a@example.com", "to": "b@example.com", "subject": "S", "text": "T"}\n'
    assert run_idem("enqueue", "-", env=env, stdin=line).out == "enqueued 1\n"
    worker = start_idem("worker", "--processes", "2", "--until-empty", env=env)

    assert worker.wait() == 0
    assert run_idem("status", "--json", env=env).json["ledger"]["sent"] == 1


def test_the_client_never_repeats_a_command_by_itself(place: Place) -> None:
    broker = place.broker()
    place.enqueue(broker)
    os.kill(place.servers()[0], signal.SIGKILL)
    client = broker.link.client

    assert isinstance(client, redis.Redis)
    assert client.connection_pool.connection_kwargs["retry"].get_retries() == 0
