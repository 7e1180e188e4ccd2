"""What the proxy says itself: refusals as JSON or a plain page, and the exchange of a ticket."""

from __future__ import annotations

import html
import json
from typing import Final

from manager.proxy.heads import COOKIE

_REASONS: Final = {
    200: "OK", 204: "No Content", 303: "See Other", 308: "Permanent Redirect", 400: "Bad Request", 401: "Unauthorized",
    403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout", 421: "Misdirected Request",
    426: "Upgrade Required", 431: "Request Header Fields Too Large", 502: "Bad Gateway", 503: "Service Unavailable",
}  # fmt: skip
_PAGE: Final = (
    "<!doctype html><meta charset=utf-8><title>{title}</title>"
    "<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:36em;margin:15vh auto;padding:0 1em}}"
    "code{{color:#666}}</style><h1>{title}</h1><p>{message}</p><p><code>{code}</code></p>"
)


def answer(
    status: int, body: bytes = b"", *headers: str, kind: str = "text/plain; charset=utf-8", close: bool = False
) -> bytes:
    lines = [
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Referrer-Policy: no-referrer",
        "X-Content-Type-Options: nosniff",
        *headers,
    ]
    if body:
        lines.append(f"Content-Type: {kind}")
    if close:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def refusal(status: int, code: str, message: str, *, wants_html: bool = False, close: bool = False) -> bytes:
    more = ["Retry-After: 1"] if status == 503 else []
    if status == 401:
        more.append('WWW-Authenticate: Bearer realm="moorage"')
    if wants_html:
        title = _REASONS.get(status, "Error")
        page = _PAGE.format(title=title, message=html.escape(message), code=html.escape(code))
        more.append("Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'")
        return answer(status, page.encode(), *more, kind="text/html; charset=utf-8", close=close)
    problem = {"title": code, "status": status, "detail": message, "code": code}
    return answer(status, json.dumps(problem).encode(), *more, kind="application/problem+json", close=close)


def passed(prefix: str, rest: str, token: str, *, secure: bool, seconds: float, as_json: bool) -> bytes:
    """A ticket was good: the pass as a cookie of this service's path, and the address without the ticket."""
    cookie = f"{COOKIE.decode()}={token}; Path={prefix}; HttpOnly; SameSite=Lax; Max-Age={seconds:.0f}"
    if secure:
        cookie += "; Secure"
    if as_json:
        body = json.dumps({"token": token, "path": prefix}).encode()
        return answer(200, body, f"Set-Cookie: {cookie}", kind="application/json")
    return answer(303, b"", f"Set-Cookie: {cookie}", f"Location: {prefix}{rest}")
