"""The text of headers in both directions: folds, encoded words (RFC 2047) and lists of addresses.

None of it leans on the library's header code, so that nothing depends on which of its releases repaired which fold,
and no header can be ended early.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import contextlib
import re
from collections.abc import Iterable, Iterator
from email import policy
from email.header import Header
from itertools import groupby
from operator import itemgetter
from typing import Final

from idem.address import Address, parse_address, refuse_controls
from idem.errors import EmailError

#: Headers are folded where they are made and never again: the library's own refolding is where injections happened.
VERBATIM: Final = policy.SMTPUTF8.clone(refold_source="none")

#: Python codecs that decode text and are no charset of any email.
_NOT_CHARSETS: Final = frozenset({"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"})

_FOLD = re.compile(r"(?:\r\n?|\n)(?=[ \t])")
_ENCODED_WORD = re.compile(r"=\?([^?\s*]+)(?:\*[^?\s]*)?\?([bBqQ])\?([^?]*)\?=")
_ADDRESS_TOKEN = re.compile(
    r'(?P<quoted>"(?:[^"\\]|\\.)*+")'
    r"|<(?P<angle>[^<>]*+)>"
    r"|\((?P<comment>(?:[^()\\]|\\.|\((?:[^()\\]|\\.)*+\))*+)\)"
    r"|(?P<mark>[,;:])"
    r'|(?P<text>(?:=\?[^?\s]+\?[bBqQ]\?[^?]*\?=|[^",;:<(])++)'
    r"|(?P<unclosed>.)"
)
_ESCAPED = re.compile(r"\\(.)")
_PLAIN = re.compile(r"(?!.*=\?)[ -~]*")
_CHUNK = re.compile(rb"(?s).{1,45}(?![\x80-\xbf])")  # never ends within a character
_LINE, _LONGEST_WORD = 76, 900


@contextlib.contextmanager
def blaming(header: str, problem: str = "cannot be read") -> Iterator[None]:
    """Turn whatever the standard library raises into an `EmailError` that names `header`."""
    try:
        yield
    except EmailError:
        raise
    except Exception as error:
        raise EmailError(header, f"{problem} ({type(error).__name__})") from error


def unfold(name: str, value: object) -> str:
    """A header's value, in whatever form the library keeps it, as one line; a tab becomes a space."""
    with blaming(name):
        raw = value.encode(maxlinelen=0) if isinstance(value, Header) else str(value)
        raw = _FOLD.sub("", raw).replace("\t", " ").strip(" ")
        # The parser keeps bytes beyond ASCII as surrogates; UTF-8 is the one thing that they may be (RFC 6532).
        raw = raw.encode("utf-8", "surrogateescape").decode("utf-8")
    refuse_controls(name, raw)
    return raw


def read_text(name: str, raw: str) -> str:
    """`raw` with its encoded words decoded, and without a control character."""
    pieces: list[tuple[str, bytes]] = []
    end = 0
    for match in _ENCODED_WORD.finditer(raw):
        gap = raw[end : match.start()]
        if gap.strip(" ") or not end:
            pieces.append(("utf-8", gap.encode()))
        with blaming(name, "holds an encoded word that is malformed"):
            pieces.append((match[1].lower(), _decode_word(match[2], match[3])))
        end = match.end()
    pieces.append(("utf-8", raw[end:].encode()))
    # One character may be cut across two words, so words in one charset are decoded together.
    runs = [(charset, b"".join(data for _, data in run)) for charset, run in groupby(pieces, itemgetter(0))]
    text = "".join(decode(name, data, charset) for charset, data in runs)
    refuse_controls(name, text)
    return text


def _decode_word(encoding: str, encoded: str) -> bytes:
    if encoding in "qQ":
        return binascii.a2b_qp(encoded, header=True)
    return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)


def decode(name: str, data: bytes, charset: str | None) -> str:
    """`data` as text, or an `EmailError` that names the header `name`, which named the charset."""
    # ASCII is often claimed for UTF-8, which contains it; nothing else that is valid as UTF-8 is likely to be meant.
    known = "utf-8" if not charset or charset.lower() in {"ascii", "us-ascii"} else charset
    with blaming(name, "names a charset that is not known, or in which its bytes are not valid"):
        if codecs.lookup(known).name.replace("_", "-") in _NOT_CHARSETS:
            raise LookupError(known)
        return data.decode(known)


def read_addresses(name: str, raw: str) -> list[str]:
    """Cut at the commas of the list; a group's name is left out, and a semicolon separates as Outlook writes it."""
    found: list[str] = []
    words, spec, comment = list[str](), None, ""
    for match in _ADDRESS_TOKEN.finditer(raw + ","):
        kind = str(match.lastgroup)
        piece = match[kind]
        if kind == "unclosed":
            raise EmailError(name, f"opens a {piece} that it does not close")
        if kind == "comment":
            comment = comment or piece
        elif kind == "mark":
            if spec is not None or (piece != ":" and "".join(words).strip(" ")):
                found.append(_read_address(name, words, spec, comment))
            words, spec, comment = [], None, ""
        elif spec is not None:
            if match[0].strip(" "):
                raise EmailError(name, "holds something between an address and the next comma")
        elif kind == "angle":
            spec = piece.strip(" ")
        elif kind == "text" and words and not words[-1].startswith('"'):
            words[-1] += piece
        else:
            words.append(piece)
    return found


def _read_address(name: str, words: list[str], spec: str | None, comment: str) -> str:
    comment = read_text(name, _ESCAPED.sub(r"\1", comment)).strip(" ")
    if spec is None:
        return str(Address("".join(words).strip(" "), comment))
    if words:  # the quotes keep the spaces inside them
        words[0] = words[0].lstrip(" ")
        words[-1] = words[-1].rstrip(" ")
    # Encoded words inside quotes are against RFC 2047, and common; nobody is called =?utf-8?...?=.
    names = [read_text(name, _ESCAPED.sub(r"\1", word[1:-1]) if word.startswith('"') else word) for word in words]
    return str(Address(spec, "".join(names) or comment))


def fold(name: str, tokens: Iterable[str]) -> str:
    """Join tokens, each of which begins with a space, and break the line before one that would pass the margin."""
    folded, width = "", len(name) + 1
    for token in tokens:
        if folded and width + len(token) > _LINE:
            folded, width = folded + "\r\n", 0
        folded, width = folded + token, width + len(token)
    return folded[1:]


def write_text(name: str, text: str) -> str:
    """The value of a header that reads back as `text`: what a header cannot carry as it is becomes encoded words."""
    if text != text.strip(" "):
        return fold(name, _encoded_words(text))
    words = re.findall(" +[^ ]+", " " + text)
    hard = [index for index, word in enumerate(words) if not _PLAIN.fullmatch(word) or len(word) > _LONGEST_WORD]
    if hard:
        first, end = hard[0], hard[-1] + 1
        words[first:end] = _encoded_words("".join(words[first:end])[1:])
    return fold(name, words)


def write_addresses(name: str, values: Iterable[str]) -> str:
    """The value of a header that reads back as these addresses."""
    tokens: list[str] = []
    for address in (parse_address(name, value) for value in values):
        plain = _PLAIN.fullmatch(address.name)
        tokens += [f" {address},"] if plain else [*_encoded_words(address.name), f" <{address.spec}>,"]
    tokens[-1] = tokens[-1].removesuffix(",")
    return fold(name, tokens)


def _encoded_words(text: str) -> list[str]:
    return [f" =?utf-8?b?{base64.b64encode(chunk).decode()}?=" for chunk in _CHUNK.findall(text.encode())]
