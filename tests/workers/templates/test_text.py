"""The text alternative: readable, and total."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.templates.text import text_of


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>Hello  <b>Ann</b>,\n welcome.</p><p>Bye</p>", "Hello Ann, welcome.\n\nBye\n"),
        ("<b>a</b> <i>b</i><u>c</u>", "a bc\n"),
        ("a<br>b<br><br><br>c", "a\nb\n\nc\n"),
        ("<h1>Report</h1>All is well &amp; &lt;good&gt;", "Report\n\nAll is well & <good>\n"),
        ("<div><div>a</div><div>b</div></div>", "a\nb\n"),
        ("a<hr>b", f"a\n{'-' * 40}\nb\n"),
        ("<pre>a\n  b</pre>", "a\n  b\n"),
        ("<img src='cid:c' alt='A chart'><img src='x'>", "A chart\n"),
        ("<title>T</title><style>p{}</style><script>x()</script>a", "a\n"),
        ("", ""),
        ("   \n ", ""),
        # Links.
        ("See <a href='https://e.com/x'>the  page</a>.", "See the page (https://e.com/x).\n"),
        ("<a href='https://e.com'>https://e.com</a>", "https://e.com\n"),
        ("<a href='mailto:a@e.com'>a@e.com</a> <a href='mailto:a@e.com'>Ann</a>", "a@e.com Ann (a@e.com)\n"),
        ("<a href='https://e.com'><img src='x'></a>", "https://e.com\n"),
        ("<a href='#top'>up</a> <a>nowhere</a>", "up nowhere\n"),
        # Lists.
        ("a<ul><li>one</li><li>two</li></ul>b", "a\n\n- one\n- two\n\nb\n"),
        ("<ol><li>one<li>two<ul><li>x</li></ul><li>three</ol>", "1. one\n2. two\n  - x\n3. three\n"),
        ("<ul><li><p>one</p></li><li><p>two</p></li></ul>", "- one\n- two\n"),
        # Tables.
        (
            "<table><tr><th>Name</th><th>Total</th></tr>\n<tr><td>Ann</td>\n <td>12</td></tr></table>",
            "Name | Total\nAnn | 12\n",
        ),
        ("<table><tr><td><p>a</p></td><td><p>b</p></td></tr></table>c", "a | b\n\nc\n"),
        ("<table><tr><td><p>a</p><p>b</p></td></tr></table>", "a\n\nb\n"),
        # What is not closed, or closed twice.
        ("<ul><li>a", "- a\n"),
        ("</ul></a></pre></td>a</p>", "a\n"),
        ("<li>a", "- a\n"),
    ],
)
def test_what_html_says(html: str, text: str) -> None:
    assert text_of(html) == text


_MARKUP = (
    "<p> </p> <td> <tr> </tr> <ol> </ol> <li> </li> <a> <a/href=x> </a> <br> <hr> <pre> </pre> <title> </title> a b"
)


@given(st.text(alphabet="<>/ab&; \n=\"'!-") | st.lists(st.sampled_from(_MARKUP.split())).map(" ".join))
def test_anything_has_a_text(html: str) -> None:
    """Markup as malformed as it may be raises nothing, and gives text that ends as lines do."""
    text = text_of(html)
    assert text == "" or text.endswith("\n")
    assert "\n\n\n" not in text or "<pre>" in html
