"""How a server is set up."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path

from recbole_dppmg.assets import cache_dir
from recbole_dppmg.errors import ConfigError

KEY_VARIABLE = "RECBOLE_DPPMG_API_KEY"
_KEY_LENGTH = 16


def keys_from_environment() -> tuple[str, ...]:
    """The API keys in `RECBOLE_DPPMG_API_KEY`, separated by commas (two while one replaces the other).

    Raises:
        ConfigError: a key is shorter than 16 characters.
    """
    keys = tuple(key.strip() for key in os.environ.get(KEY_VARIABLE, "").split(",") if key.strip())
    if any(len(key) < _KEY_LENGTH for key in keys):
        raise ConfigError(f"{KEY_VARIABLE}: a key needs at least {_KEY_LENGTH} characters; try `openssl rand -hex 24`")
    return keys


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class ServeOptions:
    """Options of `serve`; times in seconds.

    Raises:
        ConfigError: the server would be open to others without a key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = field(default=(), repr=False)
    insecure: bool = False
    store: Path = field(default_factory=lambda: cache_dir() / "serving" / "cards.sqlite3")
    store_mb: int = 1024  # finished cards kept
    queue: int = 64  # cards that may wait
    batch: int = 8  # cards made together
    deadline: float = 120.0  # a card may wait
    limit: float = 120.0  # a generator's call may take, its first one with loading
    rate: float | None = None  # requests a second per key; None: 100 where others can reach the server or a key is set
    body_kb: int = 64  # largest request body
    threads: int = 1  # of the generators' process
    drain: float = 30.0  # to finish open requests when stopped

    def __post_init__(self) -> None:
        if not (self.keys or self.insecure or is_loopback(self.host)):
            raise ConfigError(
                f"--host={self.host} opens the server to other machines: set {KEY_VARIABLE}, or say --insecure"
            )

    @property
    def requests_per_second(self) -> float:
        """The rate that holds; 0 is no limit."""
        if self.rate is not None:
            return self.rate
        return 100.0 if self.keys or not is_loopback(self.host) else 0.0
