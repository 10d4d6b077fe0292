"""`python -m tests.faults.campaign --seconds 600 --seed 7 [--keep DIR]`: a campaign by hand."""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import orjson

from tests.faults.campaign import Form, run
from tests.faults.campaign.report import Report


def _say(text: str) -> None:
    print(text, flush=True)


async def _run(form: Form, seed: int, folder: Path) -> Report:
    work = asyncio.current_task()
    assert work is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
    return await run(form, seed, folder, _say)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description="Break Triage under load.")
    parser.add_argument("--seconds", type=float, default=600, help="of load")
    parser.add_argument("--seed", type=int, default=None, help="of the schedule; default: a new one")
    parser.add_argument("--rate", type=float, default=Form.per_s, help="tasks a second at most")
    parser.add_argument("--keep", type=Path, default=None, help="where history and logs stay")
    chosen = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if chosen.seed is None else chosen.seed
    folder = chosen.keep or Path(tempfile.mkdtemp(prefix="triage-campaign-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"{folder} is not empty")
    # aiohttp's server has words for each call that it drops when a backend goes down.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL + 1)
    try:
        report = asyncio.run(_run(Form(chosen.seconds, per_s=chosen.rate), seed, folder))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _say(f"interrupted; history and logs: {folder}")
        return 130
    _say("\n" + report.table())
    (folder / "report.json").write_bytes(orjson.dumps(report.as_json(), option=orjson.OPT_INDENT_2))
    if report.passed and chosen.keep is None:
        shutil.rmtree(folder)
    else:
        _say(f"\nhistory and logs: {folder}")
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
