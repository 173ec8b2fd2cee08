"""`env.example` is the settings, one by one."""

from __future__ import annotations

import textwrap
from pathlib import Path

from tests.deploy.files import DEPLOY
from workers.settings import PROVIDERS, SETTINGS, Settings

_HEAD = """\
# The settings of idem-workers, with their defaults: for /etc/idem/NAME.env (systemd), `docker run --env-file`, or .env
# in the working directory. It holds secrets: let nobody else read it (chmod 600).
"""
_PROVIDERS = """\
# What the provider needs; the others' may be set as well. The base URL is the provider's own, unless it is set.
"""


def expected() -> str:
    """`python -m tests.deploy.test_settings` prints it."""
    blocks = [_HEAD]
    for name, default, meaning in SETTINGS:
        said = "\n".join(textwrap.wrap(meaning, 115, initial_indent="# ", subsequent_indent="#   "))
        blocks.append(f"{said}\n# {name}={_shown(default)}\n")
    credentials = (f"# IDEM_{name.upper()}_TOKEN=\n# IDEM_{name.upper()}_BASE_URL=\n" for name in PROVIDERS)
    return "\n".join([*blocks, _PROVIDERS + "".join(credentials)])


def _shown(default: object) -> str:
    if default is None:
        return ""
    return f"{default:.10g}" if isinstance(default, float) else str(default)


def test_every_setting_with_its_default_and_what_it_means() -> None:
    assert (DEPLOY / "env.example").read_text(encoding="utf-8") == expected()


def test_its_defaults_are_read_as_the_defaults(tmp_path: Path) -> None:
    """Every line that sets something, without its hash; from a file, as systemd and Docker do not quote either."""
    lines = expected().splitlines()
    (tmp_path / ".env").write_text("\n".join(line[2:] for line in lines if _sets(line)), encoding="utf-8")

    assert Settings.load({}, tmp_path) == Settings()


def _sets(line: str) -> bool:
    return line.startswith("# IDEM_") and not line.endswith("=")


if __name__ == "__main__":
    print(expected(), end="")  # noqa: T201 - what it is for
