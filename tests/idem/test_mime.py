"""MIME in both directions: what is read, what is refused, and that nothing is lost on the way there and back."""

from __future__ import annotations

import base64
import contextlib
import time
from email import message_from_bytes, message_from_string, policy
from email.header import Header
from email.message import EmailMessage, Message
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idem.address import Address
from idem.email import Attachment, Email
from idem.errors import EmailError
from idem.mime import MAX_NESTING, from_bytes, from_message, to_message

HEAD = b"From: Ann <ann@example.com>\nTo: bob@example.com\nSubject: Hello\n"

# One line of text: what a header, a name or a filename may hold.
line = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=60)
line_or_trap = line | st.sampled_from(
    ["=?utf-8?q?a?=", " a ", "a  b", "=?", "?=", '"', "\\", "a\\", "(", "x" * 950, "é" * 200]
)
body = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=200) | st.sampled_from(
    ["", "\n", "a\r\nb\rc\n", "From me\n.\n..\n", "x" * 2000, "--=_\n--=_--\n", "tab\tand space \n", "é" * 500, "=3D"],
)
address = st.builds(
    lambda name, spec: str(Address(spec, name)),
    line_or_trap.map(lambda name: name[:300]),
    st.sampled_from(["ann@example.com", "o'hara+x@example.co.uk", "zoë@exämple.com"]),
)
some_addresses = st.lists(address, max_size=4)
media_type = st.sampled_from(
    ["image/png", "text/csv; charset=utf-8", "application/pdf", "text/calendar; method=REQUEST", "a/b"]
)
# The line ends of an attached message are the one thing about it that is not kept.
message_content = st.binary(max_size=200).map(
    lambda data: data.replace(b"\r", b"").replace(b"\n", b"")
) | st.sampled_from(
    [
        b"Subject: a\r\n\r\nb\r\n",
        b"\r\n",
        b"X: =?\r\n y\r\n\r\n",
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b--\r\n",
    ]
)
attachment = st.builds(
    lambda content, **parts: Attachment(content=content[0], content_type=content[1], **parts),
    content=st.tuples(st.binary(max_size=200), media_type)
    | st.tuples(message_content, st.sampled_from(["message/rfc822", "message/delivery-status", "message/partial"])),
    filename=line_or_trap.filter(bool).map(lambda name: name[:255]),
    content_id=st.none() | line_or_trap.filter(bool).map(lambda value: value[:255]),
)
header_name = st.sampled_from(["X-One", "List-Unsubscribe", "In-Reply-To", "Sender", "X-" + "Long" * 18])
emails = st.builds(
    lambda bodies, **parts: Email(text=bodies[0], html=bodies[1], **parts),
    bodies=st.tuples(body, st.none()) | st.tuples(st.none(), body) | st.tuples(body, body),
    from_=address,
    to=some_addresses.map(lambda items: [*items, "bob@example.com"]),
    cc=some_addresses,
    bcc=some_addresses,
    reply_to=some_addresses,
    subject=line_or_trap,
    headers=st.dictionaries(header_name, line_or_trap, max_size=4),
    attachments=st.lists(attachment, max_size=3),
)


def _as_read_back(email: Email) -> Email:
    """What the docstrings promise to keep: bcc aside, line ends aside, inline attachments first."""

    def lines(text: str | None) -> str | None:
        return None if text is None else text.replace("\r\n", "\n").replace("\r", "\n")

    inline = [item for item in email.attachments if item.content_id is not None and email.html is not None]
    others = [item for item in email.attachments if item.content_id is None or email.html is None]
    return Email(
        from_=email.from_,
        to=email.to,
        cc=email.cc,
        reply_to=email.reply_to,
        subject=email.subject,
        text=lines(email.text),
        html=lines(email.html),
        headers=email.headers,
        attachments=[*inline, *others],
    )


def _refused(data: bytes) -> EmailError:
    with pytest.raises(EmailError) as caught:
        from_bytes(data)
    return caught.value


@given(emails)
@settings(max_examples=200, deadline=None)
def test_an_email_survives_the_way_there_and_back(email: Email) -> None:
    """As an object and as bytes, parsed under the old policy or the new one."""
    message = to_message(email)
    data = message.as_bytes()

    assert from_message(message) == _as_read_back(email)
    assert from_bytes(data) == _as_read_back(email)
    assert from_message(message_from_bytes(data, policy=policy.default)) == _as_read_back(email)
    assert to_message(email).as_bytes() == data


@given(emails)
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_fit_for_smtp(email: Email) -> None:
    """CRLF line ends only, no line over 998 bytes, no header that the email does not have."""
    data = to_message(email).as_bytes()
    head, _, _ = data.partition(b"\r\n\r\n")
    names = {row.partition(b":")[0].decode().lower() for row in head.split(b"\r\n") if not row.startswith(b" ")}

    assert data.count(b"\n") == data.count(b"\r\n") == data.count(b"\r")
    assert max(map(len, data.split(b"\r\n"))) <= 998
    assert names <= {
        "from", "to", "cc", "reply-to", "subject", "mime-version", "content-type", "content-transfer-encoding",
        *map(str.lower, email.headers),
    }  # fmt: skip


def test_bcc_is_not_written() -> None:
    """A header would show the blind copies to everyone."""
    email = Email(from_="a@example.com", to="b@example.com", bcc="eve@example.com", subject="", text="")

    assert b"eve" not in to_message(email).as_bytes()


def test_the_parts_are_nested_as_clients_expect() -> None:
    """Alternatives first, images beside the HTML that shows them, files around it all."""
    image = Attachment(filename="l.png", content=b"i", content_type="image/png", content_id="logo")
    file = Attachment(filename="a.pdf", content=b"f", content_type="application/pdf")
    email = Email(
        from_="a@example.com", to="b@example.com", subject="s", text="t", html="<img src=cid:logo>",
        attachments=[file, image],
    )  # fmt: skip
    message = to_message(email)

    assert [part.get_content_type() for part in message.walk()] == [
        "multipart/mixed", "multipart/alternative", "text/plain", "multipart/related", "text/html", "image/png",
        "application/pdf",
    ]  # fmt: skip
    assert [part.get_filename() for part in message.iter_attachments()] == ["a.pdf"]
    plain = message.get_body(("plain",))
    assert plain is not None
    assert plain.get_content() == "t"


def test_a_message_that_is_attached_is_written_as_one() -> None:
    """MIME forbids base64 around a message; what the parser would change is encoded all the same."""
    inner = to_message(Email(from_="a@example.com", to="b@example.com", subject="inner", text="t")).as_bytes()
    for content, encoding in ((inner, "7bit"), (inner + "é".encode(), "base64"), (b"\x00", "base64")):
        file = Attachment(filename="a.eml", content=content, content_type="message/rfc822")
        email = Email(from_="a@example.com", to="b@example.com", subject="s", text="t", attachments=[file])
        part = next(iter(to_message(email).iter_attachments()))

        assert part.get("Content-Transfer-Encoding", "7bit") == encoding
        assert from_bytes(to_message(email).as_bytes()) == email


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            b"To: Group: a@example.com, B <b@example.com>;, c@example.com\n",
            ["a@example.com", "B <b@example.com>", "c@example.com"],
        ),
        (b"To: a@example.com; b@example.com\n", ["a@example.com", "b@example.com"]),
        (b"To: a@example.com (Ann (A.) Lee)\n", ['"Ann (A.) Lee" <a@example.com>']),
        (b"To: Ann (the one) <a@example.com>\n", ["Ann <a@example.com>"]),
        (b'To: "Doe, Ann"\n\t<a@example.com>,\n b@example.com\n', ['"Doe, Ann" <a@example.com>', "b@example.com"]),
        (b"To: =?utf-8?q?Doe,_Zo=C3=AB?= <a@example.com>\n", ['"Doe, Zoë" <a@example.com>']),
        (b'To: "=?utf-8?b?Wm/Dqw==?=" <a@example.com>\n', ["Zoë <a@example.com>"]),
        (b"To: =?utf-8?b?Wm8=?= =?UTF-8?b?w6s=?= <a@example.com>\n", ["Zoë <a@example.com>"]),
        (b"To: =?utf-8?b?Wm/D?= =?utf-8?b?qw==?= <a@example.com>\n", ["Zoë <a@example.com>"]),
        (b"To: =?iso-8859-1*en?q?Zo=EB?= <a@example.com>\n", ["Zoë <a@example.com>"]),
        ("To: Zoë <zoë@exämple.com>\n".encode(), ["Zoë <zoë@exämple.com>"]),
        (b"To: a@example.com\nTO: b@example.com\n", ["a@example.com", "b@example.com"]),
    ],
)
def test_recipients_as_they_are_written_in_the_wild(headers: bytes, expected: list[str]) -> None:
    """Groups, comments, folds, encoded words, raw UTF-8, repeated headers."""
    assert list(from_bytes(b"From: z@example.com\n" + headers + b"\nx").to) == expected


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"To: b@example.com\n\nx", "From"),
        (b"From: a@example.com, b@example.com\nTo: b@example.com\n\nx", "From"),
        (b"From: a@example.com\nFrom: b@example.com\nTo: b@example.com\n\nx", "From"),
        (b"From: a@example.com\n\nx", "To"),
        (b"From: a@example.com\nTo: undisclosed-recipients:;\n\nx", "To"),
        (b"From: a@example.com\nTo: a@example.com b@example.com\n\nx", "To"),
        (b"From: a@example.com\nTo: <b@example.com> c\n\nx", "To"),
        (b'From: a@example.com\nTo: "b@example.com\n\nx', "To"),
        (b"From: a@example.com\nTo: (b@example.com\n\nx", "To"),
        (b"From: a@example.com\nTo: <b@example.com\n\nx", "To"),
        (b"From: =?utf-8?q?a=0D=0AX:_y?= <a@example.com>\nTo: b@example.com\n\nx", "From"),
        (HEAD + b"Cc: =?utf-8?b?AA==?= <c@example.com>\n\nx", "Cc"),
        (HEAD + b"Subject: again\n\nx", "Subject"),
        (HEAD.replace(b"Hello", b"=?utf-8?q?a=0D=0ABcc:_e?=") + b"\nx", "Subject"),
        (HEAD.replace(b"Hello", b"=?utf-8?b?YQpi?=") + b"\nx", "Subject"),
        (HEAD.replace(b"Hello", b"=?utf-8?q?=00?=") + b"\nx", "Subject"),
        (HEAD.replace(b"Hello", b"=?utf-8?b?%%%?=") + b"\nx", "Subject"),
        (HEAD.replace(b"Hello", b"=?no-such?q?a?=") + b"\nx", "Subject"),
        (HEAD.replace(b"Hello", b"=?hex?q?61?=") + b"\nx", "Subject"),
        (HEAD.replace(b"Hello", b"=?utf-8?q?=FF?=") + b"\nx", "Subject"),
        (HEAD.replace(b"Hello", b"\xff") + b"\nx", "Subject"),
        (HEAD.replace(b"Hello", b"a\x00b") + b"\nx", "Subject"),
        (HEAD + b"X-A: 1\nX-A: 2\n\nx", "X-A"),
        (HEAD + b"text: 1\ntext: 2\n\nx", "text"),
        (HEAD + b"X-A: =?utf-8?q?=0A?=\n\nx", "X-A"),
        (HEAD + b"X-A: " + b"x" * 2001 + b"\n\nx", "X-A"),
        (b" folded\n" + HEAD + b"\nx", "headers"),
        (HEAD + b": nameless\n\nx", "headers"),
        (HEAD + b"Content-Type: text/plain; charset=no-such\n\nx", "Content-Type"),
        (HEAD + b"Content-Type: text/plain; charset=hex\n\n61", "Content-Type"),
        (HEAD + b"Content-Type: text/plain; charset=unicode-escape\n\n\\x41", "Content-Type"),
        (HEAD + b"Content-Type: text/plain; charset=utf-8\n\n\xff", "Content-Type"),
        (HEAD + b"\na\x00b", "Content-Type"),
        (HEAD + b"Content-Type: text/plain\nContent-Type: text/html\n\nx", "Content-Type"),
        (HEAD + b"Content-Transfer-Encoding: base64\n\n%%%%", "Content-Transfer-Encoding"),
        (HEAD + b"Content-Transfer-Encoding: base64\n\nYWJ", "Content-Transfer-Encoding"),
        (HEAD + b"Content-Transfer-Encoding: x-uue\n\nx", "Content-Transfer-Encoding"),
        (HEAD + b"Content-Type: multipart/mixed\n\nx", "Content-Type"),
        (HEAD + b"Content-Type: multipart/mixed; boundary=b\n\nx", "Content-Type"),
        (HEAD + b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\nx", "Content-Type"),
        (
            HEAD + b"Content-Type: image/png\nContent-Disposition: attachment; filename*=no-such''a\n\nx",
            "Content-Disposition",
        ),
        (
            HEAD + b"Content-Type: image/png\nContent-Disposition: attachment; filename*=utf-8''%0A\n\nx",
            "Content-Disposition",
        ),
        (HEAD + b"Content-Type: image/png\nContent-ID: =?utf-8?q?=0A?=\n\nx", "Content-ID"),
        (HEAD + b"Content-Type: im(age/p,ng\n\nx", "Content-Type"),
    ],
)
def test_what_would_have_to_be_guessed_is_refused(data: bytes, field: str) -> None:
    """The error names the header as users know it, and shows no address and no content."""
    error = _refused(data)

    assert error.field == field
    assert "@example.com" not in error.problem.replace("user@example.com", "")


def test_an_undecodable_header_is_refused_in_its_programmatic_form_too() -> None:
    """A header object of the standard library that cannot be written."""
    message: Any = Message()
    message["From"], message["To"] = "a@example.com", "b@example.com"
    message["Subject"] = Header("a\nX-Evil: b")
    with pytest.raises(EmailError) as caught:
        from_message(message)

    assert caught.value.field == "Subject"


def test_traces_of_an_earlier_delivery_are_left_behind() -> None:
    """However often they occur and however broken they are; all the rest is kept, in its own spelling."""
    traces = (
        b"Received: by a\nReceived: by \xff\nReturn-Path: <x@example.com>\nDate: no\nMessage-ID: <1@example.com>\n"
        b"DKIM-Signature: a\nDKIM-Signature: b\nARC-Seal: a\nResent-To: x\nAuthentication-Results: x\nDelivered-To: x\n"
    )
    email = from_bytes(traces + HEAD + b"X-Mine: a\n\tb\nList-Unsubscribe: <https://example.com/u>\nX-Empty:\n\nx")

    assert dict(email.headers) == {"X-Mine": "a b", "List-Unsubscribe": "<https://example.com/u>", "X-Empty": ""}


def test_a_real_newsletter_is_taken_apart() -> None:
    """Alternative with related images inside mixed with files, in several charsets."""
    data = HEAD + (
        b'Content-Type: multipart/mixed; boundary=m\n\n--m\nContent-Type: multipart/alternative; boundary="a a"\n\n'
        b"--a a\nContent-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: quoted-printable\n"
        b"\nZo=EB =\n1\n"
        b"--a a\nContent-Type: multipart/related; boundary=r\n\n"
        b"--r\nContent-Type: text/html; charset=utf-8\n\nZo\xc3\xab\n"
        b"--r\nContent-Type: image/png; name=ignored.png\nContent-ID: <logo@x>\nContent-Disposition: inline\n"
        b"Content-Transfer-Encoding: base64\n\naW1n\n--r--\n"
        b"--a a--\n"
        b"--m\nContent-Type: text/plain; charset=koi8-r\nContent-Disposition: attachment; filename*0*=utf-8''%c3%a9;\n"
        b" filename*1=.txt\n\nfile\n"
        b"--m\nContent-Type: image/png\nContent-Transfer-Encoding: BASE64\n\naW1n\n"
        b"--m\nContent-Type: message/rfc822\n\nFrom: x@example.com\n\ninner\n--m--\n"
    )
    email = from_bytes(data)

    assert (email.text, email.html) == ("Zoë 1", "Zoë")
    assert [(item.filename, item.content, item.content_type, item.content_id) for item in email.attachments] == [
        ("ignored.png", b"img", "image/png", "logo@x"),
        ("é.txt", b"file", "text/plain; charset=koi8-r", None),
        ("part-5.png", b"img", "image/png", None),
        ("part-6.eml", b"From: x@example.com\r\n\r\ninner", "message/rfc822", None),
    ]


def test_a_lone_file_goes_with_an_empty_text() -> None:
    """A sender and a recipient are enough."""
    email = from_bytes(HEAD + b"Content-Type: application/pdf\n\nx")

    assert email.text == ""
    assert [item.filename for item in email.attachments] == ["part-1.pdf"]


def test_legacy_messages_are_read() -> None:
    """What older programs build, with header objects and with text beyond ASCII."""
    message: Any = MIMEMultipart("alternative")
    message["From"] = Header("Zoë", "utf-8").encode() + " <a@example.com>"
    message["To"] = "b@example.com"
    message["Subject"] = Header("Größe", "iso-8859-1")
    message.attach(MIMEText("Größe", "plain", "iso-8859-1"))
    message.attach(MIMEText("<p>Größe", "html", "utf-8"))
    email = from_message(message)

    assert (email.from_, email.subject) == ("Zoë <a@example.com>", "Größe")
    assert (email.text, email.html) == ("Größe", "<p>Größe")


def test_messages_of_the_modern_interface_are_read() -> None:
    """What `EmailMessage` itself makes of text, files and an attached message."""
    message = EmailMessage()
    message["From"], message["To"] = "Zoë <a@example.com>", '"Doe, B" <b@example.com>'
    message["Subject"], message["X-Mine"] = "Größe " * 30, "Größe"
    message.set_content("Größe\n")
    message.add_alternative("<p>Größe\n", subtype="html")
    message.add_attachment(b"img", maintype="image", subtype="png", filename="größe.png")
    message.add_attachment(message_from_string("Subject: é\n\ninner", policy=policy.default), filename="a.eml")
    email = from_message(message)

    assert (email.from_, email.to) == ("Zoë <a@example.com>", ('"Doe, B" <b@example.com>',))
    assert (email.subject, email.headers["X-Mine"]) == (("Größe " * 30).strip(), "Größe")
    assert (email.text, email.html) == ("Größe\n", "<p>Größe\n")
    assert [item.filename for item in email.attachments] == ["größe.png", "a.eml"]


def test_a_message_parsed_from_a_string_is_read() -> None:
    """Its characters are what they are, whatever charset the message claims."""
    for charset in ("utf-8", "iso-8859-1", "us-ascii", "no-such"):
        text = f"{HEAD.decode()}X-A: ë\nContent-Type: text/plain; charset={charset}\n\nZoë"
        if charset == "no-such":
            with pytest.raises(EmailError):
                from_message(message_from_string(text))
        else:
            assert from_message(message_from_string(text)).text == "Zoë"


def _nested(depth: int) -> bytes:
    opened = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(depth))
    return HEAD + opened + b"\nx\n" + b"".join(b"--b%d--\n" % n for n in reversed(range(depth)))


def test_nesting_has_an_end() -> None:
    """Fifty multiparts inside one another are read, more are refused, and so is what exhausts the parser."""
    assert from_bytes(_nested(MAX_NESTING)).text == "x"
    for depth in (MAX_NESTING + 1, 300, 2000):
        assert _refused(_nested(depth)).field == "Content-Type"


@pytest.mark.parametrize(
    "data",
    [
        HEAD.replace(b"bob@example.com", b"(" * 100_000 + b"bob@example.com"),
        HEAD.replace(b"bob@example.com", b'"' + b"\\" * 100_001),
        HEAD.replace(b"bob@example.com", b"a" * 100_000),
        HEAD.replace(b"bob@example.com", b"=?" * 50_000),
        HEAD.replace(b"bob@example.com", b"<" * 100_000),
        HEAD.replace(b"Hello", b"=?a?q?" * 50_000),
        HEAD.replace(b"Hello", b"=?utf-8?q?a?= " * 20_000),
        HEAD + b"Content-Type: text/plain" + b'; a="' * 2_000 + b"\n",
        HEAD + b"Content-Type: message/rfc822\n\n" * 400,
        HEAD + b"X-A: 1\n" * 100_000,
    ],
    ids=range(10),
)
def test_hostile_input_is_answered_in_good_time(data: bytes) -> None:
    """Either way, and without trying every way to cut it."""
    started = time.perf_counter()
    with contextlib.suppress(EmailError):
        from_bytes(data + b"\nx")
    assert time.perf_counter() - started < 5


def test_content_survives_whatever_its_bytes_are() -> None:
    """Every byte value, as a file."""
    file = Attachment(filename="all", content=bytes(range(256)) * 10)
    email = Email(from_="a@example.com", to="b@example.com", subject="", text="", attachments=[file])
    data = to_message(email).as_bytes()

    assert base64.b64encode(bytes(range(57))) in data
    assert from_bytes(data) == email
