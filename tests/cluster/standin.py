"""A dashboard of a cluster that answers as it is told to, and can go away."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from aiohttp import web

from raysft.cluster.jobs import RUN_KEY


class Dashboard:
    """What raysft asks of Ray's Jobs API, on a port of this machine, for one run called `run`."""

    def __init__(self, run: str = "r") -> None:
        self.status: int | None = None
        """Of every answer; None: as it should be."""
        self.log, self.job_status, self.asked = "one\ntwo\n", "RUNNING", threading.Event()
        self.text = "no"
        self.agent_after = 0
        """How many jobs are refused before the agent that starts them is there."""
        self.run = run
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.port = asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)
        self.url = f"http://127.0.0.1:{self.port}"

    async def _open(self) -> int:
        app = web.Application(middlewares=[self._as_told])
        app.add_routes(
            [
                web.get(
                    "/api/version", lambda request: _json({"ray_version": "2.60.0", "version": "4"})
                ),
                web.get("/api/jobs/", lambda request: _json([self._job()])),
                web.post("/api/jobs/", self._submit),
                web.get("/api/packages/{kind}/{name}", lambda request: _json({})),  # has them all
                web.get("/api/jobs/{id}", lambda request: _json(self._job())),
                web.post("/api/jobs/{id}/stop", lambda request: _json({"stopped": True})),
                web.get("/api/jobs/{id}/logs", lambda request: _json({"logs": self.log})),
                web.get("/api/jobs/{id}/logs/tail", self._tail),
            ]
        )
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        return self.runner.addresses[0][1]

    def close(self) -> None:
        """Go away."""
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self._loop).result(10)

    @web.middleware
    async def _as_told(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.status is not None:
            return web.Response(status=self.status, text=self.text)
        return await handler(request)

    def _job(self) -> dict[str, Any]:
        return {
            "type": "SUBMISSION",
            "submission_id": self.run,
            "status": self.job_status,
            "entrypoint": "python",
            "metadata": {RUN_KEY: self.run},
            "start_time": 1_000_000,
            "runtime_env": {},
        }

    async def _submit(self, request: web.Request) -> web.StreamResponse:
        if self.agent_after:
            self.agent_after -= 1
            text = "No available agent to submit job, please try again later."
            return web.Response(status=500, text=text)
        return await _json({"job_id": None, "submission_id": self.run})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str(self.log)
        self.asked.set()
        await socket.receive()  # nothing else comes until the other end, or this one, goes away
        return socket


async def _json(document: Any) -> web.Response:
    return web.json_response(document)
