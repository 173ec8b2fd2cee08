"""Every sender's scheme: what is genuine is opened, and nothing else is; senders' own libraries are the judges."""

from __future__ import annotations

import importlib
import json
import time
from typing import Any

import lettermint
import pytest
import standardwebhooks
import stripe
from hypothesis import given, settings
from hypothesis import strategies as st

from idem.errors import SettingsError
from tests.workers.webhooks.deliveries import NOW, PLAIN, SECRETS, TIMED, WHSEC, Posted, post, sign
from workers.sandbox.webhooks import SCHEMES as SANDBOX
from workers.settings import WEBHOOKS
from workers.webhooks.delivery import Delivery, Refused
from workers.webhooks.event import Event
from workers.webhooks.signatures import Tolerance
from workers.webhooks.sources import SCHEMES, open_sources, sender_of

SENDERS = tuple(SECRETS)
#: What they sign is not the body alone, or nothing is: `test_own_ways.py`.
OWN_WAYS = ("postmark", "ses", "sendgrid", "mailgun", "brevo")


def opened(sender: str, posted: Posted, *, secrets: tuple[str, ...] = (), now: float = NOW) -> Event:
    source = open_sources({sender: secrets or (SECRETS[sender],)})[sender]
    (event,) = source.open(Delivery.of(posted.raw(), posted.body), Tolerance(now, 300.0))
    return event


def refusal(sender: str, posted: Posted, **options: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        opened(sender, posted, **options)
    assert 400 <= caught.value.status < 500
    return caught.value


def test_settings_know_every_sender_and_every_sender_has_its_file() -> None:
    assert set(WEBHOOKS) == set(SCHEMES) == {*SENDERS, *OWN_WAYS}
    assert all(importlib.import_module(f"workers.webhooks.{name}").SCHEME is SCHEMES[name] for name in WEBHOOKS)


@pytest.mark.parametrize("sender", SENDERS)
class TestEachSender:
    def test_what_is_genuine_is_opened(self, sender: str) -> None:
        event = opened(sender, post(sender, amount=7))

        assert (event.source, event.id, event.type, event.data["amount"]) == (sender, "evt_1", "thing.happened", 7)

    def test_a_changed_body_is_forged(self, sender: str) -> None:
        posted = post(sender)

        assert refusal(sender, Posted(posted.headers, posted.body + b" ")).status == 401

    def test_another_secret_is_forged(self, sender: str) -> None:
        assert refusal(sender, post(sender, secret=SECRETS[sender][:-4] + "AAAA")).status == 401

    def test_either_secret_is_good_while_one_takes_the_place_of_another(self, sender: str) -> None:
        new = WHSEC[:-4] + "AAAA" if SECRETS[sender] == WHSEC else PLAIN[::-1]
        secrets = (SECRETS[sender], new)

        assert opened(sender, post(sender), secrets=secrets) == opened(
            sender, post(sender, secret=new), secrets=secrets
        )

    def test_no_header_may_be_missing(self, sender: str) -> None:
        posted = post(sender)
        needed = [name for name in posted.headers if (sender, name) != ("nuntly", "webhook-timestamp")]
        for name in needed:
            left = {other: value for other, value in posted.headers.items() if other != name}

            refusal(sender, Posted(left, posted.body))

    def test_no_header_may_come_twice(self, sender: str) -> None:
        posted = post(sender)
        source = open_sources({sender: (SECRETS[sender],)})[sender]
        for name, value in posted.raw():
            if (sender, name) == ("nuntly", b"webhook-timestamp"):
                continue
            with pytest.raises(Refused, match="more than once"):
                source.open(Delivery.of([*posted.raw(), (name.upper(), value)], posted.body), Tolerance(NOW, 300))

    @pytest.mark.parametrize(
        "body",
        [b"", b"[]", b"1", b"{", b"\xff{}", b'{"a": NaN}', b'{"a": "\\ud800"}', b'{"a":' * 100_000, b'{"a":1e999}'],
    )
    def test_what_is_signed_and_no_event_is_refused(self, sender: str, body: bytes) -> None:
        refusal(sender, sign(sender, body))

    def test_what_is_nested_too_deeply_is_refused(self, sender: str) -> None:
        deep = b'{"id": "e", "type": "t", "event": "t", "a": ' + b"[" * 100 + b"]" * 100 + b"}"

        assert "deeply" in refusal(sender, sign(sender, deep)).reason

    def test_an_event_without_a_name_is_refused(self, sender: str) -> None:
        """Twice could not be told from once."""
        for name in ("", "x" * 256, "line\x7f"):
            refusal(sender, post(sender, event_id=name))
        if sender not in {"github", "shopify", "standard", "resend"}:
            values: tuple[object, ...] = (None, 7, ["evt"], {})
            for value in values:
                body = json.dumps({"id": value, "type": "t", "event": "t"}).encode()
                assert "no id" in refusal(sender, sign(sender, body)).reason


@pytest.mark.parametrize("sender", TIMED)
def test_the_signed_instant_is_near(sender: str) -> None:
    for seconds in (-300, 300):
        opened(sender, post(sender), now=NOW + seconds)
    for seconds in (-301, 301):
        assert refusal(sender, post(sender), now=NOW + seconds).status == 401


@pytest.mark.parametrize("sender", TIMED)
@pytest.mark.parametrize("instant", ["", "-1", "1e9", "١٨٠٠٠٠٠٠٠٠", "1800000000.0", "9" * 5_000, "+1800000000", "nan"])
def test_an_instant_that_is_none_is_refused(sender: str, instant: str) -> None:
    posted = post(sender)
    headers = {
        name: value.replace(str(NOW), instant.encode().decode("latin-1")) for name, value in posted.headers.items()
    }

    refusal(sender, Posted(headers, posted.body))


class TestJudges:
    """The senders' own libraries take what our tests sign, and we take what they sign."""

    def test_standard_webhooks(self) -> None:
        posted = post("standard", at=int(time.time()))
        judge = standardwebhooks.Webhook(WHSEC)

        assert judge.verify(posted.body, dict(posted.headers))["id"] == "evt_1"
        assert opened("standard", posted, now=time.time()).id == "evt_1"

    def test_stripe(self) -> None:
        posted = post("stripe", at=int(time.time()), object="event")
        stripe.WebhookSignature.verify_header(posted.body.decode(), posted.headers["stripe-signature"], WHSEC, 300)

        assert opened("stripe", posted, now=time.time()).id == "evt_1"

    def test_lettermint(self) -> None:
        posted = post("lettermint", at=int(time.time()))

        assert lettermint.Webhook(WHSEC).verify(posted.body, dict(posted.headers))["id"] == "evt_1"
        assert opened("lettermint", posted, now=time.time()).id == "evt_1"

    @given(st.text(st.characters(max_codepoint=255), max_size=80), st.binary(max_size=80))
    @settings(max_examples=300, deadline=None)
    def test_what_a_judge_refuses_so_do_we(self, header: str, body: bytes) -> None:
        posted = Posted({"stripe-signature": header}, body)

        refusal("stripe", posted)
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever it raises
            stripe.WebhookSignature.verify_header(body.decode(), header, WHSEC, 300)


def test_svix_headers_and_those_of_the_standard_are_one_scheme() -> None:
    standard, svix = post("standard"), post("resend")

    assert opened("resend", standard).id == opened("standard", svix).id
    assert refusal("resend", Posted({**svix.headers, "webhook-id": "other"}, svix.body)).status == 400


def test_of_several_signatures_any_may_match() -> None:
    posted = post("standard")
    signature = posted.headers["webhook-signature"]
    for listed in (f"v1a,junk {signature}", f"v1,AAAA {signature}", f"junk {signature} v1,"):
        assert opened("standard", Posted({**posted.headers, "webhook-signature": listed}, posted.body))
    assert (
        refusal("standard", Posted({**posted.headers, "webhook-signature": signature[3:]}, posted.body)).status == 401
    )


@pytest.mark.parametrize("joined", ["{},{}", "{},v0={}"])
def test_nuntly_has_two_ways_of_writing_two(joined: str) -> None:
    posted = post("nuntly")
    at, _, signature = posted.headers["webhook-signature"].partition(",v0=")
    listed = f"{at},v0=" + joined.format("0" * 64, signature)

    assert opened("nuntly", Posted({"webhook-signature": listed}, posted.body))


def test_the_instant_of_lettermint_is_signed() -> None:
    posted = post("lettermint")

    assert refusal("lettermint", Posted({**posted.headers, "x-lettermint-delivery": "1"}, posted.body)).status == 401


def test_an_account_has_its_own_secrets_and_names() -> None:
    sources = open_sources({"stripe": (WHSEC,), "stripe_eu": (PLAIN,)})
    posted = post("stripe", secret=PLAIN)

    (event,) = sources["stripe_eu"].open(Delivery.of(posted.raw(), posted.body), Tolerance(NOW, 300))

    assert event.source == "stripe_eu"
    with pytest.raises(Refused):
        sources["stripe"].open(Delivery.of(posted.raw(), posted.body), Tolerance(NOW, 300))
    assert [sender_of(name) for name in ("stripe", "stripe_eu", "strip", "stripe_", "Stripe", "stripe/x")] == [
        "stripe", "stripe", None, None, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "secret", "problem"),
    [
        ("standard", "whsec_%", "Base64"),
        ("standard", "whsec_", "8 bytes"),
        ("nuntly", "whsec_", "8 bytes"),
        ("github", "short", "8 bytes"),
        ("nobody", PLAIN, "no sender"),
    ],
)
def test_a_secret_that_is_none_is_refused_at_once(name: str, secret: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem) as caught:
        open_sources({name: (secret,)})
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("created", "seconds"),
    [
        (5, 5.0),
        ("1970-01-01T00:00:05Z", 5.0),
        ("1970-01-01T00:00:05", None),
        ("soon", None),
        (True, None),
        (1e300, None),
    ],
)
def test_when_it_happened(created: object, seconds: float | None) -> None:
    assert opened("stripe", post("stripe", created=created)).created == seconds


def test_the_sandbox_signs_as_its_providers_do() -> None:
    assert {"lettermint", "getmailer", "nuntly", "resend"} <= SANDBOX.keys() & SCHEMES.keys()


@given(
    st.sampled_from(SENDERS),
    st.lists(
        st.tuples(
            st.sampled_from(sorted({name for sender in SENDERS for name in post(sender).headers})),
            st.one_of(
                st.sampled_from(sorted({v for sender in SENDERS for v in post(sender).headers.values()})),
                st.binary(max_size=40).map(lambda raw: raw.decode("latin-1")),
            ),
        ),
        max_size=6,
    ),
    st.binary(max_size=60),
)
@settings(max_examples=500, deadline=None)
def test_no_delivery_crashes_it(sender: str, headers: list[tuple[str, str]], body: bytes) -> None:
    """And none is taken: the signatures are genuine ones, of other bodies."""
    source = open_sources({sender: (SECRETS[sender],)})[sender]
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    with pytest.raises(Refused) as caught:
        source.open(Delivery.of(raw, body), Tolerance(NOW, 300.0))
    assert 400 <= caught.value.status < 500
