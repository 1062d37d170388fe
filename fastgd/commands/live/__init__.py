"""``python -m fastgd race --serve``: a page for this machine alone, whose steps fastgd takes.

`answers` checks what the page asks for and works it out; `page.html` and what else begins with
`page` are put together to one document, which needs nothing else.
"""

from __future__ import annotations

import json
import os
import threading
import webbrowser
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

import fastgd
from fastgd import plot
from fastgd.commands.descents import TOLERANCE, family
from fastgd.commands.live import answers
from fastgd.plot.style import DASHES

LOOPBACK = "127.0.0.1"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Server(ThreadingHTTPServer):
    """The page and its answers, on the loopback device.

    Parameters
    ----------
    port : int
        The port to listen on; 0 for any that is free.
    begin : str
        The query that a page without one in its address begins with.

    Raises
    ------
    OSError
        If the port is taken.
    """

    daemon_threads = True
    # Where two servers could share a port, as on Windows, the second is to be refused.
    allow_reuse_address = os.name == "posix"

    def __init__(self, port: int, begin: str) -> None:
        super().__init__((LOOPBACK, port), Handler)
        self.document = document(begin).encode()
        self.turn = threading.Lock()  # one race at a time
        at = self.server_address[1]
        self.hosts = {f"{name}:{at}" for name in (LOOPBACK, "localhost")}
        self.address = f"http://{LOOPBACK}:{at}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing to do: who asked is gone, or has been told."""


class Handler(BaseHTTPRequestHandler):
    """Answers one browser."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = f"fastgd/{fastgd.__version__}"
    sys_version = ""
    timeout = 60

    def do_GET(self) -> None:
        """Answer the page, a race, or contours."""
        path, _, query = self.path.partition("?")
        if problem := self.stranger(path):
            self.send(HTTPStatus.FORBIDDEN, {"error": problem})
            return
        try:
            if path == "/":
                self.send(HTTPStatus.OK, self.server.document, "text/html; charset=utf-8")
            elif path == "/race":
                with self.server.turn:
                    found = answers.answer(query)
                self.send(HTTPStatus.OK, found)
            elif path == "/contours":
                with self.server.turn:
                    bands = answers.contours(parse_qs(query).get("surface", [""])[0])
                self.send(HTTPStatus.OK, {"bands": bands, "box": answers.BOX})
            else:
                self.send(HTTPStatus.NOT_FOUND, {"error": f"there is no {path}"})
        except answers.RefusedError as refused:
            self.send(HTTPStatus.BAD_REQUEST, {"error": str(refused)})
        except ConnectionError:
            raise  # the reader has left
        except Exception as error:
            said = f"fastgd failed, please report it: {type(error).__name__}: {error}"
            self.send(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": said})

    def stranger(self, path: str) -> str | None:
        """Why this is no request of the page's; names that were made to lead here are foreign.

        A link to the page may stand anywhere; its answers are for the page alone.
        """
        host = self.headers.get("Host", "")
        if host not in self.server.hosts:
            return f"expected the host {self.server.address}, found {host!r}"
        origin = self.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://") not in self.server.hosts:
            return f"expected a request of this page's, found one of {origin!r}"
        site = self.headers.get("Sec-Fetch-Site", "none")
        if path != "/" and site not in ("same-origin", "none"):
            return f"expected a request of this page's, found one that is {site}"
        return None

    def send(
        self, status: HTTPStatus, body: bytes | Mapping[str, Any], kind: str = "application/json"
    ) -> None:
        """Send a document, or a dict as JSON."""
        if not isinstance(body, bytes):
            body = json.dumps(body, allow_nan=False).encode()
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


def document(begin: str) -> str:
    """The page, with all that it needs."""
    folder = files(__name__)
    data = json.dumps(catalogue(begin), ensure_ascii=False).replace("</", "<\\/")
    parts = {
        "@STYLE@": colours() + folder.joinpath("page.css").read_text("utf-8"),
        "@PICTURES@": folder.joinpath("page_pictures.js").read_text("utf-8"),
        "@SCRIPT@": folder.joinpath("page.js").read_text("utf-8"),
        "@VERSION@": f"fastgd {fastgd.__version__}, {fastgd.get_backend()} kernels",
        "@DATA@": data,
    }
    page = folder.joinpath("page.html").read_text("utf-8")
    for mark, part in parts.items():
        page = page.replace(mark, part)
    return page


def catalogue(begin: str) -> dict[str, Any]:
    """What there is to choose from."""
    return {
        "surfaces": [
            {
                "name": surface.name,
                "formula": surface.formula,
                "source": surface.source,
                "domain": surface.domain,
                "start": surface.start,
                "minima": [known.point for known in surface.minima],
                "saddles": [known.point for known in surface.saddles],
            }
            for surface in answers.DRAWABLE.values()
        ],
        "optimizers": [
            {"name": name, "family": family(make)} for name, make in answers.MAKERS.items()
        ],
        "begin": begin,
        "steps": answers.STEPS,
        "runs": answers.RUNS,
        "rates": [answers.LEAST_RATE, answers.MOST_RATE],
        "tolerance": TOLERANCE,
        "lines": len(plot.THEMES["light"].lines),
        "dashes": [{"-": "", "--": "7 3.5", "-.": "8 3 2 3", ":": "2 3"}[d] for d in DASHES],
    }


def colours() -> str:
    """The colours of `fastgd.plot` in both themes, as variables of a style sheet."""
    rules = []
    for name, theme in plot.THEMES.items():
        lines = " ".join(f"--line-{k}: {line};" for k, line in enumerate(theme.lines))
        rules.append(
            f":root {{ --paper: {theme.paper}; --ink: {theme.ink}; --faint: {theme.faint}; "
            f"{lines} color-scheme: {name}; }}"
        )
    return f"{rules[0]}\n@media (prefers-color-scheme: dark) {{ {rules[1]} }}\n"


def serve(server: Server, *, show: bool = False) -> int:
    """Serve until interrupted; returns the exit status."""
    try:
        print(f"The race is at {server.address}  (Ctrl-C ends it)", flush=True)
        if show:
            webbrowser.open(server.address)
        server.serve_forever()
    except KeyboardInterrupt:
        print("\nEnded; nothing was written.", flush=True)
    finally:
        server.server_close()
    return 0
