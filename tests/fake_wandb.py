"""A server on this machine that takes what is saved as if it were W&B's."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeWandb(ThreadingHTTPServer):
    """As much of W&B's server as saving a workspace and a report takes; keeps what was saved, or refuses it.

    Attributes:
        saved: the variables of each view that was saved: the workspace, the report.
        refuses: "" or the type of view that is not taken.
    """

    refuses = ""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.saved: list[dict] = []


class Answers(BaseHTTPRequestHandler):
    server: FakeWandb

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        viewer = {"id": "VXNlcjox", "entity": "a", "username": "a", "email": "a", "flags": "{}", "teams": {"edges": []}}
        answer: dict = {"data": {"viewer": viewer, "serverInfo": {"features": []}}}
        if b"upsertView" in body:
            view = json.loads(body)["variables"]
            self.server.saved.append(view)
            project = {"id": "p", "name": view["projectName"], "entityName": view["entityName"]}
            saved = {"id": "Vmlldzox", "name": "nw-abc-v", "project": project, "spec": view["spec"],
                     "displayName": view["displayName"], "description": view.get("description") or "", "type": "x",
                     "updatedAt": None}  # fmt: skip
            answer["data"]["upsertView"] = {"view": saved, "inserted": True}
            if self.server.refuses == view["type"]:
                answer = {"data": None, "errors": [{"message": "permission denied"}]}
        elif b"internalId" in body:
            answer["data"]["project"] = {"internalId": "1"}
        elif b"projects(" in body or b"models(" in body:
            node = {
                "id": "p",
                "name": "p",
                "entityName": "a",
                "createdAt": "2026-01-01T00:00:00",
                "isBenchmark": False,
                "user": None,
            }
            page = {"edges": [{"node": node, "cursor": "x"}], "pageInfo": {"endCursor": None, "hasNextPage": False}}
            answer["data"] = {"models": page, "projects": page}
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *words: object) -> None:
        pass


@contextlib.contextmanager
def served() -> Iterator[FakeWandb]:
    """The server, listening on a port of its choice."""
    with FakeWandb(("127.0.0.1", 0), Answers) as fake:
        threading.Thread(target=fake.serve_forever, daemon=True).start()
        yield fake
        fake.shutdown()
