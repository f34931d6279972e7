"""`init`, `check-config`, and which file counts without `--config`."""

import base64
import stat
from pathlib import Path

import pytest

from primeflowd import config_file
from primeflowd.cli.options import BUILT_IN, load_config
from primeflowd.config import Config
from primeflowd.errors import ConfigError
from tests.cli.conftest import Run
from tests.distributions import Distributions


def test_init_writes_the_commented_file_and_a_private_key(primeflowd: Run, tmp_path: Path) -> None:
    done = primeflowd("init")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "primeflowd.toml").read_text() == config_file.render()
    key = tmp_path / "state" / "primeflowd" / "master.key"
    assert str(key) in done.stdout
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(base64.b64decode(key.read_text())) == 32
    assert key.read_text().strip() not in done.stdout
    assert primeflowd("check-config").stdout == "primeflowd.toml: ok\n"


def test_init_overwrites_nothing_without_force(primeflowd: Run, tmp_path: Path) -> None:
    file = tmp_path / "sub" / "mine.toml"
    file.parent.mkdir()
    file.write_text("# mine\n")
    done = primeflowd("init", "--config", "sub/mine.toml")
    assert done.returncode == 1
    assert done.stderr == "primeflowd: error: sub/mine.toml exists; --force overwrites it\n"
    assert file.read_text() == "# mine\n"


def test_init_with_force_leaves_the_master_key(primeflowd: Run, tmp_path: Path) -> None:
    primeflowd("init")
    key = tmp_path / "state" / "primeflowd" / "master.key"
    before = key.read_bytes()
    (tmp_path / "primeflowd.toml").write_text("# mine\n")
    done = primeflowd("init", "--force")
    assert done.returncode == 0
    assert (tmp_path / "primeflowd.toml").read_text() == config_file.render()
    assert key.read_bytes() == before


def test_init_where_nothing_can_be_written(primeflowd: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = primeflowd("init", "--config", "file/config.toml")
    assert done.returncode == 1
    assert done.stderr.startswith("primeflowd: error: file/config.toml: cannot be written: ")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[plugins]\nenable = ["absent"]\n', "absent"),
        ("[plugins.absent]\na = 1\n", "plugins.absent: no such plugin is installed"),
        ('[plugins]\nenable = ["picky"]\n[plugins.picky]\na = 1\n', "plugins.picky: a: no"),
        ('[signing]\nsigners = ["rot13"]\n', "rot13"),
        ('[storage]\nurl = "oracle://db"\n', "storage.url: no plugin opens oracle:// URLs"),
        (
            '[tracing]\nendpoint = "http://127.0.0.1:4318/v1/traces"\n',
            "tracing.endpoint: opentelemetry.sdk is not installed; install primeflowd with its "
            "extra, as primeflowd[otel], or remove the setting",
        ),
    ],
)
def test_check_config_finds_what_would_stop_the_daemon(
    primeflowd: Run, tmp_path: Path, text: str, fault: str
) -> None:
    """`run` says the same, and both on one line."""
    site = Distributions(tmp_path / "site")
    site.install(
        "picky",
        """
        from primeflowd.errors import ConfigError

        @hookimpl
        def configure(settings): raise ConfigError("a: no such key")
        """,
    )
    # In the way of the packages of that name: it is as if they were not installed.
    (site.directory / "opentelemetry.py").touch()
    (tmp_path / "primeflowd.toml").write_text(text)
    checked = primeflowd("check-config", env={"PYTHONPATH": str(site.directory)})
    assert checked.returncode == 1
    [line] = checked.stderr.splitlines()
    assert fault in line
    done = primeflowd("run", env={"PYTHONPATH": str(site.directory)})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == line


def test_check_config_opens_nothing(primeflowd: Run, tmp_path: Path) -> None:
    (tmp_path / "primeflowd.toml").write_text('state_directory = "state"\n')
    assert primeflowd("check-config").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["primeflowd.toml"]


def test_file_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one named, else ./primeflowd.toml, else /etc/primeflowd/config.toml, else none."""
    monkeypatch.chdir(tmp_path)
    if not Path("/etc/primeflowd").exists():
        assert load_config(None) == (Config(), BUILT_IN)
    Path("primeflowd.toml").write_text('[log]\nlevel = "debug"\n')
    Path("other.toml").write_text('[log]\nlevel = "error"\n')
    assert load_config(None)[0].log.level == "debug"
    config, origin = load_config(Path("other.toml"))
    assert (config.log.level, origin) == ("error", "other.toml")


def test_file_that_is_out_of_reach_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running with the defaults instead would be a nasty surprise."""
    monkeypatch.chdir(tmp_path)
    # A link to itself: out of reach for root, too, whom a file mode does not stop.
    Path("primeflowd.toml").symlink_to("primeflowd.toml")
    with pytest.raises(ConfigError, match=r"primeflowd\.toml: cannot be read"):
        load_config(None)
