"""Emails from templates: what becomes of values, styles, subjects and files, and what a mistake is told as."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from idem.errors import EmailError, TemplateError
from workers.templates import Templates

_BLOCK = "{% block x %}{% endblock %}"
WHO: dict[str, Any] = {"from_": "a@example.com", "to": "b@example.com"}


def write(folder: Path, **files: str) -> Templates:
    """Templates by name: `daily_html` is daily.html."""
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return Templates(folder)


def test_html_with_a_subject_styles_and_a_text_alternative(tmp_path: Path) -> None:
    templates = write(
        tmp_path,
        base_html="<html><head><title>{% block subject %}Shop{% endblock %}</title>"
        "<style>p { color: red } @media (max-width: 9px) { p { color: blue } }</style></head>"
        "<body>{% block body %}{% endblock %}</body></html>",
        daily_html='{% extends "base.html" %}{% block subject %}\n {{ name }}: \n{{ total }} {% endblock %}'
        "{% block body %}<p>Dear {{ name }},</p><p>{{ total }} sold.</p>{% endblock %}",
        plain_html='{% extends "base.html" %}',
    )
    email = templates.email("daily", **WHO, name="Ann & <Bob>", total=3)
    assert email.subject == "Ann & <Bob>: 3"
    assert email.html is not None
    assert '<p style="color: red;">Dear Ann &amp; &lt;Bob&gt;,</p>' in email.html
    assert "@media (max-width: 9px)" in email.html
    assert email.text == "Dear Ann & <Bob>,\n\n3 sold.\n"
    assert templates.email("plain", **WHO).subject == "Shop", "a parent's block counts"
    assert templates.email("daily", **WHO, name="Ann", total=3, subject="Mine").subject == "Mine"


def test_text_is_not_escaped_and_beats_what_the_html_says(tmp_path: Path) -> None:
    templates = write(
        tmp_path, a_html="<p>{{ x }}</p>", a_txt="In short: {{ x }}", a_subject_txt="{{ x }}\n", b_txt="Only {{ x }}"
    )
    email = templates.email("a", **WHO, x="1 < 2")
    assert (email.subject, email.text) == ("1 < 2", "In short: 1 < 2")
    assert templates.email("b", **WHO, subject="s", x="<").html is None


def test_the_same_values_give_the_same_bytes(tmp_path: Path) -> None:
    """As far as the template is concerned: what is built again after a crash before the freeze is no conflict."""
    templates = write(tmp_path, a_html="<style>p{color:red}</style>{% for k in d %}<p>{{ k }}</p>{% endfor %}")
    made = {templates.email("a", **WHO, subject="s", d={"x": 1, "y": 2}).fingerprint() for _ in range(3)}
    assert len(made) == 1


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ({"a_html": "<p>\n{{ total }}</p>"}, "a", "a.html, line 2: 'total' is undefined"),
        ({"a_html": "{{ user.name }}"}, "a", "a.html, line 1: 'user' is undefined"),
        ({"a_html": "\n\n{% if %}"}, "a", "a.html, line 3: Expected an expression, got 'end of statement block'"),
        ({"a_html": "x", "a_txt": "\n{{ 1 / 0 }}"}, "a", "a.txt, line 2: ZeroDivisionError: division by zero"),
        ({"a_html": "{% extends 'b.html' %}"}, "a", "a.html: there is no template b.html"),
        (
            {"a_html": "{% extends 'b.html' %}{% block x %}\n{{ no }}{% endblock %}", "b_html": _BLOCK},
            "a",
            "a.html, line 2: 'no' is undefined",
        ),
        ({"a_html": "{% block subject %}\n{{ no }}{% endblock %}"}, "a", "a.html, line 2: 'no' is undefined"),
        ({}, "a", "there is neither a.html nor a.txt"),
        ({"a_html": "x"}, "a", "a has no subject: give subject=, a.subject.txt or a block named subject"),
        ({"a_html": "{{ '' | nope }}"}, "a", "a.html, line 1: No filter named 'nope'."),
        ({"a_txt": "x"}, "../a", "there is neither ../a.html nor ../a.txt"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_template_and_its_line(
    tmp_path: Path, files: dict[str, str], name: str, message: str
) -> None:
    templates = write(tmp_path, **files)
    with pytest.raises(TemplateError) as raised:
        templates.email(name, **WHO)
    assert str(raised.value) == message


def test_nothing_is_fetched(tmp_path: Path) -> None:
    """Not from the file system either; a link to a style sheet stays for those who follow it."""
    (tmp_path / "x.css").write_text("p { color: green }", encoding="utf-8")
    templates = write(tmp_path, a_html=f'<link rel="stylesheet" href="file://{tmp_path}/x.css"><p>a</p>')
    email = templates.email("a", **WHO, subject="s")
    assert email.html is not None
    assert "<p>a</p>" in email.html
    assert "x.css" in email.html


def test_a_changed_file_counts_at_once(tmp_path: Path) -> None:
    templates = write(tmp_path, a_txt="old")
    assert templates.email("a", **WHO, subject="s").text == "old"
    write(tmp_path, a_txt="newer")
    assert templates.email("a", **WHO, subject="s").text == "newer"


def test_templates_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shopmails" / "mails").mkdir(parents=True)
    (tmp_path / "shopmails" / "__init__.py").touch()
    write(tmp_path / "shopmails" / "mails", a_txt="{{ x }}")
    monkeypatch.syspath_prepend(tmp_path)
    assert Templates("mails", package="shopmails").email("a", **WHO, subject="s", x=1).text == "1"
    with pytest.raises(TemplateError, match="the package shopmails has no folder nope of templates"):
        Templates("nope", package="shopmails")
    with pytest.raises(TemplateError, match="the package nope has no folder mails of templates"):
        Templates("mails", package="nope")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="there is no folder"):
        Templates(tmp_path / "nope")


def test_what_can_be_no_email_is_an_error_of_the_email(tmp_path: Path) -> None:
    with pytest.raises(EmailError, match=r"^to: "):
        write(tmp_path, a_txt="x").email("a", from_="a@example.com", to="nobody", subject="s")


@pytest.mark.parametrize("missing", ["jinja2", "css_inline"])
def test_a_missing_library_is_named_with_its_extra(missing: str) -> None:
    script = f"import sys\nsys.modules[{missing!r}] = None\nimport workers.templates"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("needs the extra 'mail': pip install 'idem-workers[mail]'")
