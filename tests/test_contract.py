"""Every numbered rule of contract.md is named by a test, in its docstring."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
RULES = re.findall(r"^- (\d\.\d+) ", (TESTS / "contract.md").read_text(), re.MULTILINE)
# Sections 7 and 8 are rules as a whole.
RULES += ["7", "8"]


def docstrings() -> Iterator[str]:
    """Those of all test functions, test classes and test modules."""
    suites = [*TESTS.rglob("test_*.py")]
    suites += (TESTS.parent / "primeflowd" / "testing").rglob("*.py")
    for path in suites:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = getattr(node, "name", "test_")
                if name.lower().startswith("test") and (text := ast.get_docstring(node)):
                    yield text


NAMED = {rule for text in docstrings() for rule in re.findall(r"(?<![\w.])\d\.?\d*", text)}


@pytest.mark.parametrize("rule", RULES)
def test_rule_is_named_by_a_test(rule: str) -> None:
    assert rule in NAMED


def test_rules_are_found() -> None:
    """Else the test above would pass by finding nothing."""
    assert len(RULES) > 35
