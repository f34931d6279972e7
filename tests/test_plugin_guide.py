"""plugins/README.md: complete as a reference, and a guide whose files do what it says."""

import ast
import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from primeflowd import hookspecs, testing
from primeflowd.hookspecs import SigningRequest
from primeflowd.testing import fixtures
from primeflowd.testing.daemon_process import DaemonProcess
from primeflowd.testing.receiver_process import ReceiverProcess
from tests.test_docs import blocks

FOLDER = Path(__file__).parent.parent / "plugins"
GUIDE = (FOLDER / "README.md").read_text(encoding="utf-8")
HOOKS = [
    node
    for node in ast.parse(inspect.getsource(hookspecs)).body
    if isinstance(node, ast.FunctionDef) and "hookspec" in ast.unparse(node.decorator_list[0])
]


def section(heading: str) -> str:
    """The text under a heading, up to the next of any level."""
    [text] = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", GUIDE, re.DOTALL | re.M)
    return str(text)


def files() -> dict[str, str]:
    """The guide's files: the blocks that begin with a path."""
    found = {}
    for language in ("toml", "python"):
        for block in blocks(GUIDE, language):
            if path := re.match(r"# (\S+\.(?:toml|py))\n", block):
                found[path[1]] = block
    return found


def test_hooks_are_found() -> None:
    assert {hook.name for hook in HOOKS} == {
        name for name, one in vars(hookspecs).items() if hasattr(one, f"{hookspecs.PROJECT}_spec")
    }


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_reference_has_every_hook_with_its_exact_signature(hook: ast.FunctionDef) -> None:
    assert hook.returns is not None
    text = section(f"`{hook.name}`")
    signature = f"def {hook.name}({ast.unparse(hook.args)}) -> {ast.unparse(hook.returns)}: ..."
    assert ast.unparse(ast.parse(blocks(text, "python")[0])) == ast.unparse(ast.parse(signature))
    for told in ("- **Called** ", "- **Thread**: ", "- **A failure**"):
        assert told in text, told


def test_reference_has_no_hook_that_there_is_not() -> None:
    told = re.findall(r"^### `(\w+)`$", GUIDE, re.M)
    assert sorted(told) == sorted(hook.name for hook in HOOKS)


def test_version_of_the_hooks_is_told() -> None:
    assert f"today {hookspecs.HOOK_API}." in " ".join(section("Versions").split())
    assert f"HOOK_API = {hookspecs.HOOK_API}  #" in GUIDE


def test_plugins_of_this_directory_are_listed() -> None:
    for project in FOLDER.glob("*/pyproject.toml"):
        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        for name in table["entry-points"]["primeflowd"]:
            assert f"| [`{name}`]({project.parent.name}/README.md) |" in GUIDE


def test_signer_of_the_reference_works() -> None:
    [example] = [block for block in blocks(GUIDE, "python") if "LengthSigner" in block]
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, "plugins/README.md", "exec"), namespace)
    assert namespace["HOOK_API"] == hookspecs.HOOK_API
    [signer] = namespace["register_signers"]()
    request = SigningRequest("b", "d", "a", 1, b"1234", ("whsec_x",), "https://example.com/")
    assert list(signer.sign(request)) == [("X-Body-Length", "4")]


def public_names() -> Iterator[str]:
    """What the docstring of primeflowd.testing calls public, the fixtures, and what they offer."""
    assert testing.__doc__ is not None
    for module, name in re.findall(r"`(\w+)\.(\w+)`", testing.__doc__):
        if Path(testing.__path__[0], f"{module}.py").exists():
            yield name
    for name, one in vars(fixtures).items():
        if isinstance(one, pytest.FixtureDef) or "Fixture" in type(one).__name__:
            yield name
    for kind in (DaemonProcess, ReceiverProcess):
        yield from (name for name, _ in inspect.getmembers(kind, callable) if name[0] != "_")


def test_reference_has_every_public_name_of_testing() -> None:
    text = section("`primeflowd.testing`")
    names = set(public_names())
    assert {"StorageConformance", "Answer", "daemon", "receiver_script", "terminate"} <= names
    for name in names:
        assert f"`{name}`" in text, name


def test_files_of_the_guide_are_a_plugin_whose_tests_pass(tmp_path: Path) -> None:
    """Laid out on disk as an installer does it, but without one: pip would want the network."""
    for path, content in files().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    info = tmp_path / "src" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    entries = project["entry-points"]["primeflowd"]
    (info / "entry_points.txt").write_text(
        "[primeflowd]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # In a place of its own: the usual one is swept, and other sessions are at it.
    own = f"--basetemp={tmp_path / 'temporary'}"
    assert "5 passed" in run("pytest", "-q", "-p", "no:cacheprovider", own)
    assert re.search(
        r"^accepted +primeflowd-accepted +0\.1\.0 +classify_outcome configure +enabled *$",
        run("primeflowd", "plugins", "--config", "primeflowd.toml"),
        re.M,
    )
    run("primeflowd", "check-config", "--config", "primeflowd.toml")
