"""The web server of the page: Starlette and uvicorn, of the extra `serve`.

A request holds everything that its images depend on and the answer holds the images, so that nothing of a visitor stays
on the server. One thread makes all images, in the order of the requests; how many may wait is bounded, as is the size
of a request. The page takes nothing from other hosts, and a browser is told so (Content-Security-Policy).
"""

import asyncio
import functools
import ipaddress
import json
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from guided_diffusion_jax.errors import InputError, one_line, require
from guided_diffusion_jax.pipeline import Pipeline
from guided_diffusion_jax.serve import pictures
from guided_diffusion_jax.serve.controls import LARGEST_UPLOAD, Controls, controls
from guided_diffusion_jax.serve.texts import Called

STATIC = Path(__file__).parent / "static"
LARGEST_REQUEST = 4 * LARGEST_UPLOAD * 4 // 3 + 2**16
"""Bytes: four images in base64, and some text."""

MOST_WAITING = 16
"""Requests that wait or are worked at; further ones are asked to come again."""

READING_S = 30
"""Seconds in which a request must have been sent."""

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "[")

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """A request that is answered with a status and a message instead of images."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Turns:
    """One thread that works at one request after the other, and places for so many requests at most."""

    def __init__(self, most: int = MOST_WAITING):
        self.most, self.waiting = most, 0
        self._lock = asyncio.Lock()  # wakes those who wait in their order
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="images")

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place of a request, from before it is read until it is answered.

        Raises:
            Refused: all are taken.
        """
        if self.waiting >= self.most:
            raise Refused(503, f"{self.waiting} requests wait already; try again in a moment")
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def work(
        self, function: Callable[..., Any], *arguments: Any, gone: Callable[[], Any] | None = None
    ) -> AsyncIterator[Any]:
        """What a function emits and then what it returns, when its turn has come; nothing if nobody waits for it.

        The function's last argument is `emit`. Its work goes on where the reader leaves, and the turn with it.

        Args:
            function: what works.
            *arguments: its other arguments.
            gone: whether nobody waits any more.
        """
        loop = asyncio.get_running_loop()
        emitted: asyncio.Queue[Any] = asyncio.Queue()

        def emit(part: Any) -> None:
            loop.call_soon_threadsafe(emitted.put_nowait, part)

        async def turn() -> Any:
            async with self._lock:
                if gone is not None and await gone():
                    return None
                return await loop.run_in_executor(self._thread, functools.partial(function, *arguments, emit))

        working = asyncio.create_task(turn())
        working.add_done_callback(lambda _: emitted.put_nowait(None))
        while (part := await emitted.get()) is not None:
            yield part
        if (last := await working) is not None:
            yield last


def app(
    pipe: Pipeline, offered: Controls, called: Called, *, hosts: tuple[str, ...] = ("*",), warm: bool = True
) -> Any:
    """The page as an ASGI application.

    Args:
        pipe: the pipeline.
        offered: its controls.
        called: how commands are written.
        hosts: names by which a browser may call the page, so that no other site can pose as it; "*" is any.
        warm: make the first images while nobody waits yet.

    Raises:
        InputError: Starlette is not installed.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    turns = Turns()

    def act(action: str, body: bytes, emit: pictures.Emit) -> pictures.Answer:
        return pictures.answer(pipe, offered, action, parsed(body), called, emit)

    async def page(request: Request) -> FileResponse:
        name = request.path_params.get("name", "index.html")
        known = {file.name: file for file in STATIC.iterdir()}
        return FileResponse(known.get(name, STATIC / "index.html"), 200 if name in known else 404, headers=HEADERS)

    async def run(request: Request) -> JSONResponse:
        return JSONResponse(offered._asdict(), headers=HEADERS)

    async def parts(request: Request) -> AsyncIterator[pictures.Answer]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if kind != "application/json":
            raise Refused(415, "requests are application/json")
        with turns.place():
            body = await asyncio.wait_for(bounded(request.stream(), LARGEST_REQUEST), READING_S)
            async for part in turns.work(act, request.path_params["action"], body, gone=request.is_disconnected):
                yield part

    async def images(request: Request) -> Response:
        made = parts(request)
        try:
            first = await anext(made, None)
        except Exception as error:
            status, message = failure(error)
            return JSONResponse({"message": message}, status, headers=HEADERS)
        return StreamingResponse(lines(first, made), media_type="application/x-ndjson", headers=HEADERS)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        first = asyncio.create_task(drained(turns.work(act, "generate", b"{}"))) if warm else None
        yield
        if first is not None:
            first.cancel()

    return Starlette(
        routes=[
            Route("/", page),
            Route("/run", run),
            Route("/images/{action}", images, methods=["POST"]),
            Route("/{name}", page),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
        lifespan=lifespan,
    )


async def drained(parts: AsyncIterator[Any]) -> None:
    """Takes all parts and keeps none."""
    async for _ in parts:
        pass


async def lines(first: Any, parts: AsyncIterator[Any]) -> AsyncIterator[str]:
    """The parts as lines of JSON; of an error after the first one, its message."""
    try:
        if first is not None:
            yield json.dumps(first) + "\n"
        async for part in parts:
            yield json.dumps(part) + "\n"
    except Exception as error:
        yield json.dumps({"message": failure(error)[1]}) + "\n"


def failure(error: Exception) -> tuple[int, str]:
    """Status and message of an answer without images."""
    match error:
        case TimeoutError():
            return 408, f"the request took more than {READING_S} s to send"
        case InputError():
            return 400, one_line(error)
        case Refused():
            return error.status, one_line(error)
    traceback.print_exception(error)
    return 500, f"this failed on the server: {one_line(f'{type(error).__name__}: {error}', 200)}"


async def bounded(stream: AsyncIterator[bytes], most: int) -> bytes:
    """The body of a request.

    Raises:
        Refused: it is larger.
    """
    body = bytearray()
    async for chunk in stream:
        body += chunk
        if len(body) > most:
            raise Refused(413, f"the request has more than {most // 2**20} MB; send smaller images")
    return bytes(body)


def parsed(body: bytes) -> Any:
    """The value of a body of JSON.

    Raises:
        InputError: it is none.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # ValueError: also of bytes that are no UTF-8, and numbers of 4301 digits
        raise InputError("the request is no JSON") from None


def serve(
    pipe: Pipeline,
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    name: str = "",
    defaults: Mapping[str, Any] | None = None,
    program: str = "guided-diffusion-jax",
    own: Mapping[str, Any] | None = None,
) -> None:
    """Serves a page to play with a pipeline, until Ctrl-C.

    Args:
        pipe: the pipeline.
        host: address that is listened on; "0.0.0.0" is all of this machine's, for everybody who can reach it.
        port: its port; 0 is any free one.
        name: as which `load` finds the pipeline, for the texts that reproduce its images.
        defaults: values of the page's widgets at first, such as {"steps": 10}.
        program: how the program is called in these texts.
        own: values of keys of `config.sample` in the run's configuration, which the texts need not say.

    Raises:
        InputError: Starlette or uvicorn is not installed, the port is taken, or there is no page for such a model.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ModuleNotFoundError as error:
        raise InputError(
            f"the page needs the package {error.name}: pip install guided-diffusion-jax[serve], or from a checkout "
            'pip install -e ".[serve]"'
        ) from None
    offered = controls(pipe, name, defaults)
    listening = listen(host, port)
    host, port = listening.getsockname()[:2]
    hosts = LOOPBACK if ipaddress.ip_address(host).is_loopback else ("*",)
    shown = f"[{host}]" if ":" in host else host
    print(f"{offered.name}: http://{shown}:{port}/   (Ctrl-C ends it)", flush=True)
    if hosts == ("*",):
        print("anybody who can reach this machine can use the page: it has no passwords", file=sys.stderr, flush=True)
    served = app(pipe, offered, Called(offered.name, program, own or {}), hosts=hosts)
    settings = uvicorn.Config(
        served, log_level="warning", access_log=False, server_header=False, limit_concurrency=200,
        timeout_graceful_shutdown=2,
    )  # fmt: skip
    uvicorn.Server(settings).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: there is no such address here, or the port is taken.
    """
    require(0 <= port < 2**16, f"port={port} must lie in 0 .. 65535")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror}; give another --port or --host") from None
    return found
