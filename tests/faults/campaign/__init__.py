"""The fault campaign: a whole Triage under load while a seeded nemesis breaks it, and the checker's verdict on what everybody saw.

Three brokers that replicate, workers and gateways as child processes, scripted backends, producers (librdkafka, so that a client's
fault is not the product's) and HTTP clients. `python -m tests.faults.campaign --seconds 600 --seed 7` runs it by hand.

    schedule.py   from a seed to the list of planned faults: no I/O
    system.py     the processes; one that ends by itself is started again and counted
    backends.py   model servers with answers nobody else can know, and their faults
    load.py       producers and HTTP clients, at a rate that follows what the machine bears
    outcomes.py   which acknowledged tasks have an outcome, read from the results log
    nemesis.py    carries the schedule out, with evidence of each fault
    report.py     the table
"""

from tests.faults.campaign.running import Form, run
from tests.faults.campaign.schedule import LONG, SHORT

__all__ = ["LONG", "SHORT", "Form", "run"]
