"""The file of finished tasks: what survives a restart, and which files are begun anew."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway import finished as module
from gateway import places
from gateway.finished import Finished, FinishedFile
from schemas.result import Outcome
from schemas.topics import Lane


def row(task_id: str = "t", partition: int = 0, outcome: Outcome = Outcome.COMPLETED, offset: int = 0) -> Finished:
    return Finished(task_id, partition, "ward7", outcome, Lane.HIGH, offset, 1000, "b")


def filled(path: Path | None, origin: str = "o") -> FinishedFile:
    found = FinishedFile(path, origin=origin)
    found.add(row())
    found.add(row("u", 1, Outcome.FAILED, 7))
    found.consumed(0, 1)
    found.consumed(1, 8)
    found.flush()
    return found


def test_a_row_is_found_before_and_after_it_is_written() -> None:
    found = FinishedFile()
    found.add(row())
    assert ([row()], {0}) == (found.find("t"), found.partitions("t"))
    found.consumed(0, 1)
    found.flush()
    found.add(row(partition=2, offset=1))
    assert ([row(partition=2, offset=1), row()], {0, 2}) == (found.find("t"), found.partitions("t"))
    assert ([], set()) == (found.find("u"), found.partitions("u"))
    found.close()


@pytest.mark.parametrize("flush_between", [False, True])
def test_the_first_outcome_stays_and_is_counted_once(flush_between: bool) -> None:
    found = FinishedFile()
    for offset, outcome in enumerate([Outcome.CANCELLED, Outcome.COMPLETED, Outcome.CANCELLED]):
        found.add(row(outcome=outcome, offset=offset))
        found.consumed(0, offset + 1)
        if flush_between:
            found.flush()
    assert [row(outcome=Outcome.CANCELLED)] == found.find("t")
    assert {(Lane.HIGH, Outcome.CANCELLED): 1} == {key: count for key, count in found.counts().items() if count}
    found.close()


def test_a_restart_goes_on_where_the_file_ends(tmp_path: Path) -> None:
    filled(tmp_path / "view.sqlite").close()
    again = FinishedFile(tmp_path / "view.sqlite", origin="o")
    assert {0: 1, 1: 8} == again.offsets()
    assert [row("u", 1, Outcome.FAILED, 7)] == again.find("u")
    assert 2 == sum(again.counts().values())
    again.close()


def test_what_a_killed_process_wrote_is_there(tmp_path: Path) -> None:
    path = tmp_path / "view.sqlite"
    killed = filled(path)
    killed.add(row("unwritten"))
    killed._database.close()
    again = FinishedFile(path, origin="o")
    assert ({0: 1, 1: 8}, []) == (again.offsets(), again.find("unwritten"))
    again.close()


def of_another_version(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()


def of_a_machine_that_lost_power(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE origin SET value = 'another boot' WHERE name = 'boot'")
    database.close()


def damaged(path: Path) -> None:
    path.write_bytes(b"no database at all" * 300)


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE theirs (x)")
        database.execute(f"PRAGMA user_version = {module.VERSION}")
    database.close()


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [of_another_version, of_a_machine_that_lost_power, damaged, foreign, emptied])
def test_a_file_that_cannot_be_trusted_is_begun_anew(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "view.sqlite"
    filled(path).close()
    spoil(path)
    again = FinishedFile(path, origin="o")
    assert ({}, []) == (again.offsets(), again.find("t"))
    again.add(row())
    again.consumed(0, 1)
    again.close()


def test_a_file_of_another_log_is_begun_anew(tmp_path: Path) -> None:
    filled(tmp_path / "view.sqlite").close()
    again = FinishedFile(tmp_path / "view.sqlite", origin="another cluster")
    assert {} == again.offsets()
    again.close()


@pytest.mark.parametrize("looked_at", [1, 3, 7, 1_000])
def test_old_rows_are_dropped_a_few_at_a_time_and_no_longer_counted(looked_at: int) -> None:
    found = FinishedFile()
    for number in range(50):
        found.add(row(f"t{number // 2}", number % 2, offset=number)._replace(at_ms=number))
    found.consumed(0, 50)
    found.flush()
    dropped = [found.forget_older(30, looked_at=looked_at) for _ in range(50 // looked_at + 1)]
    assert (30, True) == (sum(dropped), max(dropped) <= looked_at)
    assert 20 == sum(found.counts().values())
    assert ([], [0, 1]) == (found.find("t14"), [each.partition for each in found.find("t15")])
    assert [0] * 60 == [found.forget_older(30, looked_at=looked_at) for _ in range(60)]
    found.add(row("a"))
    found.consumed(0, 51)
    found.flush()
    assert 1 == sum(found.forget_older(1_001, looked_at=looked_at) for _ in range(100)) - 20
    found.close()


def test_clear_forgets(tmp_path: Path) -> None:
    found = filled(tmp_path / "view.sqlite")
    found.clear()
    assert ({}, [], 0) == (found.offsets(), found.find("t"), sum(found.counts().values()))
    found.close()


def test_gateways_of_one_machine_get_files_of_their_own(tmp_path: Path) -> None:
    folder = places.default_folder(tmp_path, "cluster/triage/12")
    taken = [places.claim(folder) for _ in range(9)]
    paths = [place.path for place in taken]
    assert (8, None) == (len({path for path in paths if path}), paths[8])
    taken[3].release()
    again = places.claim(folder)
    assert paths[3] == again.path
    for place in [*taken, again]:
        place.release()


def test_another_cluster_has_another_folder(tmp_path: Path) -> None:
    assert places.default_folder(tmp_path, "a/triage/12") != places.default_folder(tmp_path, "b/triage/12")
