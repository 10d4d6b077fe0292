"""The checker: reads the history of a fault run and says whether a promise was broken, by name.

How a fault test uses it: record, run, dump, judge.

    with Recorder(folder, "client-1") as client, Recorder.of_faults(folder) as nemesis:
        client.write("submitted", nonce="nonce-7f", tenant="default")
        ...                                                # the run
    await dump_topics(bootstrap, stack.names, folder)      # once all is quiet: what the logs hold
    await dump_commits(bootstrap, stack.names, folder)
    verdict = judge(folder, Limits(stuck_s=30))
    print(verdict.table())
    assert verdict.passed, verdict.table()

`python -m tests.faults.checker FOLDER [--json]` judges a folder by hand and shows the lines of the tasks it complains of.

The lines, each with `what` and, from a `Recorder`, `who`, `at_s`, `at_ms`:

| what | who | fields |
|---|---|---|
| submitted | client | `nonce` or `task` (a producer's own id), `tenant` |
| acknowledged | client | 202, or the producer's own acks=all: `task`; for a request without an id `topic`, `partition`, `offset` |
| unanswered | client | the submit failed or nobody knows; it counts as an operation that was not ok |
| read | client, webhook | `task`, `status` (`unknown` for a 404), `tenant`, `asked_ms`; with a result its `history.digest` as `digest` |
| unread | client | a read that got no answer (503, time-out) |
| replayed | operator | `task`, the old id; `new`, the id it runs under |
| backend | backend | at its start: `backend`, `limit` of calls at once |
| began, ended | backend | `call` (unique), `backend`, `task` or `nonce`; `ended` when the answer is out or the caller gone |
| fault | nemesis | `fault` (unique), `phase`: planned, begun, ended, evidence |
| note | anybody | what people may want to read; it is not judged |
| finished | test | nothing more is to happen: what is open or uncommitted from here on stays so |

A fault is active from `begun` to `ended`, and that time counts for no bound: a kill has ended when what was killed is ready again.
`evidence` is what shows that it happened (an exit code, a new pid, a refused connection), not that it was asked for.

One nonce per prompt: a right answer contains it. Tasks that share a prompt (cache, coalescing) share it; calls for a shared nonce
count against the backend's limit and are not laid to one of the tasks. `at_ms` of a read is when the answer was there.
A read that was asked (`asked_ms`) before an earlier one was answered is not compared with it. A line about a task whose id is used on
two partition numbers names its `partition`.
"""

from tests.faults.checker.anomalies import Anomaly
from tests.faults.checker.judging import judge, judge_lines
from tests.faults.checker.limits import Limits
from tests.faults.checker.verdict import Verdict

__all__ = ["Anomaly", "Limits", "Verdict", "judge", "judge_lines"]
