# SPDX-License-Identifier: Apache-2.0
"""All environment variables of archkey, in one place. Read once, never per call.

| variable | meaning |
|---|---|
| `ARCHKEY_TARGET` | pretend that this machine has that target: everything but launching |
| `ARCHKEY_PLUGINS` | comma list: load only these plugins, and prefer them in this order |
| `ARCHKEY_DISABLE_PLUGINS` | comma list: never load these |
| `ARCHKEY_OVERRIDE_<OPERATOR>` | the kernel to use for that operator, still checked |
| `ARCHKEY_STRICT` | 1: refuse a degraded choice instead of announcing it |
| `ARCHKEY_VALIDATE` | 1: also check values of index and length tensors (synchronises) |
| `ARCHKEY_DATA_DIR` | where `check` and `tune` keep what they found; default: user's data folder |
| `ARCHKEY_CACHE_DIR` | where machine code is kept; default: user's cache folder |
| `ARCHKEY_CACHE` | 0: keep no machine code, compile in each process |
| `ARCHKEY_LOGLEVEL` | level of the `archkey` logger: debug, info, warning, error |
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

from archkey.errors import SettingError, nearest

_PREFIX = "ARCHKEY_"
_OVERRIDE = "ARCHKEY_OVERRIDE_"
_PLAIN = (
    *("TARGET", "PLUGINS", "DISABLE_PLUGINS", "STRICT", "VALIDATE", "LOGLEVEL"),
    *("DATA_DIR", "CACHE_DIR", "CACHE"),
)
_BOOLEANS = {
    **dict.fromkeys(("", "0", "false", "no", "off"), False),
    **dict.fromkeys(("1", "true", "yes", "on"), True),
}


@dataclass(frozen=True)
class Settings:
    """What the environment asks of archkey."""

    target: str | None = None
    plugins: tuple[str, ...] | None = None
    disable_plugins: tuple[str, ...] = ()
    override: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    strict: bool = False
    validate: bool = False
    data_dir: str | None = None
    cache_dir: str | None = None
    cache: bool = True
    loglevel: str | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read `environ`; a misspelt or unreadable ARCHKEY_ variable is an error."""
        ours = {k: v.strip() for k, v in environ.items() if k.startswith(_PREFIX)}
        known = [*(_PREFIX + name for name in _PLAIN), _OVERRIDE + "<OPERATOR>"]
        for name in ours:
            if name not in known and not name.startswith(_OVERRIDE):
                raise SettingError(f"unknown environment variable {name}; {nearest(name, known)}")
        allow = _names(ours.get("ARCHKEY_PLUGINS", ""))
        return cls(
            target=ours.get("ARCHKEY_TARGET") or None,
            plugins=allow or None,
            disable_plugins=_names(ours.get("ARCHKEY_DISABLE_PLUGINS", "")),
            override=MappingProxyType(
                {
                    name[len(_OVERRIDE) :].lower(): kernel
                    for name, kernel in ours.items()
                    if name.startswith(_OVERRIDE) and kernel  # empty is as good as not set
                }
            ),
            strict=_boolean("ARCHKEY_STRICT", ours),
            validate=_boolean("ARCHKEY_VALIDATE", ours),
            data_dir=ours.get("ARCHKEY_DATA_DIR") or None,
            cache_dir=ours.get("ARCHKEY_CACHE_DIR") or None,
            cache=_boolean("ARCHKEY_CACHE", ours, default="1"),
            loglevel=_level(ours.get("ARCHKEY_LOGLEVEL", "")),
        )


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process. `settings.cache_clear()` reads the environment again."""
    found = Settings.from_environ(os.environ)
    if found.loglevel is not None:  # else the level is the application's business
        logging.getLogger("archkey").setLevel(found.loglevel)
    return found


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _boolean(name: str, environ: Mapping[str, str], default: str = "0") -> bool:
    text = environ.get(name, "").lower() or default
    if text not in _BOOLEANS:
        raise SettingError(f"{name}={text!r} is neither yes nor no; use 1 or 0")
    return _BOOLEANS[text]


def _level(text: str) -> str | None:
    level = text.upper()
    if not level:
        return None
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise SettingError(f"ARCHKEY_LOGLEVEL={text!r}; use debug, info, warning or error")
    return level
