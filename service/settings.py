"""Every setting of the service and the worker, read once from the environment into a frozen object."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.errors import InvalidSettingError

GIB = 1024**3
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off", ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an operator may choose. Everything embedded lies under `data_dir`."""

    data_dir: Path
    database_url: str
    broker_url: str
    host: str = "127.0.0.1"
    port: int = 8000
    allow_remote: bool = False
    allowed_hosts: tuple[str, ...] = ()
    max_model_bytes: int = 2 * GIB
    max_dataset_bytes: int = 2 * GIB
    lease_seconds: float = 30.0
    reap_seconds: float = 5.0
    max_attempts: int = 3
    job_deadline_seconds: float = 4 * 3600.0
    job_memory_bytes: int = 8 * GIB
    job_threads: int = 0
    # Protections of a job's process without which a worker does not start; worker/sandbox.py has their names.
    require_protections: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InvalidSettingError("LUSTRATE_PORT must be 0 to 65535")
        for name in ("max_model_bytes", "max_dataset_bytes", "max_attempts", "job_memory_bytes"):
            if getattr(self, name) < 1:
                raise InvalidSettingError(f"LUSTRATE_{name.upper()} must be at least 1")
        for name in ("lease_seconds", "reap_seconds", "job_deadline_seconds"):
            if not 0 < getattr(self, name) < 10**9:
                raise InvalidSettingError(f"LUSTRATE_{name.upper()} must be above 0")
        if self.job_threads < 0:
            raise InvalidSettingError("LUSTRATE_JOB_THREADS must be 0 (torch's choice) or more")
        if not is_loopback(self.host) and not self.allow_remote:
            raise InvalidSettingError(
                f"LUSTRATE_HOST={self.host} is reachable from other machines, and this release has no API keys: "
                "bind to 127.0.0.1, or set LUSTRATE_ALLOW_REMOTE=1 where a proxy or firewall decides who may connect"
            )

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Read the LUSTRATE_* variables; `env` defaults to the process's environment.

        Raises:
            InvalidSettingError: a variable cannot be read, is out of its bounds, or is unsafe.
        """
        values = os.environ if env is None else env
        data_dir = Path(values.get("LUSTRATE_DATA_DIR", "data")).expanduser().absolute()
        hosts = values.get("LUSTRATE_ALLOWED_HOSTS", "")
        return cls(
            data_dir=data_dir,
            database_url=values.get("LUSTRATE_DATABASE_URL") or f"sqlite:///{data_dir / 'lustrate.db'}",
            broker_url=values.get("LUSTRATE_BROKER_URL") or "filesystem://",
            host=values.get("LUSTRATE_HOST") or "127.0.0.1",
            port=_integer(values, "LUSTRATE_PORT", 8000),
            allow_remote=_boolean(values, "LUSTRATE_ALLOW_REMOTE", default=False),
            allowed_hosts=tuple(host.strip().lower() for host in hosts.split(",") if host.strip()),
            max_model_bytes=_integer(values, "LUSTRATE_MAX_MODEL_BYTES", 2 * GIB),
            max_dataset_bytes=_integer(values, "LUSTRATE_MAX_DATASET_BYTES", 2 * GIB),
            lease_seconds=_number(values, "LUSTRATE_LEASE_SECONDS", 30.0),
            reap_seconds=_number(values, "LUSTRATE_REAP_SECONDS", 5.0),
            max_attempts=_integer(values, "LUSTRATE_MAX_ATTEMPTS", 3),
            job_deadline_seconds=_number(values, "LUSTRATE_JOB_DEADLINE_SECONDS", 4 * 3600.0),
            job_memory_bytes=_integer(values, "LUSTRATE_JOB_MEMORY_BYTES", 8 * GIB),
            job_threads=_integer(values, "LUSTRATE_JOB_THREADS", 0),
            require_protections=tuple(
                name.strip() for name in values.get("LUSTRATE_REQUIRE_PROTECTIONS", "").split(",") if name.strip()
            ),
        )

    @property
    def queue_dir(self) -> Path:
        """Where the filesystem transport keeps its messages."""
        return self.data_dir / "queue"

    @property
    def staging_dir(self) -> Path:
        """Where a body lies while it is being received, and nowhere else."""
        return self.data_dir / "staging"


def is_loopback(host: str) -> bool:
    """Whether a bind address can only be reached from this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _integer(values: Mapping[str, str], name: str, default: int) -> int:
    text = values.get(name, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise InvalidSettingError(f"{name} must be a whole number, not {text[:40]!r}") from None


def _number(values: Mapping[str, str], name: str, default: float) -> float:
    text = values.get(name, "")
    try:
        return float(text) if text else default
    except ValueError:
        raise InvalidSettingError(f"{name} must be a number, not {text[:40]!r}") from None


def _boolean(values: Mapping[str, str], name: str, *, default: bool) -> bool:
    text = values.get(name)
    if text is None:
        return default
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise InvalidSettingError(f"{name} must be 1 or 0, not {text[:40]!r}")
