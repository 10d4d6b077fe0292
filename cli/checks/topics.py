"""The topics against the catalogue."""

from __future__ import annotations

from collections.abc import Sequence

from cli.checks.bounds import CHECK_S
from cli.checks.finding import Finding, error, listed, ok
from cli.configuration import Loaded, is_loopback
from schemas.topics import catalogue
from streams.catalogue import Action, Difference
from streams.settings import KafkaSettings
from wire.topics import shape, verify

CHECK = "topics"
APPLY = "`triage topics apply`"
_MOST_ROWS = 5


async def look(kafka: KafkaSettings) -> list[Finding]:
    """Look at the topics. Raises: BrokersUnreachable, TopicsRefused."""
    found = await verify(kafka, timeout_s=CHECK_S)
    return findings(found, len(catalogue(kafka.names, partitions=kafka.partitions)))


def findings(differences: Sequence[Difference], count: int) -> list[Finding]:
    """Return one finding for all topics that are missing, and one for each other difference, at most five."""
    if not differences:
        return [ok(CHECK, f"{count} topics match the catalogue")]
    missing = [each.topic for each in differences if each.action is Action.CREATE]
    others = [each for each in differences if each.action is not Action.CREATE]
    found = [error(CHECK, f"missing: {listed(missing)}", APPLY)] if missing else []
    found += [_of(each) for each in others[:_MOST_ROWS]]
    if len(others) > _MOST_ROWS:
        found.append(error(CHECK, f"{len(others) - _MOST_ROWS} more differences", "`triage topics verify` lists them"))
    return found


def _of(each: Difference) -> Finding:
    remedy = APPLY if each.action is Action.ALTER else each.remedy
    return error(CHECK, f"{each.topic}: {each.what} is {each.found}, wanted {each.wanted}", remedy)


async def as_on_this_machine(loaded: Loaded, timeout_s: float = CHECK_S) -> KafkaSettings:
    """Take partitions and replication that nobody set from a cluster on this machine, which is `triage dev`'s: it has 6 and 1.

    Elsewhere the defaults are what a cluster must have. Raises: BrokersUnreachable, TopicsRefused.
    """
    kafka = loaded.settings.kafka
    unset = [name for name in ("partitions", "replication") if loaded.origins.get(f"kafka.{name}") == "default"]
    if not unset or not all(map(is_loopback, kafka.bootstrap.split(","))):
        return kafka
    found = await shape(kafka, timeout_s=timeout_s)
    if found is None:
        return kafka
    values = dict(zip(("partitions", "replication"), found, strict=True))
    return kafka.model_copy(update={name: values[name] for name in unset})
