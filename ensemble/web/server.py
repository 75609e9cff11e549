"""Serve the page and the JSON interface of a library with uvicorn."""

import logging
import re
import secrets
import socket
import sys
import webbrowser
from typing import TYPE_CHECKING

import uvicorn

from data.errors import UserError
from data.store.scratch import create_scratch_folder
from ensemble.web.access import AccessRules, is_loopback
from ensemble.web.app import build_app

if TYPE_CHECKING:
    from ensemble.serving.library import Library

logger = logging.getLogger("chorale.web")

TOKEN_PATTERN = re.compile(r"[A-Za-z0-9_-]{16,}")

MAX_PORT = 2**16 - 1


class SearchServer(uvicorn.Server):
    """Server that ends at once: players keep their connections open as long as their pages."""

    def __init__(self, config: uvicorn.Config, address: str, open_page: bool) -> None:
        super().__init__(config)
        self.address, self.open_page = address, open_page

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections, then print the address."""
        await super().startup(sockets)
        # The console of other commands would hide the token in the address.
        sys.stdout.write(f"{self.address}\n")
        sys.stdout.flush()
        logger.info("The page is at this address until Ctrl-C ends the server.")
        if self.open_page:
            webbrowser.open(self.address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close all connections, and cancel what they wait for."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for task in list(self.server_state.tasks):
            task.cancel()
        await super().shutdown(sockets)


def serve(
    library: "Library", host: str = "127.0.0.1", port: int = 8000, token: str | None = None, open_page: bool = False
) -> None:
    """Serve the page and the JSON interface of a library until Ctrl-C, which is raised as KeyboardInterrupt.

    Args:
        library: the models and the index.
        host: address to listen on. One that other machines can reach needs a token: without one, it is made and
            printed as a part of the page's address.
        port: port to listen on; 0 chooses a free one.
        token: secret that requests need.
        open_page: whether the page is opened in a browser.

    Raises:
        UserError: if the address can't be listened on, the token is too short, or the index is damaged.
    """
    if token is not None and not TOKEN_PATTERN.fullmatch(token):
        raise UserError("--token: a token has at least 16 letters, digits, '-' or '_'; without --token, one is made")
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(32)
    library.prepare()
    with create_scratch_folder() as scratch, bind_socket(host, port) as listener:
        app = build_app(library, AccessRules(token, host), scratch)
        config = uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, server_header=False, proxy_headers=False,
            ws="none", timeout_graceful_shutdown=1,
        )  # fmt: skip
        address = build_address(host, listener.getsockname()[1], token)
        SearchServer(config, address, open_page).run([listener])


def bind_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address. Raises UserError if that is impossible."""
    if port not in range(MAX_PORT + 1):
        raise UserError(f"--port {port}: a port is at most {MAX_PORT}; 0 chooses a free one")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{host}, port {port} can't be listened on: {reason}; name another --port (0 chooses a free one) or --host"
        ) from error


def build_address(host: str, port: int, token: str | None) -> str:
    """Return the address of the page, with the token if there is one."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    query = f"?token={token}" if token else ""
    return f"http://{name}:{port}/{query}"
