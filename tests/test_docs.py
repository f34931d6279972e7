"""What the documentation names exists, and what there is, it names."""

import ast
import hmac
import re
import shlex
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
from standardwebhooks import Webhook

from primeflowd import config, hookspecs, payload
from primeflowd.api import app, routes
from primeflowd.cli import primeflowd as command_line
from primeflowd.instants import MILLISECOND, SECOND

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PLUGINS = (ROOT / "plugins" / "README.md").read_text(encoding="utf-8")
SPECIFICATION = f"{hookspecs.PROJECT}_spec"


def leaf_commands(group: click.Group, path: str) -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaf_commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}"


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks, those inside lists without their indent."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", body, flags=re.MULTILINE) for indent, body in found]


def commands_in(text: str) -> set[tuple[str, ...]]:
    """The uses of `primeflowd` in shell blocks and in code spans, as words."""
    code = [*blocks(text, "sh"), *re.findall(r"`([^`\n]+)`", text)]
    uses = re.findall(
        r"\bprimeflowd ([a-z][^\n;&)|>]*?)(?: 2)?(?=[\n;&)|>])", "\n".join(code) + "\n"
    )
    return {tuple(shlex.split(use)) for use in uses}


def test_every_command_is_in_the_readme() -> None:
    for command in leaf_commands(command_line, "primeflowd"):
        assert f"| `{command}` |" in README, command


def test_commands_of_the_documentation_exist() -> None:
    uses = commands_in(README) | commands_in(PLUGINS)
    assert len(uses) > 8
    for words in uses:
        parser: click.Command = command_line
        rest = list(words)
        while isinstance(parser, click.Group) and rest:
            found = parser.get_command(click.Context(parser), rest.pop(0))
            assert found is not None, words
            parser = found
        known = {name for parameter in parser.params for name in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known, words


def test_every_table_of_settings_is_in_the_readme() -> None:
    for table, key, *_ in config.settings():
        assert (f"| `[{table}]` |" if table else f"`{key}`") in README, f"[{table}] {key}"


def test_settings_of_the_documentation_exist() -> None:
    """The configuration in the tour, and the tables named in prose."""
    tables = {table for table, *_ in config.settings()} | {"plugins.accepted"}
    for text in (README, PLUGINS):
        assert set(re.findall(r"`\[([a-z_.]+)\]", text)) <= tables
        for block in blocks(text, "toml"):
            if not block.startswith("# pyproject.toml"):
                config.from_mapping(tomllib.loads(block))
    [tour] = re.findall(r"cat > primeflowd.toml <<'END'\n(.*?)^END$", README, re.DOTALL | re.M)
    config.from_mapping(tomllib.loads(tour))


def test_every_route_is_in_the_readme_and_the_other_way_round() -> None:
    served = {(route.method, re.sub(r"<[a-z_:]+>", "{id}", route.path)) for route in routes.ROUTES}
    served |= {("GET", path) for path, _ in app.OPEN_ROUTES}
    rows = re.findall(r"((?:`[A-Z]+` )*`[A-Z]+) (/[^`]*)`", README)
    told = {(method, path) for methods, path in rows for method in re.findall("[A-Z]+", methods)}
    assert told == served


def test_every_hook_is_in_the_readme() -> None:
    """How each is used is for test_plugin_guide.py to check."""
    hooks = [name for name, one in vars(hookspecs).items() if hasattr(one, SPECIFICATION)]
    assert len(hooks) >= 5
    for name in hooks:
        assert f"`{name}`" in README


def test_python_of_the_documentation_compiles() -> None:
    for text in (README, PLUGINS):
        for block in blocks(text, "python"):
            ast.parse(block)


def test_marked_commands_are_the_only_ones_in_their_block() -> None:
    """`.ci/run` and the acceptance test take them from here."""
    for marker in ("demo-command", "test-command"):
        [block] = re.findall(rf"<!-- {marker} -->\n```sh\n(.*?)```", README, re.DOTALL)
        assert len(block.splitlines()) == 1
        assert block.startswith("python3 -m venv .venv && ")


def test_the_callback_of_the_readme_is_genuine() -> None:
    """4.2, 4.4, 6.2: its length and its signatures are those of its body, as bytes in one line."""
    [block] = blocks(README, "http")
    head, body = block.rstrip("\n").split("\n\n")
    fields = dict(line.split(": ", 1) for line in head.splitlines()[1:])
    sent = body.replace("\n", "").encode()
    [secret] = re.findall(r"signed with `(whsec_[^`]*)`", README)
    assert int(fields["Content-Length"]) == len(sent)
    assert fields["Primeflow-Signature"] == hmac.new(secret.encode(), sent, "sha256").hexdigest()
    at = datetime.fromtimestamp(int(fields["webhook-timestamp"]), UTC)
    signed = Webhook(secret).sign(fields["webhook-id"], at, sent.decode())
    assert fields["webhook-signature"] == signed
    began = datetime(2026, 5, 6, 10, tzinfo=UTC)
    micros = int(began.timestamp()) * SECOND
    assert sent == payload.freeze(
        batch_id=fields["webhook-id"], status="succeeded", output=b'{"rows":3}',
        metadata=b'{"order":4711}', created_at=micros, completed_at=micros + 1500 * MILLISECOND,
    )  # fmt: skip


def test_every_module_has_its_place_in_the_map() -> None:
    """In the table of CONTRIBUTING.md, or below it where it is a package."""
    _, text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Where things are")
    places = "\n".join(re.findall(r"^\| [^|]* \|(.*)\|$", text, re.MULTILINE))
    named = re.findall("`([a-z_]+)`", places)
    assert len(named) == len(set(named))
    package = ROOT / "primeflowd"
    modules = {path.stem for path in package.glob("[!_]*.py")}
    packages = {path.parent.name for path in package.glob("*/__init__.py")}
    assert modules | {"config"} == set(named)
    assert packages - set(named) <= set(re.findall("`([a-z_]+)` \\(", text))


def test_links_of_the_documentation_lead_somewhere() -> None:
    folders = ("", "plugins/**/", "packaging/", "tests/benchmarks/")
    for page in (page for folder in folders for page in ROOT.glob(f"{folder}*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("https://"):
                assert (page.parent / target).exists(), f"{page}: {target}"
