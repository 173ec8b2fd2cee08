"""Email: what it refuses, and what its canonical bytes and fingerprint may be relied on for."""

from __future__ import annotations

import base64
import contextlib
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idem.email import MAX_EMAIL_BYTES, Attachment, Email
from idem.errors import EmailError

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BASE: dict[str, Any] = {
    "from": "Ann <ann@example.com>",
    "to": ["bob@example.com"],
    "cc": ["carl@example.com"],
    "bcc": ["dora@example.com"],
    "reply_to": ["desk@example.com"],
    "subject": "Hello",
    "text": "text",
    "html": "<p>html</p>",
    "headers": {"X-One": "1", "X-Two": "2"},
    "tags": ["a", "b"],
    "metadata": {"order": "1", "shop": "2"},
    "attachments": [{"filename": "a.txt", "content": base64.b64encode(b"abc").decode(), "content_type": "text/plain"}],
}

texts = st.text(max_size=30)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
addresses = st.builds("{} <{}@example.com>".format, texts, st.text(max_size=10)) | st.just("ann@example.com")


def _email(**changes: object) -> Email:
    parts = {name: value for name, value in (_BASE | changes).items() if value is not None}
    return Email.from_dict(parts)


def _visible(email: Email) -> list[str]:
    return [
        email.from_, *email.to, *email.cc, *email.bcc, *email.reply_to, email.subject, *email.tags,
        *email.headers, *email.headers.values(), *email.metadata, *email.metadata.values(),
        *(item.filename for item in email.attachments), *(item.content_type for item in email.attachments),
        *(item.content_id or "" for item in email.attachments),
    ]  # fmt: skip


@given(
    sender=addresses,
    to=st.lists(addresses, max_size=2),
    subject=texts,
    headers=st.dictionaries(st.just("X-A") | texts, texts, max_size=2),
    tags=st.lists(texts, max_size=2),
    metadata=st.dictionaries(texts, texts, max_size=2),
    filename=texts,
)
@settings(max_examples=300)
def test_no_control_character_survives_in_any_field(  # noqa: PLR0913 - one argument a field
    *,
    sender: str,
    to: list[str],
    subject: str,
    headers: dict[str, str],
    tags: list[str],
    metadata: dict[str, str],
    filename: str,
) -> None:
    """An email that exists cannot end a header line early, in any of its fields."""
    email = None
    with contextlib.suppress(EmailError):
        email = Email(
            from_=sender,
            to=["bob@example.com", *to],
            subject=subject,
            text="",
            headers=headers,
            tags=tags,
            metadata=metadata,
            attachments=[Attachment(filename=filename, content=b"", content_id=filename)],
        )
    assert email is None or not any(_CONTROL.search(value) for value in _visible(email))


@given(st.dictionaries(st.sampled_from(sorted(_BASE)), anything, max_size=3))
@settings(max_examples=300)
def test_any_json_is_an_email_or_an_email_error(changes: dict[str, Any]) -> None:
    """What JSON can hold never raises anything else."""
    try:
        email = Email.from_dict(_BASE | changes)
    except EmailError:
        return
    assert Email.from_canonical(email.canonical()) == email


@given(st.randoms(use_true_random=False))
def test_the_canonical_bytes_do_not_depend_on_the_order_of_the_parts(dice: random.Random) -> None:
    """The same email, written in another order, is the same email."""

    def shuffled(parts: dict[str, Any]) -> dict[str, Any]:
        items = list(parts.items())
        dice.shuffle(items)
        return {name: shuffled(value) if isinstance(value, dict) else value for name, value in items}

    email = Email.from_dict(shuffled(_BASE))

    assert email.canonical() == _email().canonical()
    assert email.fingerprint() == _email().fingerprint()
    assert hash(email) == hash(_email())
    assert email == _email()


_FILE = _BASE["attachments"][0]


@pytest.mark.parametrize(
    "changes",
    [
        {"from": "ann@example.com"},
        {"to": ["bob@example.com", "eve@example.com"]},
        {"to": ["Bob <bob@example.com>"]},
        {"cc": []},
        {"cc": ["dora@example.com"], "bcc": ["carl@example.com"]},
        {"cc": ["carl@example.com", "dora@example.com"], "bcc": []},
        {"reply_to": []},
        {"subject": ""},
        {"text": None},
        {"text": ""},
        {"html": None},
        {"text": "<p>html</p>", "html": "text"},
        {"headers": {"X-One": "1"}},
        {"headers": {"X-One": "2", "X-Two": "1"}},
        {"headers": {"X-One": "1", "X-Three": "2"}},
        {"tags": ["b", "a"]},
        {"metadata": {"order": "2", "shop": "2"}},
        {"attachments": []},
        {"attachments": [_FILE, _FILE]},
        {"attachments": [_FILE | {"filename": "b.txt"}]},
        {"attachments": [_FILE | {"content": "YWJk"}]},
        {"attachments": [_FILE | {"content_type": "text/html"}]},
        {"attachments": [_FILE | {"content_id": "a"}]},
    ],
    ids=str,
)
def test_any_difference_is_another_fingerprint(changes: dict[str, Any]) -> None:
    """Whatever a receiver could see differently makes it another email."""
    assert _email(**changes).fingerprint() != _email().fingerprint()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"from": None}, "from"),
        ({"from": ["ann@example.com"]}, "from"),
        ({"to": []}, "to"),
        ({"to": {"a": 1}}, "to"),
        ({"to": 5}, "to"),
        ({"subject": None}, "subject"),
        ({"subject": "a\nb"}, "subject"),
        ({"subject": "x" * 999}, "subject"),
        ({"text": None, "html": None}, "text"),
        ({"text": "a\x00b"}, "text"),
        ({"html": "\ud800"}, "html"),
        ({"html": 5}, "html"),
        ({"txt": "x"}, "txt"),
        ({"headers": ["X-A"]}, "headers"),
        ({"headers": {"X A": "1"}}, "headers"),
        ({"headers": {"Bcc": "eve@example.com"}}, "headers.Bcc"),
        ({"headers": {"content-type": "text/html"}}, "headers.content-type"),
        ({"headers": {"X-A": "1", "x-a": "2"}}, "headers.x-a"),
        ({"headers": {"X-A": 1}}, "headers.X-A"),
        ({"headers": {f"X-{number}": "" for number in range(101)}}, "headers"),
        ({"tags": "a,b"}, "tags"),
        ({"tags": [""]}, "tags"),
        ({"tags": ["a"] * 51}, "tags"),
        ({"metadata": {"": "x"}}, "metadata"),
        ({"metadata": {"a": None}}, "metadata.a"),
        ({"attachments": "abc"}, "attachments"),
        ({"attachments": ["abc"]}, "attachments"),
        ({"attachments": [{"filename": None, "content": ""}]}, "attachments"),
        ({"attachments": [_FILE | {"content": "%"}]}, "attachments.content"),
        ({"attachments": [_FILE | {"content_type": "text"}]}, "attachments.content_type"),
        ({"attachments": [_FILE | {"content_type": "multipart/mixed; boundary=a"}]}, "attachments.content_type"),
        ({"attachments": [_FILE | {"filename": ""}]}, "attachments.filename"),
        ({"attachments": [_FILE] * 101}, "attachments"),
        ({"to": [f"a{number}@example.com" for number in range(1001)]}, "to"),
        ({"text": "x" * (MAX_EMAIL_BYTES + 1), "html": None, "attachments": []}, "text"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_each_refusal_names_its_field(changes: dict[str, Any], field: str) -> None:
    """The error says where to look."""
    with pytest.raises(EmailError) as caught:
        _email(**changes)

    assert caught.value.field == field


def test_a_hundred_thousand_headers_are_refused_at_once() -> None:
    """Their number is looked at before each of them is compared with the others."""
    with pytest.raises(EmailError, match="100000 of them"):
        _email(headers={f"X-{number}": "" for number in range(100_000)})


def test_the_repr_shows_nothing_private() -> None:
    """Neither an address nor content ends up in a log by way of a repr."""
    shown = repr(_email()) + repr(_email().attachments[0])

    assert "3 recipients" in shown
    assert not re.search("@|Hello|html|abc", shown)


def test_a_header_is_taken_off_in_any_case() -> None:
    """All the rest stays as it was."""
    assert _email().without_header("x-one") == _email(headers={"X-Two": "2"})
