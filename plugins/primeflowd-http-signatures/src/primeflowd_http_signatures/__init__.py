"""Signs callbacks by RFC 9421 (HTTP Message Signatures) with Ed25519: the signer `http-signatures`.

The plugin for primeflowd. settings.py checks `[plugins.http-signatures]`, signer.py signs.
"""

from collections.abc import Mapping
from typing import Any, Final

from primeflowd.config import Config
from primeflowd.hookspecs import Signer, hookimpl
from primeflowd_http_signatures.settings import Settings, read
from primeflowd_http_signatures.signer import HttpSignatures

__all__ = ["HttpSignatures", "Settings", "plugin"]


class Plugin:
    """What primeflowd loads. Holds the settings between the two hooks."""

    HOOK_API: Final = 1

    def __init__(self) -> None:
        self._settings = Settings()

    @hookimpl
    def configure(self, settings: Mapping[str, Any]) -> None:
        self._settings = read(settings)

    @hookimpl
    def register_signers(self, config: Config) -> tuple[Signer, ...]:
        return (HttpSignatures(self._settings),)


plugin: Final = Plugin()
