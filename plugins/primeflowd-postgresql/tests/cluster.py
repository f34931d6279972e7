"""Clusters of real nodes on a database of the test's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server import Server

from primeflowd.testing.cluster import Cluster, Node

SETTINGS = """
[plugins]
enable = ["postgresql"]
"""
RETRIES = """
[delivery.default_policy]
delays = ["300ms", "1s"]
max_retries = 20
"""
# Whoever is named in the table may not write; which node a session is of, its name says.
_REFUSING = (
    "CREATE TABLE refused (name text)",
    """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF EXISTS (SELECT FROM refused WHERE name = current_setting('application_name')) THEN
            RAISE EXCEPTION 'not for you' USING ERRCODE = 'read_only_sql_transaction';
        END IF;
        RETURN NULL;
    END $$""",
    *(
        f"CREATE TRIGGER refuse AFTER INSERT OR UPDATE OR DELETE ON {table}"
        " FOR EACH STATEMENT EXECUTE FUNCTION refuse()"
        for table in ("attempts", "batches", "deliveries", "nodes", "orders")
    ),
)
_SLOW = (
    """CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        -- Once in a transaction, however many rows it has.
        IF current_setting('test.slow', true) IS DISTINCT FROM 'yes' THEN
            PERFORM set_config('test.slow', 'yes', true), pg_sleep({});
        END IF;
        RETURN NULL;
    END $$""",
    "CREATE CONSTRAINT TRIGGER slow AFTER INSERT OR UPDATE ON deliveries"
    " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()",
)
# Seconds that an attempt at a slow receiver may take, with its record, on a machine that is busy.
IN_FLIGHT = 2.0


class PostgresCluster(Cluster):
    """Nodes on one database; see Cluster.

    Args:
        ports: of the server or of proxies before it, one for each node.

    To the server a node's sessions are named `node-1` and so on.
    """

    def __init__(
        self,
        server: Server,
        directory: Path,
        ports: list[int],
        settings: str = RETRIES,
        *,
        lease_ttl: float = 2.0,
    ) -> None:
        self.server = server
        self._can_refuse = False
        self.database = server.create_database()
        urls = [
            f"{server.url(self.database, port)}?application_name=node-{number}"
            for number, port in enumerate(ports, 1)
        ]
        super().__init__(directory, urls, SETTINGS + settings, lease_ttl=lease_ttl)

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        return self.server.execute(statement, self.database)

    def claims(self, name: str) -> set[str]:
        """The deliveries claimed by nodes whose id begins with `name`; see mishaps.Kills."""
        query = f"SELECT id FROM deliveries WHERE claimed_by LIKE '{name}%'"
        return {str(delivery_id) for (delivery_id,) in self.execute(query)}

    def refuse_writes(self, node: Node) -> None:
        """Let this node read, and no more: as if its database had been demoted."""
        if not self._can_refuse:
            for statement in _REFUSING:
                self.execute(statement)
            self._can_refuse = True
        self.execute(f"INSERT INTO refused VALUES ('node-{node.number}')")

    def allow_writes(self) -> None:
        """Let all nodes write again."""
        self.execute("DELETE FROM refused")

    def slow_commits(self, seconds: float) -> None:
        """Have commits take so much longer, those that change deliveries."""
        for statement in _SLOW:
            self.execute(statement.format(seconds))


@contextmanager
def three_nodes(
    server: Server, directory: Path, settings: str = RETRIES, *, lease_ttl: float = 2.0
) -> Iterator[PostgresCluster]:
    """Three nodes that run, all on the server itself."""
    ports = [server.port] * 3
    with PostgresCluster(server, directory, ports, settings, lease_ttl=lease_ttl) as cluster:
        yield cluster
