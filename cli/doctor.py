"""`triage doctor`: what is wrong here, and what to do about it."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.checks.finding import Finding, Level
from cli.errors import FAILED, NOT_REACHABLE, OK, USAGE, SettingsError

if TYPE_CHECKING:
    from cli.configuration import Loaded

_BROKERS_S = 2.0
_TAKES_CONFIG = re.compile(r"`(triage (?:topics|worker|gpu-publisher)[^`]*)`")
_NEED_BROKERS = ("topics", "clock", "workers", "samples")


@dataclass(frozen=True, slots=True)
class Report:
    """What all checks found, and whether a broker answered. `has_settings` False: nothing beyond this installation was looked at."""

    findings: list[Finding]
    is_reachable: bool
    has_settings: bool = True

    @property
    def exit_code(self) -> int:
        if not self.has_settings:
            return USAGE
        if not self.is_reachable:
            return NOT_REACHABLE
        return FAILED if any(each.level is Level.ERROR for each in self.findings) else OK


def doctor(
    config: Annotated[Path | None, typer.Option(help="Settings file; default triage.toml where there is one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: the findings.")] = False,
) -> None:
    """Look at settings, Kafka, topics, clock, backends, GPUs and workers, and say how to mend what is wrong.

    Takes at most eight seconds. Exit code 0 without an error, 1 with one, 2 when the settings cannot be read, 3 when Kafka does
    not answer.
    """
    report = examine(config)
    if as_json:
        typer.echo(json.dumps({"findings": [asdict(each) for each in report.findings]}, ensure_ascii=False))
    else:
        typer.echo(rendered(report.findings))
    raise typer.Exit(report.exit_code)


def examine(config: Path | None) -> Report:
    """Run every check. What is wrong with anything is a finding."""
    import io

    from cli.checks import installed
    from cli.checks.finding import error
    from cli.configuration import load
    from wire.logs import configure

    # What the clients log is what the findings say, many times over.
    configure("console", "error", stream=io.StringIO())
    try:
        loaded = load(config, refuse_unsafe=False)
    except SettingsError as wrong:
        found = [
            error("settings", line, "correct it; `triage config schema` has every name")
            for line in str(wrong).splitlines()
        ]
        return Report([*found, *installed.look()], is_reachable=False, has_settings=False)
    report = asyncio.run(_examine(loaded, config))
    return replace(report, findings=[with_config(each, config) for each in report.findings])


def rendered(findings: Sequence[Finding]) -> str:
    """Return the findings for a person: sign, check, what was found, and below it the remedy; at the end how many."""
    width = max((len(each.check) for each in findings), default=0)
    lines = []
    for each in findings:
        lines.append(f"{each.level.value:8} {each.check:{width}}  {each.found}")
        if each.remedy is not None:
            lines.append(f"{'':8} {'':{width}}  → {each.remedy}")
    counts = [(sum(each.level is level for each in findings), level.value) for level in (Level.ERROR, Level.WARNING)]
    return "\n".join([*lines, "", ", ".join(f"{count} {name}{'s' * (count != 1)}" for count, name in counts)])


def with_config(finding: Finding, config: Path | None) -> Finding:
    """Return `finding` with the same settings file in the commands of its remedy, so that they can be copied."""
    if config is None or finding.remedy is None:
        return finding
    flag = f" --config {shlex.quote(str(config))}"
    return replace(finding, remedy=_TAKES_CONFIG.sub(lambda command: f"`{command[1]}{flag}`", finding.remedy))


async def _examine(loaded: Loaded, config: Path | None) -> Report:
    """Run the checks side by side; each has its own time, so all of it has the longest one's."""
    import os

    from cli.checks import disk, installed, settings
    from cli.configuration import DEFAULT_FILE

    given = loaded.settings
    origin = str(config or DEFAULT_FILE) if config or DEFAULT_FILE.exists() else "built-in defaults"
    here = [*settings.permitted(given, origin), *settings.secrets(given), *installed.look()]
    (is_reachable, kafka), gpus, backends = await asyncio.gather(_kafka(loaded), _gpus(loaded), _backends(loaded))
    return Report([*here, *kafka, *gpus, *backends, *disk.look(disk.folder(given, os.environ))], is_reachable)


async def _kafka(loaded: Loaded) -> tuple[bool, list[Finding]]:
    """Return whether a broker answers, and what of all that needs one was found."""
    from cli.checks import brokers, clock, consumers, gpus, topics
    from cli.checks.bounds import bounded
    from cli.checks.finding import error, skipped
    from wire.connection import BrokersUnreachable, CredentialsUnusable, wait_for_brokers
    from wire.logs import get_logger

    kafka = loaded.settings.kafka
    try:
        await wait_for_brokers(kafka, log=get_logger(__name__), timeout_s=_BROKERS_S)
    except (BrokersUnreachable, CredentialsUnusable) as failure:
        remedy = (
            "start the brokers or set kafka.bootstrap; `triage kafka run` or `triage dev` gives one for development"
        )
        if isinstance(failure, CredentialsUnusable):
            found = error("kafka", str(failure), "correct the setting or the file")
        else:
            found = error("kafka", f"{failure.bootstrap} does not answer ({failure.reason})", remedy)
        return False, [found, *(skipped(check, "needs Kafka") for check in _NEED_BROKERS)]

    measured = asyncio.ensure_future(clock.measure(kafka))

    async def shaped() -> list[Finding]:
        wanted = await topics.as_on_this_machine(loaded)
        return [*await brokers.look(wanted), *await topics.look(wanted)]

    async def clocks() -> list[Finding]:
        try:
            return clock.findings(await asyncio.shield(measured))
        except LookupError as missing:
            return [skipped(clock.CHECK, f"{missing}: see topics")]

    async def samples() -> list[Finding]:
        await asyncio.wait([measured])
        is_known = not measured.cancelled() and measured.exception() is None
        skew = measured.result() if is_known else None
        return await gpus.look_at_samples(kafka, loaded.settings.gpus, skew.ms if skew else 0)

    access = "read the brokers' logs: are they overloaded, and may this user describe topics and groups?"
    looks = {"topics": shaped(), clock.CHECK: clocks(), consumers.CHECK: consumers.look(kafka), gpus.SAMPLES: samples()}
    found_by = await asyncio.gather(*(bounded(check, look, remedy=access) for check, look in looks.items()))
    measured.cancel()
    return True, [each for found in found_by for each in found]


async def _gpus(loaded: Loaded) -> list[Finding]:
    from cli.checks import gpus
    from cli.checks.bounds import bounded

    remedy = 'restart the driver, or set gpus.source = "none"'
    return await bounded(gpus.CHECK, gpus.look(loaded.settings.gpus), remedy=remedy)


async def _backends(loaded: Loaded) -> list[Finding]:
    from cli.checks import backends
    from cli.checks.bounds import bounded
    from cli.checks.servers import Server
    from streams.settings import BackendSettings

    settings, seen = loaded.settings, dict[str, Server]()

    async def look(row: BackendSettings) -> list[Finding]:
        seen[row.name], found = await backends.look(row)
        return found

    remedy = "look at the server's log: it takes connections and does not answer"
    rows = [bounded(f"backend {row.name}", look(row), remedy=remedy) for row in settings.backends]
    found_by = await asyncio.gather(*rows)
    unserved = backends.unserved(settings.models, settings.backends, seen)
    return [*backends.missing(settings), *(each for found in found_by for each in found), *unserved]
