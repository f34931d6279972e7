"""The README is complete and right: every setting, and the SQL as it is written."""

import re
import tomllib
from pathlib import Path

from server import Server

from primeflowd.config import from_mapping
from primeflowd.testing.factories import make_batch, make_delivery
from primeflowd_postgresql.connections import SCHEMES, WRITING, Address
from primeflowd_postgresql.settings import Settings, read
from primeflowd_postgresql.storage import open_postgresql

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_its_configuration_has_every_setting_and_the_defaults() -> None:
    [text] = blocks("toml")
    document = tomllib.loads(text)
    table = document["plugins"].pop("postgresql")
    assert list(table) == list(Settings.__struct_fields__)
    assert read(table) == Settings()
    for name in table:
        assert f"\n| `{name}` | " in README
    url = from_mapping(document).storage_url
    assert url.startswith(SCHEMES)
    assert Address(url).name == "PostgreSQL database primeflowd at db.example"


async def test_its_privileges_are_enough(server: Server) -> None:
    """The first role makes the schema, the second has no right to."""
    creation, grants = blocks("sql")
    for statement in creation.strip().split("\n"):
        server.execute(statement)
    owner = server.url("primeflowd").replace("postgres@", "primeflowd@")
    async with open_postgresql(owner, "node-1"):
        pass
    server.execute("CREATE ROLE daemon LOGIN")
    for statement in grants.strip().split("\n"):
        server.execute(statement, "primeflowd")
    url = server.url("primeflowd").replace("postgres@", "daemon@")
    batch = make_batch()
    async with open_postgresql(url, "node-1") as storage:
        await storage.write(lambda tx: tx.insert_batch(batch))
        await storage.write(lambda tx: tx.insert_delivery(make_delivery(batch_id=batch.id)))
        assert len(await storage.write(lambda tx: tx.claim("node-1", 2**60, 9, 9, {}))) == 1
    engine = Address(url).engine(WRITING, None)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT current_user").scalar() == "daemon"
    engine.dispose()
    server.drop_database("primeflowd")
    server.execute("DROP ROLE daemon")
    server.execute("DROP ROLE primeflowd")
