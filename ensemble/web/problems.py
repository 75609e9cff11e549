"""Errors that the server answers with: a status and a sentence that says what is wrong and what to do."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from data.errors import UserError

logger = logging.getLogger("chorale.web")

MAX_SHOWN_CHARACTERS = 60
"""Maximum length of a refused value in a message."""


class Problem(BaseModel):
    """Answer to a request that can't be fulfilled."""

    error: str = Field(description="what is wrong, and what to do")


class ProblemError(Exception):
    """Error with the status and the sentence that a request is answered with."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


def respond_with_problem(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the response of a request that can't be fulfilled."""
    return JSONResponse(Problem(error=message).model_dump(), status, headers)


def explain_invalid_values(errors: Sequence[Any]) -> str:
    """Return a sentence about the parameters of a request that pydantic has refused."""
    parts = []
    for error in errors:
        name = str(error["loc"][-1])
        reason = str(error["msg"]).removeprefix("Value error, ")
        if error["type"] == "missing":
            parts.append(f"the parameter {name!r} is missing")
        else:
            shown = str(error["input"])
            shown = shown if len(shown) <= MAX_SHOWN_CHARACTERS else f"{shown[:MAX_SHOWN_CHARACTERS]}..."
            parts.append(f"{name} can't be {shown!r}: {reason[:1].lower()}{reason[1:]}")
    return f"{'; '.join(parts)}. The page /docs lists all parameters."


def explain_http_error(status: int, path: str) -> str:
    """Return a sentence about a path that doesn't exist, or a method that a path doesn't have."""
    if status == 404:
        return f"{path[:MAX_SHOWN_CHARACTERS]} doesn't exist. The page /docs lists all paths."
    return "The request can't be answered. The page /docs lists the methods of each path."


def add_problem_handlers(app: FastAPI) -> None:
    """Make an application answer with a `Problem` whenever a request fails."""

    @app.exception_handler(ProblemError)
    async def respond_to_problem(_: Request, error: ProblemError) -> JSONResponse:
        return respond_with_problem(error.status, str(error), error.headers)

    @app.exception_handler(UserError)
    async def respond_to_user_error(_: Request, error: UserError) -> JSONResponse:
        return respond_with_problem(422, str(error))

    @app.exception_handler(RequestValidationError)
    async def respond_to_invalid_values(_: Request, error: RequestValidationError) -> JSONResponse:
        return respond_with_problem(422, explain_invalid_values(error.errors()))

    @app.exception_handler(HTTPException)
    async def respond_to_http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = explain_http_error(error.status_code, request.url.path)
        return respond_with_problem(error.status_code, message, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def respond_to_nobody(_: Request, error: ClientDisconnect) -> JSONResponse:
        return respond_with_problem(400, "The connection was closed before the request was complete.")

    @app.exception_handler(Exception)
    async def respond_to_defect(_: Request, error: Exception) -> JSONResponse:
        return respond_with_problem(500, "The server has a defect: its terminal shows the details. Please report it.")
