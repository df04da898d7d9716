"""Servers that jobs are submitted to: Livy, Glue and a language model, as small as their clients allow.

They stand for services that can't be had here. Each speaks its protocol over HTTP and counts what it was asked to do,
and each can kill the process that asks it: with SIGKILL, and before or instead of an answer.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import psutil

#: A status and what to answer as JSON.
Answer = tuple[HTTPStatus, Any]


class Fake:
    """A server on a free port of the loopback interface, while its block lasts.

    Attributes:
        url: where it is.
        client: the process that sent the latest request.
        kill_at: steps, in a subclass's words, at which the asking process is killed, each once and before the request
            has an effect.
    """

    def __init__(self, *kill_at: str) -> None:
        self.kill_at = list(kill_at)
        self.client = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Fake:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def kill_client(self) -> None:
        """Kill the process that sent the latest request."""
        os.kill(self.client, signal.SIGKILL)

    def step(self, method: str, path: str, target: str, body: Any) -> str:
        """Return what the request is, in the words of ``kill_at``."""
        raise NotImplementedError

    def answer(self, step: str, path: str, body: Any) -> Answer:
        """Carry the request out."""
        raise NotImplementedError

    def _handler(fake) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the handler
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = json.loads(sent) if sent else None
                with fake._lock:
                    fake.client = _process_at(self.client_address[1])
                    path = self.path.partition("?")[0]
                    step = fake.step(self.command, path, self.headers.get("X-Amz-Target", ""), body)
                    if step in fake.kill_at:
                        fake.kill_at.remove(step)
                        fake.kill_client()
                        return
                    status, answer = fake.answer(step, path, body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET  # noqa: N815 - the names that the standard library's server calls

            def log_message(self, *args: Any) -> None:
                pass

        return Handler


class Livy(Fake):
    """Livy's batches. Steps: ``submit`` and ``state``.

    Attributes:
        batches: how many were submitted. They are numbered from 1.
    """

    def __init__(self, *kill_at: str, states: tuple[str, ...] = ("success",)) -> None:
        super().__init__(*kill_at)
        self.batches = 0
        self._states = list(states)

    def step(self, method: str, path: str, target: str, body: Any) -> str:
        if method == "POST":
            return "submit"
        last = path.rsplit("/", 1)[1]
        return last if last in ("state", "log") else "batch"

    def answer(self, step: str, path: str, body: Any) -> Answer:
        if step == "submit":
            self.batches += 1
            return HTTPStatus.CREATED, {"id": self.batches}
        if step == "state":
            # The last one stays.
            return HTTPStatus.OK, {"state": self._states.pop(0) if len(self._states) > 1 else self._states[0]}
        if step == "log":
            return HTTPStatus.OK, {"total": 0, "log": []}
        return HTTPStatus.OK, {"id": int(path.rsplit("/", 1)[1]), "appId": "application_1"}


class Glue(Fake):
    """Glue's runs of one job, of which one may run at a time. Steps: the operations' names.

    A run ends when someone asks for its state, and not before: one whose id is lost goes on.

    Attributes:
        runs: the states of the runs that were started.
        refused: how many were not, since another was running.
    """

    def __init__(self, *kill_at: str) -> None:
        super().__init__(*kill_at)
        self.runs: list[str] = []
        self.refused = 0

    def step(self, method: str, path: str, target: str, body: Any) -> str:
        return target.rpartition(".")[2]

    def answer(self, step: str, path: str, body: Any) -> Answer:
        if step == "GetJob":
            return HTTPStatus.OK, {"Job": {"Name": body["JobName"]}}
        if step == "StartJobRun":
            if "RUNNING" in self.runs:
                self.refused += 1
                error = "ConcurrentRunsExceededException"
                return HTTPStatus.BAD_REQUEST, {"__type": error, "Message": "Concurrent runs exceeded"}
            self.runs.append("RUNNING")
            return HTTPStatus.OK, {"JobRunId": f"jr_{len(self.runs) - 1}"}
        assert step == "GetJobRun"
        run = int(body["RunId"].removeprefix("jr_"))
        self.runs[run] = "SUCCEEDED"
        return HTTPStatus.OK, {"JobRun": {"Id": body["RunId"], "JobRunState": "SUCCEEDED"}}


class Model(Fake):
    """A language model behind Bedrock's Converse, and the tools that it calls. Steps: ``turn 0`` and on, and ``tool``.

    It calls each of ``TOOLS`` once, one a turn, and then answers in words.

    Attributes:
        turns: the turns that it was asked for, counted by what the conversation holds already.
        tools: the tools that ran.
    """

    TOOLS = ("look_up", "order")

    def __init__(self, *kill_at: str) -> None:
        super().__init__(*kill_at)
        self.turns: list[int] = []
        self.tools: list[str] = []

    def step(self, method: str, path: str, target: str, body: Any) -> str:
        # A conversation is a question, and then an answer and the tool's result for each turn so far.
        return "tool" if path.startswith("/tools/") else f"turn {(len(body['messages']) - 1) // 2}"

    def answer(self, step: str, path: str, body: Any) -> Answer:
        if step == "tool":
            self.tools.append(path.rsplit("/", 1)[1])
            return HTTPStatus.OK, {"done": True}
        turn = int(step.removeprefix("turn "))
        self.turns.append(turn)
        if turn < len(self.TOOLS):
            content: Any = {"toolUse": {"toolUseId": f"call-{turn}", "name": self.TOOLS[turn], "input": {}}}
        else:
            content = {"text": "done"}
        return HTTPStatus.OK, {
            "output": {"message": {"role": "assistant", "content": [content]}},
            "stopReason": "tool_use" if "toolUse" in content else "end_turn",
            "usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2},
            "metrics": {"latencyMs": 1},
        }


def _process_at(port: int) -> int:
    """Return the process that has this port of the loopback interface, as the client of a connection."""
    found: int = next(c.pid for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port and c.pid)
    return found
