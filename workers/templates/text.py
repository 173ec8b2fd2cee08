"""The text alternative of an HTML email: what it says, with its links, lists and tables, readable without a browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Final

_SILENT: Final = frozenset({"head", "script", "style", "template", "title"})
#: What stands on lines of its own, and how many ends of lines part it from the rest.
_BREAKS: Final = {
    **dict.fromkeys(("blockquote", "dl", "h1", "h2", "h3", "h4", "h5", "h6", "ol", "p", "pre", "table", "ul"), 2),
    **dict.fromkeys(("address", "article", "body", "caption", "dd", "div", "dt", "footer", "header", "li", "main"), 1),
    **dict.fromkeys(("nav", "section", "tr"), 1),
}
_SPACE: Final = re.compile(r"[ \t\r\n\f]+")
_CELLS: Final = " | "
_RULE: Final = "-" * 40


def text_of(html: str) -> str:
    """The text of an HTML document; the same for the same document."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.text()


class _Reader(HTMLParser):
    """Collects text; markup that is not closed, or closed twice, costs no more than its own meaning."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._pieces: list[str] = []
        self._pending = 0
        self._space = False
        self._silent = 0
        self._verbatim = 0
        self._lists: list[int | None] = []
        self._link: tuple[str, int] | None = None
        self._cells = 0
        #: What is said before the next piece, once there is one: nothing is between the two.
        self._parted = False
        self._mark = ""

    def text(self) -> str:
        return "".join(self._pieces).strip("\n") + "\n" * bool(self._pieces)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag in _SILENT:
            self._silent += 1
        # A list inside of an item belongs to it: no empty line.
        self._break(1 if self._lists and tag in {"ol", "ul", "p"} else _BREAKS.get(tag, 0))
        match tag:
            case "br":
                self._pending = min(2, self._pending + 1)
            case "hr":
                self._say_line(_RULE)
            case "img":
                self._say(attributes.get("alt") or "")
            case "a":
                self._link = attributes.get("href") or "", len(self._pieces)
            case "pre":
                self._verbatim += 1
            case _:
                self._begin_part(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in _SILENT:
            self._silent = max(0, self._silent - 1)
        match tag:
            case "a" if self._link is not None:
                self._end_link(*self._link)
                self._link = None
            case "pre":
                self._verbatim = max(0, self._verbatim - 1)
            case "ol" | "ul" if self._lists:
                self._lists.pop()
            case "tr" | "li":
                self._parted, self._mark = False, ""
        self._break(1 if self._lists and tag in {"ol", "ul", "p"} else _BREAKS.get(tag, 0))

    def handle_data(self, data: str) -> None:
        if self._silent:
            return
        if self._verbatim:
            self._put(data)
        else:
            self._say(data)

    def _begin_part(self, tag: str) -> None:
        match tag:
            case "ol" | "ul":
                self._lists.append(1 if tag == "ol" else None)
            case "li":
                self._begin_item()
            case "tr":
                self._cells, self._parted = 0, False
            case "td" | "th":
                self._begin_cell()

    def _begin_item(self) -> None:
        number = self._lists[-1] if self._lists else None
        if number is not None:
            self._lists[-1] = number + 1
        self._mark = "  " * (len(self._lists) - 1) + ("- " if number is None else f"{number}. ")

    def _begin_cell(self) -> None:
        """Cells of one row are parted on one line; a table that only lays things out has one in each."""
        if self._cells:
            self._pending, self._parted = 0, True
        self._cells += 1

    def _end_link(self, href: str, since: int) -> None:
        said = "".join(self._pieces[since:]).strip()
        bare = href.removeprefix("mailto:")
        if href and not href.startswith("#") and said not in {href, bare}:
            self._put(f" ({bare})" if said else bare)

    def _say(self, words: str) -> None:
        """Text in which any space is one space."""
        words = _SPACE.sub(" ", words)
        if words.strip(" "):
            spaced = self._space or words[0] == " "
            self._put((" " if spaced and not self._at_start() else "") + words.strip(" "))
        self._space = words.endswith(" ") if words else self._space

    def _say_line(self, line: str) -> None:
        self._break(1)
        self._put(line)
        self._break(1)

    def _put(self, piece: str) -> None:
        if self._silent:
            return
        if self._parted:
            self._pieces.append(_CELLS)
        elif self._pieces and self._pending:
            self._pieces.append("\n" * self._pending)
        self._pieces.append(self._mark + piece)
        self._pending, self._space, self._parted, self._mark = 0, False, False, ""

    def _break(self, lines: int) -> None:
        if lines and not self._parted and not self._mark:
            self._pending, self._space = max(self._pending, lines), False

    def _at_start(self) -> bool:
        """Whether what comes next begins a line, or follows a mark that brings its own space."""
        return (
            bool(self._pending or self._parted or self._mark)
            or not self._pieces
            or self._pieces[-1].endswith((" ", "\n"))
        )
