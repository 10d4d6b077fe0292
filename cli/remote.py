"""Single tasks through a gateway: what the verbs do when one is named."""

from __future__ import annotations

import re
import ssl
from typing import Any

import httpx
import orjson

from cli.errors import CommandError, Failed, NotReachable, SettingsError, of_status

_CONNECT_S = 2.0
_READ_S = 2.5
# A gateway itself gives up on Kafka after 5 s, and then says whether it may have been written.
_WRITE_S = 8.0
# Asked again and again, so that a gateway that dies without a word is noticed.
_WAIT_S = 20
_JSON = {"content-type": "application/json"}
_UNFINISHED, _NOT_FOUND, _ENDED, _GONE = 202, 404, 409, 410


class Gateway:
    """The routes of one gateway. `transport` is for tests.

    Raises, everywhere: NotReachable, NoSuchTask, Refused, Failed, each with a sentence.
    """

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        if not _is_url(self.url):
            raise SettingsError(f"--gateway {url}: expected a URL such as http://127.0.0.1:8400.")
        self._transport = transport
        # The system's certificates; reading them takes long: only for TLS.
        self._verify = ssl.create_default_context() if self.url.startswith("https") else False

    def submit(self, body: bytes) -> dict[str, Any]:
        """Hand a request in; returns the gateway's answer when the request is durable."""
        return self._object(self._call("POST", "/v1/async/submit", read_s=_WRITE_S, body=body))

    def status(self, task_id: str) -> dict[str, Any]:
        return self._object(self._call("GET", f"/v1/async/status/{task_id}", task_id=task_id))

    def explain(self, task_id: str) -> dict[str, Any]:
        return self._object(self._call("GET", f"/v1/async/explain/{task_id}", task_id=task_id))

    def result(self, task_id: str) -> tuple[bool, bytes]:
        """Return whether the task has ended, and its result, else its status."""
        return self._result(task_id, 0)

    def answer(self, task_id: str) -> bytes:
        """Return the task's result once it has one."""
        while True:
            has_ended, body = self._result(task_id, _WAIT_S)
            if has_ended:
                return body

    def cancel(self, task_id: str) -> dict[str, Any]:
        """End a task as cancelled. Returns `task_id`, `status` (the outcome it has) and `was`, None when it had ended otherwise."""
        response = self._send("DELETE", f"/v1/async/cancel/{task_id}", _WRITE_S)
        if response.status_code == _ENDED:
            return {"task_id": task_id, "status": str(self._object(response).get("outcome")), "was": None}
        if response.status_code == _UNFINISHED:
            raise Failed(f"The cancellation of {task_id} is written, but cannot be read yet: `triage status` tells.")
        return self._object(self.checked(response, task_id))

    def health(self) -> dict[str, Any]:
        """Return the gateway's picture of itself and of what it stands on, also when that is not well."""
        response = self._send("GET", "/v1/async/health", _READ_S)
        body = _object(response)
        if body.get("status") not in ("healthy", "degraded", "unhealthy"):
            self.checked(response, None)
            raise self._foreign()
        return body

    # Inside

    def _result(self, task_id: str, wait_s: int) -> tuple[bool, bytes]:
        path = f"/v1/async/result/{task_id}?wait={wait_s}"
        response = self._call("GET", path, task_id=task_id, read_s=wait_s + _READ_S)
        self._object(response)
        return response.status_code != _UNFINISHED, response.content

    def _call(
        self, method: str, path: str, *, task_id: str | None = None, read_s: float = _READ_S, body: bytes | None = None
    ) -> httpx.Response:
        return self.checked(self._send(method, path, read_s, body), task_id)

    def _send(self, method: str, path: str, read_s: float, body: bytes | None = None) -> httpx.Response:
        timeout, headers = httpx.Timeout(_CONNECT_S, read=read_s), _JSON if body else None
        try:
            # A verb asks once or seldom: no connection is kept.
            with httpx.Client(verify=self._verify, transport=self._transport, trust_env=False) as http:
                return http.request(method, f"{self.url}{path}", content=body, headers=headers, timeout=timeout)
        except httpx.ConnectTimeout:
            raise self.away("no connection") from None
        except httpx.TimeoutException:
            raise self.away(f"no answer within {read_s:g} s") from None
        except (httpx.RequestError, OSError) as error:
            reason = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
            raise self.away(reason) from None

    def checked(self, response: httpx.Response, task_id: str | None) -> httpx.Response:
        """Return a response that is a success. Raises: as the class says, for any other."""
        if not response.is_success:
            raise self._told(response, task_id)
        return response

    def _told(self, response: httpx.Response, task_id: str | None) -> CommandError:
        """Return what an answer that is no success comes to."""
        problem, status = _object(response), response.status_code
        detail = problem.get("detail") or problem.get("title") if problem else None
        if detail is None:  # a proxy's answer, or somebody else's
            told = f"What answers at {self.url} says HTTP {status} and no more: check that --gateway is right."
            return Failed(told) if status == _NOT_FOUND else of_status(status, told)
        if str(problem.get("type")).endswith("no-such-route"):
            return Failed(f"The gateway at {self.url} does not have this route: is it of another version?")
        if status == _NOT_FOUND:
            return of_status(status, f"No task {task_id} is known to the gateway at {self.url}.")
        if status == _GONE:
            return of_status(status, f"The task {task_id} is past its retention.")
        return of_status(status, f"The gateway at {self.url} says {status}: {str(detail).rstrip('.')}.")

    def _object(self, response: httpx.Response) -> dict[str, Any]:
        found = _object(response)
        if not found:
            raise self._foreign()
        return found

    def away(self, reason: str) -> NotReachable:
        """Return what it comes to that the gateway does not answer."""
        return NotReachable(
            f"The gateway does not answer at {self.url} ({reason}): check that it runs and that --gateway is right."
        )

    def _foreign(self) -> Failed:
        return Failed(f"What answers at {self.url} is not a gateway of Triage's: check --gateway.")


def _is_url(text: str) -> bool:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)


def _object(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON object in an answer, an empty one where there is none."""
    try:
        found = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
