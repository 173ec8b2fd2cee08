"""The receiver: 2xx once the jobs are in the queue, 4xx for what is not genuine, 503 while the broker is away."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from dramatiq import Message
from starlette.applications import Starlette
from starlette.routing import Mount

from idem import Email
from idem.errors import BrokerUnavailable, JobError, LedgerUnavailable, SettingsError
from idem.keys import event_key
from tests.workers.parts import RunIdem, Sandbox, StartIdem, Valkey, wait_for
from tests.workers.webhooks.deliveries import NOW, PLAIN, SECRETS, WHSEC, Posted, post, sign
from tests.workers.webhooks.key_pairs import ec_key, private, public
from workers import App, Event
from workers.sandbox.asymmetric import sign_ec
from workers.sandbox.webhooks import SES_CERTIFICATE, SES_TOPIC
from workers.settings import Settings
from workers.webhooks import ses
from workers.webhooks.app import Receiver, build_app
from workers.webhooks.declared import Declared
from workers.webhooks.sources import Source, open_sources

LIMIT = 4_096


class Clock:
    def now(self) -> float:
        return NOW

    def boot(self) -> float:
        return NOW

    def sleep(self, seconds: float) -> None:
        raise AssertionError(seconds)


class Scene:
    """A receiver whose queue is a list, and which may be made to fail."""

    def __init__(self) -> None:
        self.queue: list[dict[str, Any]] = []
        self.heard: list[str] = []
        self.failure: Exception | None = None
        self.deaf: Exception | None = None
        self.declared = Declared()
        self.sources = open_sources({name: (secret,) for name, secret in SECRETS.items()})
        self.receiver = Receiver(
            self.sources,
            self.declared,
            self._enqueue,
            hear=self._hear,
            clock=Clock(),
            tolerance_seconds=300.0,
            most_bytes=LIMIT,
        )
        self.app = build_app(self.receiver)

    def _hear(self, event: Event) -> bool:
        if self.deaf is not None:
            raise self.deaf
        self.heard.append(event.id)
        return True

    def _enqueue(self, message: Message[None]) -> None:
        if self.failure is not None:
            raise self.failure
        self.queue.append(message.kwargs)

    def post(self, path: str, posted: Posted, **extra: Any) -> httpx.Response:
        return self.request("POST", path, headers=posted.raw(), content=posted.body, **extra)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://hooks") as client:
                return await client.request(method, path, **options)

        return asyncio.run(call())


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    for sender in SECRETS:
        scene.declared.add(sender, ["thing.happened"], "receipt", None)
    return scene


@pytest.mark.parametrize("sender", SECRETS)
def test_an_event_becomes_a_job(scene: Scene, sender: str) -> None:
    answer = scene.post(f"/{sender}", post(sender, amount=7))

    (job,) = scene.queue
    assert answer.status_code == 200
    assert (job["job"], job["key"]) == ("receipt", f"{sender}/evt_1/receipt")
    assert Event.from_dict(job["args"][0]).data["amount"] == 7


def test_several_jobs_for_one_event_each_have_a_key(scene: Scene) -> None:
    scene.declared.add("stripe", ["thing.happened", "thing.happened"], "ledger", None)
    scene.post("/stripe", post("stripe"))

    assert [job["key"] for job in scene.queue] == ["stripe/evt_1/receipt", "stripe/evt_1/ledger"]


def test_an_unknown_type_is_taken_and_counted(scene: Scene) -> None:
    answer = scene.post("/stripe", sign("stripe", b'{"id": "evt_1", "type": "never.heard"}'))

    assert (answer.status_code, scene.queue) == (200, [])
    assert scene.receiver.counts == {("stripe", "ignored"): 1}


def test_a_broker_that_is_away_is_told_as_such(scene: Scene) -> None:
    scene.failure = BrokerUnavailable("it does not answer")
    answer = scene.post("/stripe", post("stripe"))

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    scene.failure = None
    assert scene.post("/stripe", post("stripe")).status_code == 200


def test_what_the_queue_cannot_hold_is_refused(scene: Scene) -> None:
    scene.failure = JobError("it is too large")

    assert scene.post("/stripe", post("stripe")).status_code == 422


@pytest.mark.parametrize(
    ("path", "posted", "status"),
    [
        ("/nobody", post("stripe"), 404),
        ("/stripe/", post("stripe"), 404),
        ("/stripe/x", post("stripe"), 404),
        ("/%FF", post("stripe"), 404),
        ("/github", post("stripe"), 400),
        ("/stripe", post("stripe", secret=PLAIN), 401),
        ("/stripe", post("stripe", at=NOW - 301), 401),
        ("/stripe", post("stripe", at=NOW + 301), 401),
        ("/stripe", sign("stripe", b"{"), 400),
        ("/stripe", sign("stripe", b"\xff"), 400),
        ("/stripe", sign("stripe", b"[" * 4_000), 400),
        ("/stripe", sign("stripe", b'{"type": "thing.happened"}'), 400),
        ("/stripe", post("stripe", filler="x" * LIMIT), 413),
    ],
)
def test_what_is_not_right_is_a_4xx_and_no_effect(scene: Scene, path: str, posted: Posted, status: int) -> None:
    answer = scene.post(path, posted)

    assert (answer.status_code, scene.queue) == (status, [])


def test_other_methods_are_refused(scene: Scene) -> None:
    assert {scene.request(method, "/stripe").status_code for method in ("GET", "PUT", "DELETE", "OPTIONS")} == {405}


def test_a_body_is_not_read_beyond_the_limit(scene: Scene) -> None:
    """Neither one that says its length, whether or not that is one, nor one that says none."""
    read: list[int] = []

    async def receive() -> dict[str, Any]:
        read.append(1)
        return {"type": "http.request", "body": b"x" * 1_000, "more_body": True}

    def status(*headers: tuple[bytes, bytes]) -> int:
        sent: list[Any] = []
        scope = {"type": "http", "method": "POST", "path": "/stripe", "headers": list(headers), "query_string": b""}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(scene.app(scope, receive, send))
        return int(sent[0]["status"])

    assert status((b"content-length", b"4097")) == 413
    assert status((b"content-length", b"9" * 5_000)) == 413
    assert read == []
    assert status() == status((b"content-length", b"-1")) == status((b"content-length", b"\xb2")) == 413
    assert len(read) == 15


def test_a_client_that_leaves_is_no_error(scene: Scene) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/stripe", "headers": [], "query_string": b""}
    asyncio.run(scene.app(scope, receive, send))

    assert sent[0]["status"] == 408


def test_it_can_be_mounted_in_an_application(scene: Scene) -> None:
    scene.app = Starlette(routes=[Mount("/hooks", scene.app)])

    assert scene.post("/hooks/stripe", post("stripe")).status_code == 200


class TestDeclaring:
    @pytest.fixture
    def app(self) -> App:
        return App(Settings())

    def test_a_function_stays_one(self, app: App) -> None:
        @app.webhook("stripe", "a", "b")
        def receipt(event: Event) -> Email:
            return Email(from_="a@example.com", to="b@example.com", subject=event.id, text="x")

        event = Event(source="stripe", id="evt_1", type="a", created=None, data={})

        assert receipt(event) == app.jobs["receipt"](event.as_dict())

    @pytest.mark.parametrize(
        ("source", "types", "function", "problem"),
        [
            ("strip", ("a",), lambda _event: None, "no sender is named 'strip'"),
            ("stripe", (), lambda _event: None, "one type or more"),
            ("stripe", ("",), lambda _event: None, "one type or more"),
            ("stripe", ("a",), lambda: None, "takes one argument"),
            ("stripe", ("a",), lambda _event, _more: None, "takes one argument"),
        ],
    )
    def test_what_could_never_run_is_said_at_once(
        self, app: App, source: str, types: tuple[str, ...], function: Callable[..., None], problem: str
    ) -> None:
        with pytest.raises(JobError, match=problem):
            app.webhook(source, *types)(function)

    def test_a_coroutine_is_none(self, app: App) -> None:
        async def receipt(_event: Event) -> None: ...

        with pytest.raises(JobError, match="coroutines"):
            app.webhook("stripe", "a")(receipt)  # type: ignore[arg-type]

    def test_two_jobs_need_two_names(self, app: App) -> None:
        app.webhook("stripe", "a", name="receipt")(lambda _event: None)
        with pytest.raises(JobError, match="two jobs are named 'receipt'"):
            app.webhook("github", "a", name="receipt")(lambda _event: None)

    def test_a_source_without_a_secret_is_said_at_once(self, app: App) -> None:
        app.webhook("stripe_eu", "a", name="receipt")(lambda _event: None)
        with pytest.raises(SettingsError, match="IDEM_STRIPE_EU_WEBHOOK_SECRET is not set"):
            app.webhooks()

    def test_a_message_that_holds_no_event_is_a_job_that_cannot_run(self, app: App) -> None:
        app.webhook("stripe", "a", name="receipt")(lambda _event: None)
        with pytest.raises(JobError, match="holds no event"):
            app.jobs["receipt"]({"id": 7})


def test_keys_of_events_are_apart() -> None:
    ids = ["a", "a/b", "a%2Fb", "b" * 255, "b" * 254, "%" * 200, "%25" * 67]
    keys = {event_key("stripe", event_id, purpose) for event_id in ids for purpose in ("c", "b/c")}

    assert len(keys) == 2 * len(ids)
    assert event_key("stripe", "evt_1", "receipt") == "stripe/evt_1/receipt"
    assert max(map(len, keys)) <= 255


SHOP = """
from idem import Email
from workers import App, Event

app = App.from_env()

@app.webhook("stripe", "thing.happened")
def receipt(event: Event) -> Email:
    return Email(from_="shop@example.com", to=event.data["to"], subject=event.id, text="Thank you!")
"""


@pytest.fixture
def served(tmp_path: Path, start_idem: StartIdem) -> Iterator[httpx.Client]:
    """The receiver as a process, on the real broker."""
    (tmp_path / "shop.py").write_text(SHOP)
    running = start_idem("webhooks", "--app", "shop:app", "--port", "0", env={"IDEM_STRIPE_WEBHOOK_SECRET": WHSEC})
    url = wait_for(lambda: "/stripe" in running.log and running.log.split()[-1])
    with httpx.Client(base_url=url.removesuffix("/stripe"), timeout=10) as client:
        yield client


def test_end_to_end(served: httpx.Client, run_idem: RunIdem, sandbox: Sandbox) -> None:
    """Three deliveries of two events, and a forged one: two emails."""
    at = int(time.time())
    genuine = [post("stripe", event_id=f"evt_{n}", at=at, to=f"{n}@example.com") for n in (1, 2, 1)]
    forged = post("stripe", event_id="evt_3", at=at, to="3@example.com", secret=PLAIN)
    answers = [served.post("/stripe", content=each.body, headers=dict(each.headers)) for each in [*genuine, forged]]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 401]

    assert run_idem("worker", "--app", "shop:app", "--until-empty").status == 0
    assert sorted(sandbox.recipients()) == ["1@example.com", "2@example.com"]
    shown = run_idem("explain", "stripe/evt_1/receipt", "--json").json
    assert shown["state"] == "sent"


def test_by_default_a_body_may_be_as_large_as_the_largest_of_sendgrid(served: httpx.Client) -> None:
    large = post("stripe", at=int(time.time()), to="1@example.com", filler="x" * 768 * 1024)

    assert served.post("/stripe", content=large.body, headers=dict(large.headers)).status_code == 200


def test_nothing_is_answered_2xx_that_is_not_in_the_queue(
    own_valkey: Valkey, tmp_path: Path, start_idem: StartIdem, run_idem: RunIdem, sandbox: Sandbox
) -> None:
    """The server that holds the queue is killed: 503 until it is back, and what was answered 200 is still there."""
    (tmp_path / "shop.py").write_text(SHOP)
    env = {"IDEM_STRIPE_WEBHOOK_SECRET": WHSEC, "IDEM_BROKER_URL": own_valkey.url}
    running = start_idem("webhooks", "--app", "shop:app", "--port", "0", env=env)
    url = wait_for(lambda: "/stripe" in running.log and running.log.split()[-1])

    def status(number: int) -> int:
        posted = post("stripe", event_id=f"evt_{number}", at=int(time.time()), to=f"{number}@example.com")
        return httpx.post(url, content=posted.body, headers=dict(posted.headers), timeout=30).status_code

    assert status(1) == 200
    own_valkey.kill()
    assert status(2) == 503
    own_valkey.start()
    wait_for(lambda: status(2) == 200)
    assert run_idem("worker", "--app", "shop:app", "--until-empty", env=env).status == 0
    assert sorted(sandbox.recipients()) == ["1@example.com", "2@example.com"]


def test_json_of_an_event_is_what_was_posted() -> None:
    event = Event(source="stripe", id="e", type="t", created=1.5, data={"a": [1, None, "é"]})

    assert Event.from_dict(json.loads(json.dumps(event.as_dict()))) == event


def test_what_tells_of_an_email_is_heard_without_a_job(scene: Scene) -> None:
    """And what tells of nothing that we know is taken and counted."""
    for kind in ("email.delivered", "domain.created"):
        body = json.dumps({"id": kind, "type": kind, "data": {}}).encode()
        assert scene.post("/getmailer", sign("getmailer", body)).status_code == 200

    assert (scene.queue, scene.heard) == ([], ["email.delivered"])
    assert scene.receiver.counts["getmailer", "heard"] == 1
    assert scene.receiver.counts["getmailer", "ignored"] == 1


def test_a_ledger_that_does_not_answer_puts_an_event_off(scene: Scene) -> None:
    """It is posted again; its job was not enqueued, or is enqueued once more under its key."""
    scene.declared.add("getmailer", ["email.delivered"], "receipt", None)
    scene.deaf = LedgerUnavailable("the ledger does not answer")
    body = json.dumps({"id": "e", "type": "email.delivered", "data": {}}).encode()
    answer = scene.post("/getmailer", sign("getmailer", body))

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert scene.receiver.counts["getmailer", "put off"] == 1
    scene.deaf = None
    assert scene.post("/getmailer", sign("getmailer", body)).status_code == 200
    assert [job["job"] for job in scene.queue] == ["receipt"]


def test_a_delivery_with_many_events_is_taken_whole(scene: Scene) -> None:
    """A job for each that one waits for."""
    listed = [{"sg_event_id": f"e{number}", "event": "bounce"} for number in range(3)]
    body, at = json.dumps(listed).encode(), str(NOW)
    signature = sign_ec(private(ec_key()), at.encode() + body)
    headers = {
        "x-twilio-email-event-webhook-signature": signature,
        "x-twilio-email-event-webhook-timestamp": at,
    }
    scene.declared.add("sendgrid", ["bounce"], "receipt", None)
    scene.sources |= open_sources({"sendgrid": (public(ec_key()),)})
    answer = scene.post("/sendgrid", Posted(headers, body))

    assert answer.status_code == 200
    assert [job["key"] for job in scene.queue] == [f"sendgrid/e{number}/receipt" for number in range(3)]
    assert scene.heard == ["e0", "e1", "e2"]


def test_a_sender_that_cannot_be_checked_now_is_told_to_come_again(scene: Scene) -> None:
    """On a thread: the certificate is asked of another server."""
    loops: list[bool] = []

    def fetch(_url: str) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            loops.append(False)
        else:
            loops.append(True)

    scheme = ses.scheme(ses.Topics(fetch))
    scene.sources |= {"ses": Source("ses", scheme, scheme.keys([SES_TOPIC]))}
    envelope = {
        "Type": "Notification",
        "MessageId": "m",
        "Message": "{}",
        "Timestamp": "t",
        "TopicArn": SES_TOPIC,
        "SigningCertURL": SES_CERTIFICATE,
        "SignatureVersion": "2",
        "Signature": "AAAA",
    }
    answer = scene.post("/ses", Posted({}, json.dumps(envelope).encode()))

    assert (answer.status_code, loops) == (503, [False])
