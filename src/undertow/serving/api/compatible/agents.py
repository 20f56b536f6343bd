"""MCP for agents, as streamable HTTP at /mcp: the tools of `agents_tools`, with the same keys as everything else.

Without sessions: any process may answer any request. The package is imported, and its server started, when the first
client comes: it takes a second that a service without agents need not wait for.
"""

import asyncio
import json
import logging
from base64 import b64encode
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from undertow.lookup import look_up
from undertow.records import schema_of
from undertow.serving.api.auth import Known, require_scope
from undertow.serving.api.compatible.agents_tools import TOOLS, Answer
from undertow.serving.api.compatible.waiting import problem_of
from undertow.serving.api.parts import Parts

if TYPE_CHECKING:
    from mcp.server.context import ServerRequestContext
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
    from mcp_types import CallToolRequestParams, CallToolResult, ListToolsResult

logger = logging.getLogger(__name__)

INSTRUCTIONS = "Draw pictures with Stable Diffusion's U-Nets. A job is done when its state is succeeded, never before."


class Agents:
    """The MCP server of one application, started at its first request."""

    def __init__(self, parts: Parts):
        self._parts = parts
        self._task: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[StreamableHTTPSessionManager] | None = None

    async def manager(self) -> "StreamableHTTPSessionManager":
        """What answers requests."""
        if self._ready is None:
            self._ready = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._run(self._ready))
        return await asyncio.shield(self._ready)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, ready: "asyncio.Future[StreamableHTTPSessionManager]") -> None:
        """The manager's tasks belong to one task, from its beginning to its end."""
        try:
            manager = await run_in_threadpool(self._make)
            async with manager.run():
                ready.set_result(manager)
                await asyncio.Event().wait()
        except Exception as err:
            self._ready = None  # the next request starts another
            if ready.done():
                logger.error("the MCP server ended", exc_info=err)
            else:
                ready.set_exception(err)

    def _make(self) -> "StreamableHTTPSessionManager":
        lowlevel = import_module("mcp.server.lowlevel")
        http = import_module("mcp.server.streamable_http_manager")
        security = import_module("mcp.server.transport_security")
        server = lowlevel.Server(
            "undertow",
            version=metadata.version("undertow"),
            instructions=INSTRUCTIONS,
            on_list_tools=self._list,
            on_call_tool=self._call,
        )
        return http.StreamableHTTPSessionManager(
            server,
            stateless=True,
            max_request_body_size=self._parts.settings.max_body_bytes,
            # Host and Origin are looked at by `auth`, like everywhere else.
            security_settings=security.TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )

    async def _list(self, context: "ServerRequestContext[Any]", given: Any) -> "ListToolsResult":
        del context, given
        types = import_module("mcp_types")
        return types.ListToolsResult(
            tools=[
                types.Tool(
                    name=name,
                    description=tool.about,
                    input_schema=schema_of(tool.arguments).json_schema(),
                    annotations=types.ToolAnnotations(read_only_hint=not tool.changes, destructive_hint=False),
                )
                for name, tool in TOOLS.items()
            ]
        )

    async def _call(self, context: "ServerRequestContext[Any]", given: "CallToolRequestParams") -> "CallToolResult":
        request = context.request
        assert isinstance(request, Request)
        try:
            tool = look_up(TOOLS, given.name[:100], "tool")
            key = request.state.key
            require_scope(key, tool.scope)
            return _result(await tool.run(self._parts, key, given.arguments or {}, context.session.report_progress))
        except Exception as err:
            problem = problem_of(err, request)
            about = {"error": problem.detail, "code": problem.code, "may_retry": problem.kind.fault == "transient"}
            return _result(Answer(about=about, failed=True))


def _result(answer: Answer) -> "CallToolResult":
    types = import_module("mcp_types")
    pictures = [
        types.ImageContent(data=b64encode(content).decode(), mime_type=one.media_type)
        for one, content in answer.pictures
    ]
    text = types.TextContent(text=json.dumps(answer.about))
    return types.CallToolResult(content=[text, *pictures], structured_content=answer.about, is_error=answer.failed)


class _Passed(Response):
    """An answer that another application gives."""

    def __init__(self, manager: "StreamableHTTPSessionManager"):
        super().__init__()
        self._manager = manager

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._manager.handle_request(scope, receive, send)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    agents = app.state.agents = Agents(app.state.parts)
    try:
        yield
    finally:
        await agents.close()


router = APIRouter(lifespan=_lifespan)


@router.api_route("/mcp", methods=["GET", "POST", "DELETE"], include_in_schema=False)
async def speak(request: Request, key: Known) -> Response:
    """The Model Context Protocol."""
    request.state.key = key
    return _Passed(await request.app.state.agents.manager())
