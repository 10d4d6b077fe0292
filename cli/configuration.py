"""Read the settings once: flag over environment over file over built-in default, each value with where it came from."""

from __future__ import annotations

import os
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource
from pydantic_settings import SettingsError as UnreadableVariable

from cli.errors import SettingsError
from cli.toml_lines import KeyPath, key_lines
from streams.settings import Settings

DEFAULT_FILE = Path("triage.toml")
PREFIX = "TRIAGE_"
# Variables of ours that are not settings.
_NOT_SETTINGS = frozenset({"TRIAGE_DEBUG"})
# What Kubernetes puts into every container for a Service whose name begins with "triage".
_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT(_.+)?)$|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$")


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and for each one (`kafka.bootstrap`) its origin: `flag`, a variable, `file:line` or `default`."""

    settings: Settings
    origins: dict[str, str]


@dataclass
class _Layers:
    """Values merged from the weakest source up, with the origin of every path that one of them names."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    # Where each table of the file begins.
    headers: dict[KeyPath, str] = field(default_factory=dict)

    def put(self, path: KeyPath, value: object, origin: str) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                self.put((*path, str(key)), inner, origin)
            return
        section = self.values
        for key in path[:-1]:
            inner = section.get(key)
            section = section.setdefault(key, {}) if isinstance(inner, dict | None) else _replaced(section, key)
        section[path[-1]] = value
        for known in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[known]
        self.origins[path] = origin

    def origin_of(self, path: KeyPath) -> str:
        """Return the origin of `path`, or of the nearest thing around it that a source names."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        inside = [origin for known, origin in self.origins.items() if known[: len(path)] == path]
        return inside[0] if inside else "default"


def load(
    config: Path | None,
    flags: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    refuse_unsafe: bool = True,
) -> Loaded:
    """Return the settings of this process.

    `config` None: `triage.toml` of the working directory where there is one. `flags` maps `kafka.bootstrap` to a value;
    None stands for a flag that was not given. An empty variable counts as unset. `refuse_unsafe` False: also return
    settings that need `allow_insecure_dev`, which is for showing them only.

    Raises: SettingsError, one line for each fault.
    """
    layers = _Layers()
    faults = [*_read_file(config, layers), *_read_environment(os.environ if environ is None else environ, layers)]
    for name, value in (flags or {}).items():
        if value is not None:
            layers.put(tuple(name.split(".")), value, "flag")
    try:
        settings = Settings.model_validate(layers.values)
    except ValidationError as error:
        for each in error.errors(include_input=False):
            path = tuple(str(part) for part in each["loc"])
            faults.append(fault(each["type"], path, each["msg"], _where(each["type"], path, layers), Settings))
    if faults:
        raise SettingsError("\n".join(faults))
    if refuse_unsafe and not settings.allow_insecure_dev and (risks := unsafe(settings)):
        raise SettingsError(f"{'; '.join(risks)}: set allow_insecure_dev = true if this is for development only.")
    return Loaded(settings, {".".join(path): layers.origin_of(path) for path, _ in leaves(settings)})


def unsafe(settings: Settings) -> list[str]:
    """Return what only `allow_insecure_dev` permits, a clause each."""
    found = []
    host = settings.gateway.host
    if not is_loopback(f"{host}:0"):
        if "none" in settings.auth.modes:
            found.append(f'auth.modes = ["none"] lets everyone in who reaches gateway.host = {host}')
        if settings.gateway.tls_cert_file is None:
            found.append(f"without gateway.tls_cert_file prompts go unencrypted to gateway.host = {host}")
    if settings.kafka.replication == 1:
        found.append("kafka.replication = 1 loses acknowledged requests with a disk")
    if settings.kafka.security == "PLAINTEXT" and not all(map(is_loopback, settings.kafka.bootstrap.split(","))):
        found.append(f"kafka.security = PLAINTEXT sends prompts unencrypted to {settings.kafka.bootstrap}")
    return found


def leaves(model: BaseModel, path: KeyPath = ()) -> Iterator[tuple[KeyPath, object]]:
    """Yield path and value of every setting; a list is one setting."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


def is_loopback(server: str) -> bool:
    host = server.strip().rsplit(":", 1)[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _replaced(section: dict[str, Any], key: str) -> dict[str, Any]:
    section[key] = {}
    return typing.cast("dict[str, Any]", section[key])


def _read_file(config: Path | None, layers: _Layers) -> list[str]:
    if config is None and not DEFAULT_FILE.exists():
        return []
    path = config or DEFAULT_FILE
    try:
        text = path.read_text()
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return [f"{path}: not TOML: {error}."]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        return [f"The settings file {path} cannot be read: {reason}."]
    lines = key_lines(text)
    for key, value in values.items():
        _put_from_file((key,), value, path, lines, layers)
    return []


def _put_from_file(path: KeyPath, value: object, file: Path, lines: Mapping[KeyPath, int], layers: _Layers) -> None:
    line = next((lines[path[:length]] for length in range(len(path), 0, -1) if path[:length] in lines), 1)
    if isinstance(value, dict) and value:
        layers.headers[path] = f"{file}:{line}"
        for key, inner in value.items():
            _put_from_file((*path, key), inner, file, lines, layers)
        return
    layers.put(path, value, f"{file}:{line}")
    if isinstance(value, list):
        for place, line in ((known, at) for known, at in lines.items() if known[: len(path)] == path):
            layers.origins[place] = f"{file}:{line}"


def _read_environment(environ: Mapping[str, str], layers: _Layers) -> list[str]:
    faults = []
    given = {name: text for name, text in environ.items() if text and _is_ours(name)}
    if plain := environ.get("ALLOW_INSECURE_DEV"):
        layers.put(("allow_insecure_dev",), plain, "ALLOW_INSECURE_DEV")
    for name, text in sorted(given.items()):
        path = tuple(name.removeprefix(PREFIX).lower().split("__"))
        if not _is_setting(path):
            faults.append(f"{name} is not a setting{_nearest(name, _variables(), PREFIX)}")
            continue
        try:
            values = _parsed(name, text)
        except UnreadableVariable:
            faults.append(f"{name}: expected JSON, as in TRIAGE_AUTH__MODES='[\"jwt\"]'.")
            continue
        for key, value in values.items():
            layers.put((key,), value, name)
    return faults


def _is_ours(name: str) -> bool:
    linked = "__" not in name and _SERVICE_LINK.search(name) is not None
    return name.startswith(PREFIX) and name not in _NOT_SETTINGS and not linked


def _parsed(name: str, text: str) -> dict[str, Any]:
    source = EnvSettingsSource(
        typing.cast("type[BaseSettings]", Settings), env_prefix=PREFIX, env_nested_delimiter="__"
    )
    source.env_vars = {name.lower(): text}
    return source()


def _is_setting(path: KeyPath) -> bool:
    """Return whether `path` names a setting or a section, from the top."""
    model: type[BaseModel] | None = Settings
    for key in path:
        if model is None or key not in model.model_fields:
            return False
        model = _section(model, key)
    return True


def _section(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    annotation = model.model_fields[name].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _variables(model: type[BaseModel] = Settings, prefix: str = PREFIX) -> list[str]:
    names = []
    for name in model.model_fields:
        section = _section(model, name)
        variable = f"{prefix}{name.upper()}"
        names += [variable] if section is None else _variables(section, f"{variable}__")
    return names


_SUBJECT = re.compile(r"^(Input|String|List|Tuple|Value error,|Value) ")


def fault(kind: str, path: KeyPath, told: str, where: str, model: type[BaseModel], above: KeyPath = ()) -> str:
    """Return one line for a fault that validating `model` found: where, which key, what is expected.

    `above` leads to the model within its file. The value is not repeated: it may be a secret.
    """
    name = ".".join((*above, *path))
    if kind == "extra_forbidden":
        return f"{where}: {name} is not a setting{_nearest(path[-1], _names_beside(path, model))}"
    told = "is missing" if kind == "missing" else _SUBJECT.sub("", told)
    return f"{where}: {name} {told}." if name else f"settings: {told}."


def _where(kind: str, path: KeyPath, layers: _Layers) -> str:
    where = layers.origin_of(path)
    return layers.headers.get(path, where) if kind == "extra_forbidden" else where


def _names_beside(path: KeyPath, root: type[BaseModel]) -> list[str]:
    """Return the names allowed where `path` ends."""
    model: object = root
    for key in path[:-1]:
        if isinstance(model, type) and issubclass(model, BaseModel) and key in model.model_fields:
            model = _inner(model.model_fields[key].annotation)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _inner(annotation: object) -> object:
    """Return what a list, or an optional value, is of."""
    while typing.get_origin(annotation) in (list, typing.Union, types.UnionType):
        annotation = typing.get_args(annotation)[0]
    return annotation


def _nearest(name: str, names: list[str], prefix: str = "") -> str:
    close = get_close_matches(name.removeprefix(prefix), [each.removeprefix(prefix) for each in names], n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else "."
