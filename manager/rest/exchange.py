"""One request on its way through the door: what it asks, who asks, how it is answered."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

from aiohttp import web
from aiohttp.web_request import BaseRequest

from actions.base import Action, Effect
from domain.crash import reach
from domain.errors import InvalidRequest, RequestTooLarge, TransferFailed, UnsupportedMediaType
from domain.principal import Principal
from manager.rest.json import check_text, dumps, loads

if TYPE_CHECKING:
    from manager.rest.app import RestDoor

R = TypeVar("R")
#: A body that stops coming is given up after so long, a JSON body as a whole.
BODY_SILENCE_SECONDS: Final = 60.0
JSON_BODY_SECONDS: Final = 30.0
#: A reader that takes nothing for so long is cut off.
WRITE_SECONDS: Final = 120.0
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_CHUNK_BYTES: Final = 2**18


#: Whose session is meant, when an administrator says so.
OWNER: Final = "owner_access_key"


class Row(Protocol):
    """What a handler needs to know of its row in `manager.rest.routes`."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def action(self) -> type[Action[Any, Any]]: ...
    @property
    def answer(self) -> Callable[[Any], Any]: ...
    @property
    def status(self) -> int | Callable[[Any], int]: ...
    @property
    def told(self) -> Mapping[str, str]: ...
    @property
    def field_in_path(self) -> Mapping[str, str]: ...
    @property
    def lists(self) -> frozenset[str]: ...
    @property
    def query(self) -> tuple[str, ...]: ...
    @property
    def has_body(self) -> bool: ...
    @property
    def body_required(self) -> bool: ...
    @property
    def max_body_bytes(self) -> int: ...
    @property
    def owned(self) -> bool: ...
    @property
    def settles(self) -> bool: ...
    @property
    def paged(self) -> bool: ...
    @property
    def etag(self) -> bool: ...
    @property
    def if_match(self) -> bool: ...


class Exchange:
    __slots__ = ("_query", "by", "door", "path", "request", "request_id", "route")

    def __init__(
        self, door: RestDoor, request: BaseRequest, request_id: str, route: Row, path: dict[str, Any], by: Principal
    ) -> None:
        self.door = door
        self.request = request
        self.request_id = request_id
        self.route = route
        self.path = path  #: from the address, by the action's field names
        self.by = by
        self._query: dict[str, list[str]] | None = None

    # -- what it asks ------------------------------------------------------------------------------------------------
    @property
    def query(self) -> dict[str, list[str]]:
        if self._query is None:
            self._query = parse_query(self.request.raw_path)
        return self._query

    def query_value(self, name: str) -> str | None:
        values = self.query.get(name)
        if not values:
            return None
        if len(values) > 1:
            raise InvalidRequest(f"The parameter '{name}' is given more than once.", field=name)
        return values[0]

    def flag(self, name: str) -> bool:
        value = self.query_value(name)
        if value is None:
            return False
        if value.lower() in ("", "1", "true", "yes"):
            return True
        if value.lower() in ("0", "false", "no"):
            return False
        raise InvalidRequest(f"The parameter '{name}' is true or false.", field=name)

    def number(self, name: str, *, most: float) -> float | None:
        value = self.query_value(name)
        if value is None:
            return None
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number <= most:
            raise InvalidRequest(f"The parameter '{name}' is a number from 0 to {most:g}.", field=name)
        return number

    def only_query(self, *names: str) -> None:
        for name in self.query:
            if name not in names:
                raise unknown_parameter(name)

    @property
    def owner(self) -> dict[str, str]:
        value = self.query_value(OWNER)
        return {} if value is None else {OWNER: value}

    @property
    def idempotency_key(self) -> str | None:
        key = self.request.headers.get("Idempotency-Key")
        if key is not None and not _KEY.fullmatch(key):
            raise InvalidRequest("An Idempotency-Key has 1 to 255 visible ASCII characters.", field="Idempotency-Key")
        return key

    def accepts(self, *kinds: str) -> str | None:
        """The first of `kinds` that the Accept header names; wildcards name none."""
        accept = self.request.headers.get("Accept", "")
        named = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
        return next((kind for kind in kinds if kind in named), None)

    def header_time(self, name: str) -> float | None:
        """Unix seconds; None for a missing or malformed date, as HTTP wants it."""
        try:
            return parsedate_to_datetime(self.request.headers[name]).timestamp()
        except (KeyError, TypeError, ValueError):
            return None

    async def json(self, *, max_bytes: int, required: bool) -> dict[str, Any]:
        request = self.request
        refuse_encoding(request)
        if not request.body_exists:
            return loads(b"", max_bytes=max_bytes) if required else {}
        length = request.content_length
        if length is not None and length > max_bytes:
            raise RequestTooLarge(f"The body is larger than {max_bytes} bytes; send files through the file routes.")
        await self.invite_body()
        body = bytearray()
        try:
            async with asyncio.timeout(JSON_BODY_SECONDS):
                async for chunk in request.content.iter_any():
                    body += chunk
                    if len(body) > max_bytes:
                        raise RequestTooLarge(
                            f"The body is larger than {max_bytes} bytes; send files through the file routes."
                        )
        except TimeoutError:
            raise InvalidRequest(f"The body did not arrive within {JSON_BODY_SECONDS:g} seconds.") from None
        if not body and not required:
            return {}
        if body and request.content_type != "application/json" and not request.content_type.endswith("+json"):
            raise UnsupportedMediaType(f"The body is {request.content_type[:80]}; send application/json.")
        charset = request.charset
        if charset is not None and charset.lower() not in ("utf-8", "utf8", "us-ascii"):
            raise UnsupportedMediaType("JSON is UTF-8; send it so.")
        return loads(bytes(body), max_bytes=max_bytes)

    async def invite_body(self) -> None:
        """Clients that ask before they send a large body are told to go on only after everything else is in order."""
        expect = self.request.headers.get("Expect")
        if expect is None:
            return
        if expect.lower() != "100-continue":
            raise InvalidRequest(f"The expectation '{expect[:80]}' cannot be met.")
        if self.request.content.total_bytes == 0 and not self.request.content.is_eof():
            await self.request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.request.writer.output_size = 0  # an answer has not begun

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes; reading slowly slows the sender down."""
        content = self.request.content
        try:
            while True:
                async with asyncio.timeout(BODY_SILENCE_SECONDS):
                    chunk = await content.read(_CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk
        except TimeoutError:
            raise TransferFailed(f"The body stopped coming for {BODY_SILENCE_SECONDS:g} seconds.") from None
        except (ConnectionError, web.RequestPayloadError, asyncio.IncompleteReadError):
            raise TransferFailed("The body broke off.") from None

    async def still(self) -> bool:
        """Whether what was opened on this credential may stay open."""
        return await self.door.authenticator.still(self.request, self.by)

    # -- how it is carried out -----------------------------------------------------------------------------------------
    async def run(self, action: Action[Any, R], *, settle_seconds: float | None = 0.0) -> R:
        key = None if action.rules.effect is Effect.READ else self.idempotency_key
        answer = await self.door.world.processor.run(
            action, by=self.by, key=key, request_id=self.request_id, settle_seconds=settle_seconds
        )
        reach("api.answer.before")
        return answer

    # -- how it is answered --------------------------------------------------------------------------------------------
    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
        response = web.Response(status=status, body=dumps(value), headers=headers)
        response.headers["Content-Type"] = "application/json"
        return response

    async def begin(self, status: int, headers: dict[str, str], *, length: int | None = None) -> web.StreamResponse:
        """A response whose body is written piece by piece."""
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = length
        self.door.stamp(response, self.request_id)
        await response.prepare(self.request)
        return response

    async def write(self, response: web.StreamResponse, data: bytes) -> None:
        """Waits for a slow reader, but not for ever."""
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await response.write(data)
        except TimeoutError:
            self.cut()
            raise ConnectionResetError("the reader takes nothing") from None

    def cut(self) -> None:
        """End the connection in the middle, so that nobody takes what was sent for the whole."""
        if (transport := self.request.transport) is not None:
            transport.abort()


def unknown_parameter(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"There is no parameter '{name[:80]}' here; check the spelling against /docs.", field=name[:80]
    )


def refuse_encoding(request: BaseRequest) -> None:
    if (encoding := request.headers.get("Content-Encoding", "identity").lower()) != "identity":
        raise UnsupportedMediaType(f"The body is encoded as {encoding[:40]}; send it as it is.")


def parse_query(target: str) -> dict[str, list[str]]:
    _, _, text = target.partition("#")[0].partition("?")
    if not text:
        return {}
    found: dict[str, list[str]] = {}
    try:
        text.encode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=100)
    except UnicodeError:
        raise InvalidRequest("The query is not percent-encoded UTF-8.") from None
    except ValueError:
        raise InvalidRequest("The query has too many parameters.") from None
    for name, value in pairs:
        check_text(name)
        check_text(value)
        found.setdefault(name, []).append(value)
    return found


def decode_segment(raw: str) -> str:
    """One segment of a path, percent-decoded."""
    if "%" not in raw:
        if not raw.isascii():
            raise InvalidRequest("The address is not percent-encoded.")
        return raw
    try:
        text = unquote_to_bytes(raw.encode("ascii")).decode()
    except UnicodeError:
        raise InvalidRequest("The address is not percent-encoded UTF-8.") from None
    check_text(text)
    return text
