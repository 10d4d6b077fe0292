"""The pages: `/`, and `/docs`, which lists the routes. They load nothing from elsewhere, so they work without internet."""

from __future__ import annotations

from html import escape
from typing import Any

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}
pre{overflow:auto;background:#8882;padding:1rem}
td,th{text-align:left;vertical-align:top;padding-right:1rem}
"""


def _page(title: str, *parts: str) -> str:
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en">{head}<title>{title}</title><style>{_STYLE}</style>\n{body}\n</html>\n'


PAGE = _page(
    "Triage",
    """<h1>Triage</h1>
<p>A priority- and GPU-aware inference queue on Kafka. This is its gateway.</p>
<pre>curl -s localhost:8400/v1/async/submit -H 'content-type: application/json' \\
  -d '{"priority": "high", "messages": [{"role": "user", "content": "hello"}]}'</pre>
<ul>
<li><a href="/docs">Every route</a> (<a href="/openapi.json">openapi.json</a>)</li>
<li><a href="/v1/async/health">Health</a>, <a href="/v1/async/stats">figures</a>, <a href="/metrics">metrics</a></li>
</ul>""",
)


def docs(described: dict[str, Any]) -> str:
    """Return the routes and bodies of an OpenAPI description as a page."""
    routes = [
        _route(method, path, route) for path, methods in described["paths"].items() for method, route in methods.items()
    ]
    bodies = [
        f'<h3 id="{escape(name)}">{escape(name)}</h3>{_text(schema)}<table>{_fields(schema)}</table>'
        for name, schema in sorted(described["components"]["schemas"].items())
    ]
    told = '<p>For tools: <a href="/openapi.json">openapi.json</a>. Every error is a problem (RFC 9457).</p>'
    return _page("Triage: routes", "<h1>Routes</h1>", told, *routes, "<h1>Bodies</h1>", *bodies)


def _route(method: str, path: str, route: dict[str, Any]) -> str:
    rows = [
        f"<tr><td>{escape(each['name'])}<td>{_kind(each['schema'])}<td>{escape(each.get('description', each['in']))}"
        for each in route.get("parameters", [])
    ]
    if "requestBody" in route:
        rows.append(f"<tr><td>body<td>{_body(route['requestBody'])}<td>")
    rows += [
        f"<tr><td>{code}<td>{_body(answer)}<td>{escape(answer['description'])}"
        for code, answer in route["responses"].items()
    ]
    return f"<h2>{method.upper()} {escape(path)}</h2>{_text(route)}<table>{''.join(rows)}</table>"


def _fields(schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    return "".join(
        f"<tr><td>{escape(name)}{'*' if name in required else ''}<td>{_kind(each)}<td>{escape(each.get('description', ''))}"
        for name, each in schema.get("properties", {}).items()
    )


def _body(answer: dict[str, Any]) -> str:
    return ", ".join(_kind(content.get("schema", {})) for content in answer.get("content", {}).values())


def _kind(schema: dict[str, Any]) -> str:
    """Return what a value may be, in a few words; bodies that stand further down are linked."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "enum" in schema:
        return escape(" | ".join(map(str, schema["enum"])))
    if "const" in schema:
        return escape(str(schema["const"]))
    several = schema.get("anyOf") or schema.get("allOf")
    if several:
        return " | ".join(map(_kind, several))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return escape(str(schema.get("type", "anything")))


def _text(described: dict[str, Any]) -> str:
    return f"<p>{escape(described['description'])}</p>" if "description" in described else ""
