"""The files in `deploy/`, as their readers see them."""

from __future__ import annotations

import configparser
import sys
from pathlib import Path
from typing import Any

import click
import yaml  # type: ignore[import-untyped]  # ships no types

from workers.cli import idem

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
#: Where the command-line tools of the development dependencies are.
BIN = Path(sys.prefix) / "bin"


def load_yaml(name: str) -> dict[str, Any]:
    """A YAML file of `deploy/`."""
    found: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))
    return found


def load_unit(name: str) -> configparser.ConfigParser:
    """A systemd unit; of a name that is given twice, the last."""
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # names have capitals
    unit.read(DEPLOY / "systemd" / name, encoding="utf-8")
    return unit


def understood(command: str, *options: str) -> None:
    """Fail unless `idem` has such a command with such options."""
    found = idem.get_command(click.Context(idem), command)
    assert found is not None, command
    found.make_context(command, list(options))
