"""Every part of Django's emails: the same for those who get it, or an error that names the part."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import EmailMessage as Modern
from email.message import MIMEPart
from email.mime.application import MIMEApplication
from email.mime.base import MIMEBase
from email.mime.image import MIMEImage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any

import pytest
from django.conf import UserSettingsHolder, global_settings, settings
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.utils.functional import lazystr
from django.utils.safestring import mark_safe

from idem import Attachment, Email, EmailError
from idem.mime import from_message
from workers.django.message import email_of

#: Django 6 still takes parts of the old API, and says that it will not for ever.
pytestmark = pytest.mark.filterwarnings("ignore:MIMEBase attachments are deprecated")

_PNG = b"\x89PNG\r\n\x1a\n"
_PARTS: dict[str, Any] = {"subject": "S", "body": "B", "from_email": "a@example.com", "to": ["b@example.com"]}


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Django's defaults, for the test only: other tests of this process may configure it in another way."""
    before, settings._wrapped = settings._wrapped, UserSettingsHolder(global_settings)
    yield
    settings._wrapped = before


def _make(kind: type[EmailMessage] = EmailMultiAlternatives, **parts: Any) -> Any:
    return kind(**_PARTS | parts)


def _ours(**parts: Any) -> Email:
    whole: dict[str, Any] = {"from_": "a@example.com", "to": "b@example.com", "subject": "S", "text": "B"}
    return Email(**whole | parts)


def test_every_field() -> None:
    message = _make(
        from_email="Shop <a@example.com>",
        to=["Ann <b@example.com>", "c@example.com"],
        cc=["d@example.com"],
        bcc=["e@example.com", ""],
        reply_to=["f@example.com", "g@example.com"],
        headers={"X-A": "1", "X-Number": 2, "Idempotency-Key": "k"},
        alternatives=[("<p>B</p>", "text/html")],
        attachments=[("a.pdf", b"x", "application/pdf")],
    )
    message.tags, message.metadata = ["t"], {"order": 1}

    assert email_of(message) == Email(
        from_="Shop <a@example.com>",
        to=["Ann <b@example.com>", "c@example.com"],
        cc="d@example.com",
        bcc="e@example.com",
        reply_to=["f@example.com", "g@example.com"],
        subject="S",
        text="B",
        html="<p>B</p>",
        headers={"X-A": "1", "X-Number": "2", "Idempotency-Key": "k"},
        tags=["t"],
        metadata={"order": "1"},
        attachments=[Attachment(filename="a.pdf", content=b"x", content_type="application/pdf")],
    )


def test_text_that_is_lazy_or_marked_safe_is_plain() -> None:
    message = _make(
        subject=lazystr("S"), body=mark_safe("B"), to=[lazystr("b@example.com")], headers={"X": lazystr("1")}
    )
    email = email_of(message)

    assert email == _ours(headers={"X": "1"})
    assert {type(email.subject), type(email.text)} == {str}
    assert _ours(html=mark_safe("<p>")).html == "<p>"


class TestBodies:
    @pytest.mark.parametrize(
        ("parts", "expected"),
        [
            ({}, {"text": "B"}),
            ({"body": ""}, {"text": ""}),
            ({"alternatives": [("H", "text/html")]}, {"text": "B", "html": "H"}),
            ({"body": "", "alternatives": [("H", "text/html")]}, {"text": None, "html": "H"}),
            ({"body": "", "alternatives": [("T", "text/plain")]}, {"text": "T"}),
        ],
    )
    def test_those_that_can_be_sent(self, parts: dict[str, Any], expected: dict[str, Any]) -> None:
        assert email_of(_make(**parts)) == _ours(**expected)

    def test_a_body_that_is_html(self) -> None:
        message = _make(EmailMessage, body="<p>")
        message.content_subtype = "html"

        assert email_of(message) == _ours(text=None, html="<p>")

    @pytest.mark.parametrize(
        "alternatives",
        [
            [("BEGIN:VCALENDAR", "text/calendar")],
            [("H", "text/html"), ("H2", "text/html")],
            [("T", "text/plain")],
            [("H", "text/html"), ("x", "text/x-amp-html")],
        ],
    )
    def test_those_that_cannot(self, alternatives: list[tuple[str, str]]) -> None:
        with pytest.raises(EmailError, match="a text, an HTML, or both in this order can be sent"):
            email_of(_make(alternatives=alternatives))

    def test_a_body_of_another_type(self) -> None:
        message = _make()
        message.content_subtype = "markdown"
        with pytest.raises(EmailError, match="alternatives: are text/markdown"):
            email_of(message)


class TestHeaders:
    """Django shows these headers in place of the fields, and sends to the fields all the same."""

    @pytest.mark.parametrize(
        ("headers", "expected"),
        [
            ({"From": "Shop <a@example.com>"}, {"from_": "Shop <a@example.com>"}),
            ({"to": "Ann <b@example.com>"}, {"to": "Ann <b@example.com>"}),
            ({"Reply-To": "f@example.com, g@example.com"}, {"reply_to": ["f@example.com", "g@example.com"]}),
        ],
    )
    def test_those_that_show_what_is_so(self, headers: dict[str, str], expected: dict[str, Any]) -> None:
        assert email_of(_make(headers=headers)) == _ours(**expected)

    @pytest.mark.parametrize(
        ("headers", "field"),
        [
            ({"From": "other@example.com"}, "headers.From"),
            ({"To": "list@example.com"}, "headers.To"),
            ({"Cc": "c@example.com"}, "headers.Cc"),
            ({"Bcc": "c@example.com"}, "headers.Bcc"),
            ({"Date": "Mon, 1 Jan 2024 00:00:00 +0000"}, "headers.Date"),
            ({"Subject": "S2"}, "headers.Subject"),
            ({"X-A": "1\nBcc: c@example.com"}, "headers.X-A"),
        ],
    )
    def test_those_that_do_not(self, headers: dict[str, str], field: str) -> None:
        with pytest.raises(EmailError) as caught:
            email_of(_make(headers=headers))
        assert caught.value.field == field

    def test_a_subject_that_would_end_its_line(self) -> None:
        with pytest.raises(ValueError, match="subject: holds the control character"):
            email_of(_make(subject="S\nBcc: c@example.com"))


def _inline() -> MIMEBase:
    image = MIMEImage(_PNG, "png")
    image.add_header("Content-ID", "<logo>")
    image.add_header("Content-Disposition", "inline", filename="logo.png")
    return image


def _modern() -> MIMEPart:
    part = MIMEPart()
    part.set_content(_PNG, "image", "png", disposition="inline", cid="<logo>", filename="logo.png")
    return part


def _plain(**changes: Any) -> Attachment:
    whole: dict[str, Any] = {"filename": "a.txt", "content": b"x", "content_type": 'text/plain; charset="utf-8"'}
    return Attachment(**whole | changes)


class TestAttachments:
    @pytest.mark.parametrize(
        ("item", "expected"),
        [
            (("a.txt", "x", None), _plain()),
            (("a.txt", "\u00e9", "text/plain"), _plain(content="\u00e9".encode())),
            (("a.txt", b"\xff", "text/plain"), _plain(content=b"\xff", content_type="application/octet-stream")),
            (("a.csv", "x", "text/csv"), _plain(filename="a.csv", content_type='text/csv; charset="utf-8"')),
            (("a", b"x", None), _plain(filename="a", content_type="application/octet-stream")),
            ((None, _PNG, "image/png"), _plain(filename="part-1.png", content=_PNG, content_type="image/png")),
            (("\u00e9.png", _PNG, None), _plain(filename="\u00e9.png", content=_PNG, content_type="image/png")),
            (_inline(), _plain(filename="logo.png", content=_PNG, content_type="image/png", content_id="logo")),
            (MIMEText("x", "plain", "utf-8"), _plain(filename="part-1.txt")),
            (MIMEText("x", "html", "utf-8"), _plain(filename="part-1.html", content_type='text/html; charset="utf-8"')),
            (MIMEApplication(b"x", "pdf"), _plain(filename="part-1.pdf", content_type="application/pdf")),
        ],
        ids=str,
    )  # fmt: skip
    def test_each_kind(self, item: Any, expected: Attachment) -> None:
        (found,) = email_of(_make(attachments=[item])).attachments

        assert (found.content, found.content_id) == (expected.content, expected.content_id)
        assert found.content_type == expected.content_type
        assert found.filename == expected.filename

    def test_a_part_of_the_modern_api(self) -> None:
        """What Django 6 takes; 5.2 keeps it in its list as well."""
        message = _make()
        message.attachments.append(_modern())

        assert email_of(message).attachments == email_of(_make(attachments=[_inline()])).attachments

    @pytest.mark.parametrize("form", ["django", "library", "text", "bytes"])
    def test_a_message(self, form: str) -> None:
        inner = _make(EmailMessage, subject="Inner")
        forms = {"django": inner, "library": inner.message(), "text": inner.message().as_string()}
        content = forms.get(form, inner.message().as_bytes())
        message = _make(EmailMessage)
        message.attach("inner.eml", content, "message/rfc822")
        (found,) = email_of(message).attachments

        assert found.content_type == "message/rfc822"
        assert b"Subject: Inner" in found.content

    def test_parts_of_parts(self) -> None:
        with pytest.raises(EmailError, match=r"attachments\.1: holds parts of its own"):
            email_of(_make(attachments=[MIMEMultipart(_subparts=[MIMEText("x")])]))

    def test_related_images_are_inline(self) -> None:
        message = _make(alternatives=[('<img src="cid:logo">', "text/html")], attachments=[_inline()])
        message.mixed_subtype = "related"

        assert email_of(message).attachments[0].content_id == "logo"


class _Signed(EmailMessage):  # type: ignore[misc]  # Django ships no types
    def message(self, **_: Any) -> Modern:
        return Modern()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda message: setattr(message, "mixed_subtype", "report"), "mixed_subtype"),
        (lambda message: setattr(message, "alternative_subtype", "parallel"), "alternative_subtype"),
        (lambda message: setattr(message, "template_id", "welcome"), "template_id"),
        (lambda message: setattr(message, "to", []), "to"),
        (lambda message: setattr(message, "__class__", _Signed), "message"),
    ],
)
def test_what_django_can_say_and_an_email_cannot(change: Any, field: str) -> None:
    message = _make(bcc=["c@example.com"])
    change(message)
    with pytest.raises(EmailError) as caught:
        email_of(message)
    assert caught.value.field == field


def test_it_is_what_django_itself_would_write() -> None:
    """Read back from the message that Django's SMTP backend sends."""
    message = _make(
        cc=["d@example.com"],
        reply_to=["f@example.com"],
        headers={"X-A": "1"},
        body="B\u00e9\n",
        alternatives=[("<p>B</p>\n", "text/html")],
        attachments=[("a.txt", "x\u00e9\n", None), ("b.png", _PNG, None), _inline()],
    )

    assert email_of(message) == from_message(message.message())
