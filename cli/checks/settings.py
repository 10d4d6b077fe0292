"""The settings themselves: what they permit, and the secrets they name."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cli.checks.finding import Finding, error, ok, warning
from cli.configuration import unsafe
from streams.settings import Settings

CHECK, SECRETS = "settings", "secrets"
_READABLE_BY_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def permitted(settings: Settings, origin: str) -> list[Finding]:
    """Return what is unsafe about settings that could be read from `origin`."""
    risks = unsafe(settings)
    if not settings.allow_insecure_dev:
        found = [error(CHECK, risk, "mend it, or for development only set allow_insecure_dev = true") for risk in risks]
        return found or [ok(CHECK, f"{origin}; nothing unsafe")]
    found = [warning(CHECK, risk, "mend it before others depend on this") for risk in risks]
    switch = "allow_insecure_dev = true permits unsafe settings"
    return [warning(CHECK, switch, "remove it outside development"), *found]


def secret_files(settings: Settings) -> dict[str, Path]:
    """Return every file with a secret that the settings name, by the setting."""
    named = {
        "kafka.password_file": settings.kafka.password_file,
        "kafka.key_file": settings.kafka.key_file,
        "gateway.tls_key_file": settings.gateway.tls_key_file,
        "webhooks.secret_file": settings.webhooks.secret_file,
        **{f"backend {row.name}: api_key_file": row.api_key_file for row in settings.backends},
    }
    return {name: path for name, path in named.items() if path is not None}


def secrets(settings: Settings) -> list[Finding]:
    """Return what is wrong with the files that hold secrets, [] when none is named."""
    found = [each for name, path in secret_files(settings).items() if (each := _of_file(name, path)) is not None]
    count = len(secret_files(settings))
    return found or ([ok(SECRETS, f"{count} file{'s' * (count != 1)}, readable by this user alone")] if count else [])


def _of_file(name: str, path: Path) -> Finding | None:
    try:
        mode = path.stat().st_mode
    except OSError as failure:
        return error(SECRETS, f"{name} {path}: {failure.strerror}", f"create {path}, mode 600, or correct the setting")
    if not os.access(path, os.R_OK):
        return error(SECRETS, f"{name} {path} cannot be read by this user", f"sudo chown $(id -un) {path}")
    if mode & _READABLE_BY_OTHERS:
        return warning(SECRETS, f"{name} {path} has mode {stat.S_IMODE(mode):o}: not only its owner's", _private(path))
    return None


def _private(path: Path) -> str:
    return f"chmod 600 {path}"
