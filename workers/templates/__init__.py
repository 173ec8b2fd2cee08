"""Emails from templates: Jinja2 for what they say, css-inline for how they look, and a text alternative.

An email named `daily` is `daily.html`, or `daily.txt`, or both. Its subject is said in Python, stands in
`daily.subject.txt`, or is the block `subject` of the HTML. Without `daily.txt`, the text alternative is made from the
HTML. Values are escaped in HTML and nowhere else; a name that nobody gave is an error, as in `daily.html, line 3`.
Styles of `<style>` go into the elements, where mail clients look; rules such as `@media` stay. Nothing is fetched.

    templates = Templates("mails")
    templates.email("daily", from_="shop@example.com", to="ann@example.com", total=12)
"""

from __future__ import annotations

import html
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NoReturn

from idem.email import Attachment, Email
from idem.errors import MissingExtra, TemplateError
from workers.templates.text import text_of

try:
    import css_inline
    import jinja2
except ImportError as missing:
    raise MissingExtra("mail", "workers.templates") from missing

_SUFFIXES: Final = (".html", ".txt")


class Templates:
    """The templates of a folder, or of a folder inside a package. Safe to share between threads.

    They are compiled once, and again when a file has changed. Raises `TemplateError` when there is no such folder.
    """

    def __init__(self, folder: str | Path = "templates", *, package: str | None = None) -> None:
        self._environment = jinja2.Environment(
            loader=_loader(str(folder), package),
            autoescape=jinja2.select_autoescape(["html"], default=False),
            undefined=jinja2.StrictUndefined,
        )
        # A link to a font stays where it is, and nothing follows it: the file system and the network are out of reach.
        self._inliner = css_inline.CSSInliner(load_remote_stylesheets=False, keep_link_tags=True, keep_at_rules=True)

    def email(  # noqa: PLR0913 - the parts of an email, of which most have a default
        self,
        name: str,
        /,
        *,
        from_: str,
        to: str | Iterable[str],
        subject: str | None = None,
        cc: str | Iterable[str] = (),
        bcc: str | Iterable[str] = (),
        reply_to: str | Iterable[str] = (),
        headers: Mapping[str, str] = MappingProxyType({}),
        tags: Iterable[str] = (),
        metadata: Mapping[str, str] = MappingProxyType({}),
        attachments: Iterable[Attachment] = (),
        **context: Any,
    ) -> Email:
        """The email that the templates of that name make of `context`, which is every other argument.

        Raises `TemplateError`, with the template and its line, and `EmailError` for what can be no email.
        """
        body, title = self._html(name, context)
        text = self._text(f"{name}.txt", context)
        if body is None and text is None:
            raise TemplateError(f"there is neither {name}.html nor {name}.txt")
        chosen = next((each for each in (subject, self._text(f"{name}.subject.txt", context), title) if each), None)
        if chosen is None:
            raise TemplateError(f"{name} has no subject: give subject=, {name}.subject.txt or a block named subject")
        return Email(
            from_=from_,
            to=to,
            # Of a template, the ends of lines are its author's layout.
            subject=chosen if subject else " ".join(chosen.split()),
            text=text_of(body) if text is None and body is not None else text,
            html=None if body is None else self._inline(name, body),
            cc=cc,
            bcc=bcc,
            reply_to=reply_to,
            headers=headers,
            tags=tags,
            metadata=metadata,
            attachments=attachments,
        )

    def _html(self, name: str, context: Mapping[str, Any]) -> tuple[str | None, str | None]:
        """The HTML, and what its block named subject says."""
        template = self._find(f"{name}.html")
        if template is None:
            return None, None
        with self._explained(template.name):
            # What `render` does, with the context at hand: it knows the blocks of parent templates, too.
            made = template.new_context(dict(context))
            body = "".join(template.root_render_func(made))
            said = "".join(made.blocks["subject"][0](made)) if "subject" in made.blocks else None
        return body, None if said is None else html.unescape(said)

    def _text(self, name: str, context: Mapping[str, Any]) -> str | None:
        template = self._find(name)
        if template is None:
            return None
        with self._explained(name):
            return template.render(context)

    def _find(self, name: str) -> jinja2.Template | None:
        with self._explained(name):
            try:
                return self._environment.get_template(name)
            except jinja2.TemplateNotFound as error:
                if error.name == name:
                    return None
                raise

    def _inline(self, name: str, body: str) -> str:
        try:
            return self._inliner.inline(body)
        except (css_inline.InlineError, ValueError) as error:
            raise TemplateError(f"{name}.html: its styles cannot be inlined: {error}") from error

    @contextmanager
    def _explained(self, name: str | None) -> Iterator[None]:
        try:
            yield
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"{error.name or name}, line {error.lineno}: {error.message}") from error
        except jinja2.TemplatesNotFound as error:
            raise TemplateError(f"{name}: there is no template {error.name}") from error
        except jinja2.TemplateNotFound as error:
            raise TemplateError(f"{name}: there is no template {error.name}") from error
        except Exception:
            self._locate(name)

    def _locate(self, name: str | None) -> NoReturn:
        """Say where in a template the exception at hand was raised."""
        try:
            # Jinja's own way to a traceback that shows templates in place of the code that they became.
            self._environment.handle_exception()
        except Exception as error:
            places = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
            found = [f"{path.name}, line {line}" for path, line in places if path.suffix in _SUFFIXES]
            kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
            raise TemplateError(f"{found[-1] if found else name}: {kind}{error}") from error


def _loader(folder: str, package: str | None) -> jinja2.BaseLoader:
    if package is not None:
        try:
            return jinja2.PackageLoader(package, folder)
        except (ValueError, ImportError) as error:
            raise TemplateError(f"the package {package} has no folder {folder} of templates") from error
    if not Path(folder).is_dir():
        raise TemplateError(f"there is no folder {folder} of templates here; give a path, or package=")
    return jinja2.FileSystemLoader(folder)
