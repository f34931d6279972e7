"""The configuration: one TOML file into frozen structs, each setting with default, unit, meaning.

The structs of tables.py and delivery.py are the only place where a setting is declared: loading,
validation, `config.example.toml` and `primeflowd init` all read them. An unknown key, a wrong type
and a value out of range are ConfigErrors that name the file, the key's path and what is allowed.

Durations are strings in the grammar of durations.py; sizes are whole numbers of bytes.
"""

from primeflowd.config.checks import parse_bind
from primeflowd.config.delivery import (
    DefaultPolicy,
    DeliverySettings,
    DestinationSettings,
    Egress,
)
from primeflowd.config.reading import (
    DEFAULT_PATHS,
    bind_in,
    destination_settings,
    from_mapping,
    load,
)
from primeflowd.config.tables import (
    DESTINATION_TABLE,
    Api,
    Config,
    Drain,
    Events,
    Log,
    Plugins,
    RetentionSettings,
    Secrets,
    Signing,
    StorageSettings,
    TracingSettings,
    settings,
)

__all__ = [
    "DEFAULT_PATHS",
    "DESTINATION_TABLE",
    "Api",
    "Config",
    "DefaultPolicy",
    "DeliverySettings",
    "DestinationSettings",
    "Drain",
    "Egress",
    "Events",
    "Log",
    "Plugins",
    "RetentionSettings",
    "Secrets",
    "Signing",
    "StorageSettings",
    "TracingSettings",
    "bind_in",
    "destination_settings",
    "from_mapping",
    "load",
    "parse_bind",
    "settings",
]
