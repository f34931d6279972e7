"""The README is complete: every setting, with the defaults."""

import re
import tomllib
from pathlib import Path

from primeflowd_json_verdict.settings import RuleTable, Table, read

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_its_configuration_has_every_setting_and_the_defaults() -> None:
    found = re.search(r"^```toml\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert found is not None
    table = tomllib.loads(found[1])["plugins"]["json-verdict"]
    settings, bare = read(table), read({})
    assert (settings.trust_body, settings.content_types) == (bare.trust_body, bare.content_types)
    assert list(table) == list(Table.__struct_fields__)
    assert {key for rule in table["rules"] for key in rule} == set(RuleTable.__struct_fields__)
    for name in (*Table.__struct_fields__, *RuleTable.__struct_fields__):
        assert f"| `{name}` | " in README
