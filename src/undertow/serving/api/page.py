"""/docs: every path and every kind of refusal on one page, which needs nothing from elsewhere."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from undertow.serving.api.problems import KINDS

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%}td{border-top:1px solid #ccc;padding:.4rem;vertical-align:top}
code{white-space:nowrap}@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}a{color:#6cf}}"""


def page(description: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI description."""
    routes = "".join(_rows(description["paths"]))
    kinds = "".join(
        f'<tr id="{code}"><td>{kind.status}</td><td><code>{code}</code></td><td>{escape(kind.title)}</td>'
        f"<td>{kind.fault}</td></tr>"
        for code, kind in KINDS.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>undertow</title><style>{STYLE}</style><h1>undertow {escape(description['info']['version'])}</h1>"
        f"<p>{escape(description['info']['description'])}</p>"
        '<p>The whole description, for generators of clients: <a href="/openapi.json">/openapi.json</a>.</p>'
        f"<h2>Paths</h2><table>{routes}</table><h2>Refusals</h2><table>{kinds}</table></html>"
    )


def _rows(paths: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for path, operations in paths.items():
        for method, operation in operations.items():
            about = escape(operation.get("description") or operation.get("summary", ""))
            yield f"<tr><td><code>{method.upper()} {escape(path)}</code></td><td>{about}</td></tr>"
