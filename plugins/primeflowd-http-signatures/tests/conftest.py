"""The receiver's side: the verifier that the README gives to customers."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def customer() -> SimpleNamespace:
    """The names of the README's verify.py."""
    [code] = re.findall(r"^```python\n(# verify\.py\n.*?)^```$", README, re.DOTALL | re.MULTILINE)
    # A name that cannot be imported: dataclasses look their module up.
    namespace: dict[str, object] = {"__name__": "builtins"}
    exec(compile(code, "README.md", "exec"), namespace)
    return SimpleNamespace(**namespace)
