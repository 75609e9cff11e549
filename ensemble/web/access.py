"""Rules of access to the server: the host that a request names, the site that it comes from, and the token.

A page of another site could reach a server on the loopback interface through the user's browser: directly, or through
a name of its own that resolves to 127.0.0.1 (DNS rebinding). So the Host header must be a name of this machine, and
requests that a browser attributes to another site are refused.
"""

import asyncio
import hashlib
import html
import ipaddress
import secrets
import socket
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ensemble.web.problems import respond_with_problem

PAGES = ("/", "/docs")
"""Paths that a link with a token may lead to."""

FOREIGN_SITES = ("cross-site", "same-site")
"""Values of the header Sec-Fetch-Site of requests from other sites, and from other ports of this machine."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""Headers of every response, unless the response sets them itself."""


@dataclass(frozen=True)
class AccessRules:
    """Rules of access: the token that requests need, if any, and the address that the server listens on."""

    token: str | None = None
    host: str = "127.0.0.1"

    @property
    def cookie_name(self) -> str:
        """Name of the cookie with the token. It differs between servers: browsers share cookies between ports."""
        return f"chorale_{hashlib.sha256((self.token or '').encode()).hexdigest()[:12]}"

    def accepts_host(self, header: str) -> bool:
        """Return whether a Host header names this machine: localhost, an IP address or, unless the server listens on
        the loopback interface, the machine's name or the name that the server was started with.
        """
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            return False
        if is_loopback(name):
            return True
        if is_loopback(self.host):
            return False
        return is_address(name) or name in {self.host.lower(), socket.gethostname().lower()}

    def accepts_token(self, token: str) -> bool:
        """Return whether a token is the right one, in a time that doesn't depend on it."""
        return self.token is None or secrets.compare_digest(token.encode(), self.token.encode())


def is_address(host: str) -> bool:
    """Return whether a host is given as an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether a host is the loopback interface of this machine."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


class AccessMiddleware:
    """ASGI application that answers a request if the rules of access allow it, and sets the headers of responses."""

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope)
        response = refuse_foreign_request(request, self.rules) or check_token(request, self.rules)
        try:
            await (response or self.app)(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            return  # the server has been stopped: the connection is closed


def refuse_foreign_request(request: Request, rules: AccessRules) -> Response | None:
    """Return the response to a request that names another host or comes from another site, otherwise None."""
    host = request.headers.get("host", "")
    if not rules.accepts_host(host):
        return respond_with_problem(
            421, "The address names another host: open the address that the server printed when it was started."
        )
    origin = request.headers.get("origin")
    is_other_origin = origin is not None and get_netloc(origin) != host.lower()
    is_navigation = (
        request.method == "GET" and request.headers.get("sec-fetch-mode") == "navigate" and request.url.path in PAGES
    )
    is_foreign = request.headers.get("sec-fetch-site") in FOREIGN_SITES and not is_navigation
    if is_other_origin or is_foreign:
        return respond_with_problem(
            403, "Requests from pages of other sites are refused: use the page of this server, or a program."
        )
    return None


def get_netloc(origin: str) -> str:
    """Return the host and the port of an Origin header in lower case; '' if it has none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def check_token(request: Request, rules: AccessRules) -> Response | None:
    """Return the response to a request without the token, or to a link with the token, which sets the cookie; None if
    the request is to be answered.
    """
    if rules.token is None:
        return None
    from_link = request.query_params.get("token")
    if from_link is not None and request.method == "GET" and request.url.path in PAGES:
        if rules.accepts_token(from_link):
            return redirect_with_cookie(request, rules)
    else:
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        token = bearer.strip() if scheme.lower() == "bearer" else request.cookies.get(rules.cookie_name, "")
        if rules.accepts_token(token):
            return None
    return respond_with_problem(
        401,
        "This server needs a token: open the link that it printed when it was started, or send the header "
        "'Authorization: Bearer TOKEN'.",
        {"WWW-Authenticate": "Bearer"},
    )


def redirect_with_cookie(request: Request, rules: AccessRules) -> Response:
    """Return a response that sets the cookie with the token, and leads to the same page without the token."""
    query = urlencode([(name, value) for name, value in request.query_params.multi_items() if name != "token"])
    target = f"{request.url.path}?{query}" if query else request.url.path
    response: Response = RedirectResponse(target, 303)
    if request.headers.get("sec-fetch-site") in FOREIGN_SITES:
        # The browser wouldn't send a SameSite=Strict cookie after a redirect that begins on another site.
        response = HTMLResponse(f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(target)}">')
    response.set_cookie(rules.cookie_name, rules.token or "", httponly=True, samesite="strict")
    return response
