"""The application of the server: the page, the JSON interface, its documentation, and the rules of access."""

import contextlib
import importlib.resources
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles

from ensemble.web.access import AccessMiddleware, AccessRules
from ensemble.web.api import build_router
from ensemble.web.playback import Playback
from ensemble.web.problems import add_problem_handlers
from ensemble.web.searcher import Searcher
from ensemble.web.uploads import Uploads

if TYPE_CHECKING:
    from ensemble.serving.library import Library

STATIC = Path(__file__).parent / "static"

DESCRIPTION = """\
Search recordings by a sentence, by a recording of the index, or by a sound that you upload.

Errors are JSON, `{"error": "..."}`, with a sentence that says what is wrong and what to do. If the server was started
with a token, send it with each request: `Authorization: Bearer TOKEN`.
"""


def build_app(library: "Library", rules: AccessRules, scratch: Path) -> FastAPI:
    """Return the application that searches a library.

    Args:
        library: the models and the index.
        rules: the rules of access.
        scratch: folder for temporary files.
    """
    searcher = Searcher(library)

    @contextlib.asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        await searcher.worker.run(searcher.warm_up)
        yield
        searcher.close()

    app = FastAPI(
        title="Chorale", description=DESCRIPTION, version="1",
        docs_url=None, redoc_url=None, lifespan=live,
    )  # fmt: skip
    app.include_router(build_router(searcher, Playback(), Uploads(scratch)))
    app.add_middleware(AccessMiddleware, rules=rules)
    add_problem_handlers(app)
    add_pages(app)
    return app


def add_pages(app: FastAPI) -> None:
    """Add the page and the documentation of the JSON interface, with their files, to an application."""
    swagger = Path(str(importlib.resources.files("fastapi_offline"))) / "static"
    files = {
        "/": STATIC / "index.html",
        "/docs": STATIC / "docs.html",
        "/docs/swagger-ui.css": swagger / "swagger-ui.css",
        "/docs/swagger-ui-bundle.js": swagger / "swagger-ui-bundle.js",
        "/favicon.ico": STATIC / "icon.svg",
    }

    def build_sender(path: Path) -> Callable[[], Response]:
        def send_file() -> Response:
            return FileResponse(path)

        return send_file

    for route, path in files.items():
        app.add_api_route(route, build_sender(path), methods=["GET"], include_in_schema=False)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
