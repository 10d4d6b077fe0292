"""A real llama.cpp server in the foreground: `python -m cli.embedded.llama --model FILE --port P`.

In a process of its own: it can crash, be killed, or take all of its memory without harm to the one that started it.
It ends at once on SIGTERM and SIGINT, in the middle of an answer too, because it leaves both to the system.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli.embedded.models import INSTRUCT_FILE

# Errors only. From 2 on llama.cpp logs the texts of refused requests, which quote them (seen with a JSON schema), and
# from 5 on prompts and answers.
_VERBOSITY = 1
# SmolLM2's own template adds a system prompt when there is none, under which it answers a plain question in broken
# French (measured, at temperature 0); without it the capital of France is Paris.
_TEMPLATES = {INSTRUCT_FILE: "chatml"}


def llama_command(
    model: Path, *, port: int, slots: int = 4, context: int = 2048, alias: str | Sequence[str] = ()
) -> list[str]:
    """Return the command that serves `model` on 127.0.0.1.

    `context` is the tokens of one request, prompt and answer; each of the `slots` has as many.
    """
    aliases = [alias] if isinstance(alias, str) else list(alias)
    template = _TEMPLATES.get(model.name)
    return [
        *(sys.executable, "-P", "-m", "cli.embedded.llama", "--model", str(model), "--port", str(port)),
        *("--slots", str(slots), "--context", str(context)),
        *(("--alias", *aliases) if aliases else ()),
        *(("--template", template) if template else ()),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until a signal comes; print `{"event": "ready", "url": ...}` on stdout once, when the model is loaded."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    stdout = _keep_stdout()
    server = _serve(options)
    stdout.write(json.dumps({"event": "ready", "url": server.listening_address}) + "\n")
    stdout.flush()
    while True:
        signal.pause()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cli.embedded.llama")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--slots", type=int, default=4, help="requests at once")
    parser.add_argument("--context", type=int, default=2048, help="tokens of one request")
    parser.add_argument("--alias", nargs="+", default=[], help="names that the model answers to")
    parser.add_argument("--template", help="one of llama.cpp's own chat templates instead of the file's")
    return parser


def _keep_stdout() -> Any:
    """Return stdout for us alone: what the library prints there goes to stderr."""
    ours = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return ours


def _serve(options: argparse.Namespace) -> Any:
    """Return the running server; its constructor returns when the model is loaded and /health answers 200."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(options.model)
    parameters.model_alias = set(options.alias)
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = options.port
    parameters.n_parallel = options.slots
    parameters.n_ctx = options.slots * options.context
    parameters.n_threads_http = 16 + 4 * options.slots  # a client that keeps idle connections takes one thread for each
    parameters.n_gpu_layers = 0
    parameters.sampling.temp = 0.0  # where a request names none: so small a model's likeliest answer is its best
    # One core is left to whoever else wants it: threads that share a core wait for each other (two threads beside one busy process
    # gave a third of the tokens that they gave alone, one thread all but the same).
    parameters.cpuparams.n_threads = max((os.cpu_count() or 1) - 1, 1)
    if options.template:
        parameters.chat_template = options.template
    parameters.endpoint_metrics = True
    parameters.ui = False
    parameters.verbosity = _VERBOSITY
    return xllamacpp.Server(parameters)


if __name__ == "__main__":
    main()
