"""`python -m cli` is `triage`."""

from cli.main import run

run()
