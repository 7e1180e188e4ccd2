"""`/docs`: the OpenAPI document as a page to read; nothing is fetched from anywhere, nothing runs in the browser."""

from __future__ import annotations

import json
from functools import cache
from html import escape
from typing import Any, Final

from domain.errors import all_errors
from manager.rest.openapi import document

CONTENT_SECURITY_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_METHODS: Final = ("get", "post", "put", "patch", "delete")
_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --accent: #0a66c2; }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0; display: grid; grid-template-columns: 17rem minmax(0, 1fr) }
nav { position: sticky; top: 0; height: 100vh; overflow: auto; padding: 1rem; border-right: 1px solid var(--line) }
nav a { display: block; padding: 1px 0; font-size: 13px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis }
nav b { display: block; margin: .8rem 0 .2rem; text-transform: capitalize }
main { padding: 1rem 2rem 6rem; max-width: 62rem }
a { color: inherit; text-decoration: none } main a { color: var(--accent) }
a:hover { text-decoration: underline }
h2 { margin: 2.5rem 0 .5rem; text-transform: capitalize; border-bottom: 1px solid var(--line) }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0 } details[open] { padding-bottom: .6rem }
summary { padding: .45rem .7rem; cursor: pointer; display: flex; gap: .6rem; align-items: baseline; flex-wrap: wrap }
summary span { opacity: .75 } details > :not(summary) { margin-left: .9rem; margin-right: .9rem }
code, .m { font: 13px/1.45 ui-monospace, monospace } code { background: var(--soft); border-radius: 3px; padding: 0 .25em }
summary code { background: none; padding: 0; font-weight: 600; overflow-wrap: anywhere }
.m { font-weight: 700; width: 4.2rem; flex: none; border-radius: 3px; text-align: center; color: #fff; padding: 1px 0 }
.get { background: #1a7f4b } .post { background: #0a66c2 } .put, .patch { background: #9a6700 } .delete { background: #c0362c }
table { border-collapse: collapse; width: 100%; font-size: 14px }
details > table { width: calc(100% - 1.8rem) }
td, th { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0; border-top: 1px solid var(--line) }
th { font-weight: 600; border: 0 } td:first-child { white-space: nowrap } .wide td:first-child { white-space: normal }
h4 { margin: .9rem 0 .2rem } .req { color: #c0362c } pre { background: var(--soft); padding: .7rem; overflow: auto }
:target { outline: 2px solid var(--accent) }
@media (max-width: 50rem) { body { display: block } main { padding: 1rem }
nav { position: static; height: 30vh; border: 0; border-bottom: 1px solid var(--line) } }
"""


@cache
def page_bytes() -> bytes:
    return _page(document()).encode()


def _page(doc: dict[str, Any]) -> str:
    sections: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, methods in doc["paths"].items():
        for method in _METHODS:
            if method in methods:
                operation = methods[method]
                sections.setdefault(operation["tags"][0], []).append((method, path, operation))
    menu = "".join(
        f"<b>{escape(tag)}</b>" + "".join(_link(method, path, operation) for method, path, operation in rows)
        for tag, rows in sections.items()
    )
    body = "".join(
        f"<h2>{escape(tag)}</h2>" + "".join(_operation(method, path, operation) for method, path, operation in rows)
        for tag, rows in sections.items()
    )
    schemas = "".join(_schema_section(name, schema) for name, schema in doc["components"]["schemas"].items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Moorage API</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>
<body><nav><a href="#top"><b>Moorage API</b></a><a href="#errors">errors</a><a href="#schemas">schemas</a>{menu}</nav>
<main id="top"><h1>Moorage API</h1><p>{_text(doc["info"]["description"])}
The machine-readable document is at <a href="/openapi.json">/openapi.json</a>.</p>
<pre>curl -H "Authorization: Bearer $MOORAGE_ACCESS_KEY.$MOORAGE_SECRET_KEY" "$MOORAGE_ENDPOINT/v1/whoami"</pre>
<p>JSON in and out; times are ISO 8601 in UTC. Every failure is a problem document (RFC 9457) with a stable
<code>code</code>. Changes take an <code>Idempotency-Key</code>: the same key again gets the same answer, and nothing
happens twice. Lists are pages: pass <code>next_cursor</code> as <code>cursor</code>.</p>
{body}<h2 id="errors">Errors</h2>{_errors()}<h2 id="schemas">Schemas</h2>{schemas}</main></body></html>
"""


def _anchor(method: str, path: str, operation: dict[str, Any]) -> str:
    return escape(str(operation.get("operationId", f"{method}{path}")), quote=True)


def _link(method: str, path: str, operation: dict[str, Any]) -> str:
    words = str(operation.get("operationId", path)).replace("_", " ")
    return f'<a href="#{_anchor(method, path, operation)}" title="{method.upper()} {escape(path)}">{escape(words)}</a>'


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [f"<p>{_text(operation['description'])}</p>"] if "description" in operation else []
    if operation.get("parameters"):
        parts.append("<h4>Parameters</h4><table>" + "".join(map(_parameter, operation["parameters"])) + "</table>")
    if "requestBody" in operation:
        for media, content in operation["requestBody"]["content"].items():
            parts.append(f"<h4>Body <code>{escape(media)}</code></h4>{_properties(content.get('schema', {}))}")
    parts.append("<h4>Answers</h4><table class=wide>")
    for status, answer in operation["responses"].items():
        shown = "<br>".join(
            f"<code>{escape(media)}</code> {_type(content.get('schema', {}))}"
            for media, content in answer.get("content", {}).items()
            if media != "application/problem+json"
        )
        text = "<br>".join(_text(line.removeprefix("- ")) for line in answer["description"].splitlines())
        parts.append(f"<tr><td><b>{status}</b></td><td>{text}{'<br>' + shown if shown else ''}</td></tr>")
    parts.append("</table>")
    name = _anchor(method, path, operation)
    return (
        f'<details id="{name}"><summary><b class="m {method}">{method.upper()}</b><code>{escape(path)}</code>'
        f"<span>{_text(operation['summary'])}</span></summary>{''.join(parts)}</details>"
    )


def _parameter(parameter: dict[str, Any]) -> str:
    required = " <span class=req>required</span>" if parameter.get("required") else ""
    return (
        f"<tr><td><code>{escape(parameter['name'])}</code> {parameter['in']}{required}</td>"
        f"<td>{_type(parameter['schema'])} {_text(parameter.get('description', ''))}</td></tr>"
    )


def _properties(schema: dict[str, Any]) -> str:
    rows = []
    for name, value in schema.get("properties", {}).items():
        required = " <span class=req>required</span>" if name in schema.get("required", ()) else ""
        default = (
            f" Default <code>{escape(_json(value['default']))}</code>." if value.get("default") is not None else ""
        )
        text = _text(value.get("description", ""))
        rows.append(f"<tr><td><code>{escape(name)}</code>{required}</td><td>{_type(value)} {text}{default}</td></tr>")
    return f"<table>{''.join(rows)}</table>" if rows else f"<p>{_type(schema)}</p>"


def _schema_section(name: str, schema: dict[str, Any]) -> str:
    text = f"<p>{_text(schema['description'])}</p>" if "description" in schema else ""
    return (
        f'<details id="schema-{escape(name)}"><summary><code>{escape(name)}</code></summary>'
        f"{text}{_properties(schema)}</details>"
    )


def _type(schema: dict[str, Any]) -> str:
    """A schema in one line."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "enum" in schema:
        return " | ".join(f"<code>{escape(_json(value))}</code>" for value in schema["enum"])
    if "const" in schema:
        return f"<code>{escape(_json(schema['const']))}</code>"
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return " | ".join(dict.fromkeys(_type(one) for one in schema[word]))
    kind = schema.get("type", "anything")
    if isinstance(kind, list):
        return " | ".join(escape(str(one)) for one in kind)
    if kind == "array":
        return f"list of {_type(schema['items'])}" if isinstance(schema.get("items"), dict) else "list"
    if kind == "object":
        if schema.get("properties"):
            return "{" + ", ".join(f"<code>{escape(name)}</code>" for name in schema["properties"]) + "}"
        below = schema.get("additionalProperties")
        return f"object of {_type(below)}" if isinstance(below, dict) and below else "object"
    limits = [f"{word} {schema[key]}" for key, word in _LIMITS if schema.get(key, _MAX_TEXT) != _MAX_TEXT]
    return escape(str(schema.get("format", kind))) + (
        f" <small>({escape(', '.join(limits))})</small>" if limits else ""
    )


#: Of every text; not worth a word.
_MAX_TEXT: Final = 4 * 1024 * 1024
_LIMITS: Final = (
    ("minimum", "from"),
    ("exclusiveMinimum", "above"),
    ("maximum", "to"),
    ("minLength", "at least"),
    ("maxLength", "at most"),
    ("pattern", "pattern"),
)


def _errors() -> str:
    rows = []
    for error in sorted(all_errors(), key=lambda e: (e.http_status, e.code)):
        again = " The same request may succeed later." if error.retryable else ""
        rows.append(
            f'<tr id="{escape(error.code)}"><td><code>{escape(error.code)}</code></td><td>{error.http_status}</td>'
            f"<td>{_text(error().message)}{again}</td></tr>"
        )
    return f"<table><tr><th>code</th><th>status</th><th>meaning</th></tr>{''.join(rows)}</table>"


def _text(text: str) -> str:
    """Backticks are code, empty lines paragraphs."""
    pieces = escape(" ".join(text.split("\n\n")[0].split()) if "\n\n" not in text else text).split("`")
    marked = "".join(f"<code>{piece}</code>" if at % 2 else piece for at, piece in enumerate(pieces))
    return marked.replace("\n\n", "<br><br>")


def _json(value: Any) -> str:
    return json.dumps(value)
