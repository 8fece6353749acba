"""A page on which people read about the HTTP port and try it. It loads nothing from elsewhere."""

import hashlib
import json
import shlex
from base64 import b64encode
from collections.abc import Collection, Iterable, Sequence
from html import escape
from typing import Final, get_args, get_origin

import msgspec

from embedgrpc.server.http.exchange import Route
from embedgrpc.server.http.headers import REQUEST_HEADERS

_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre, textarea { font: 14px/1.4 ui-monospace, monospace; }
pre, textarea { border: 1px solid #8886; padding: .5rem; }
pre { overflow: auto; max-height: 24rem; }
pre, textarea, input { border-radius: 4px; }
textarea { width: 100%; box-sizing: border-box; }
summary { cursor: pointer; padding: .25rem 0; }
label { display: block; }
"""
_SCRIPT: Final = """
"use strict";
// A proxy may serve the paths below another one.
const base = location.pathname.replace(/\\/docs\\/?$/, "");
document.getElementById("document").href = base + "/openapi.json";
for (const code of document.querySelectorAll("pre.curl")) {
  code.textContent = code.textContent.replaceAll("$URL", location.origin + base);
}
for (const form of document.querySelectorAll("form")) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { method, path } = form.dataset;
    const output = form.querySelector("output");
    const part = form.elements.part ? form.elements.part.value : "";
    const request = { method, headers: {} };
    const key = document.getElementById("key");
    if (key && key.value) {
      request.headers.authorization = "Bearer " + key.value;
    }
    if (form.elements.body) {
      request.body = form.elements.body.value;
      request.headers["content-type"] = "application/json";
    }
    output.textContent = "...";
    try {
      const began = performance.now();
      const response = await fetch(base + path + part, request);
      const text = await response.text();
      const duration = Math.round(performance.now() - began);
      output.textContent = `${response.status}, ${duration} ms\\n${text}`;
    } catch (error) {
      output.textContent = String(error);
    }
  });
}
"""


# The page forgets it when it is closed.
_CREDENTIALS: Final = """<label>API key or token, for all of them
<input id="key" type="password" autocomplete="off"></label>
"""


def page(routes: Iterable[Route], *, public: Collection[str] | None = None) -> bytes:
    """Return the page, in HTML.

    Args:
        routes: The table.
        public: What is public although calls need credentials, as the setting names it; None where
            nobody needs any.
    """
    table = tuple(routes)
    tags: dict[str, list[Route]] = {}
    for route in table:
        tags.setdefault(route.tag, []).append(route)
    headers = "".join(
        f"<li><code>{escape(name)}</code>: {escape(text)}</li>\n"
        for name, text in REQUEST_HEADERS.items()
    )
    sections = "".join(_section(tag, some, public) for tag, some in tags.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>embedgrpc over HTTP</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>embedgrpc over HTTP</h1>
<p>Every path that this server answers.
<a id="document" href="openapi.json">openapi.json</a> has the schemas of bodies, answers and
errors.</p>
<p>Headers of requests:</p>
<ul>
{headers}</ul>
{"" if public is None else _CREDENTIALS}{sections}<script>{_SCRIPT}</script>
</body>
</html>
""".encode()


def security_policy() -> str:
    """Return the Content-Security-Policy of the page: its own script and style, and this server."""
    return (
        f"default-src 'none'; script-src '{_digest(_SCRIPT)}'; style-src '{_digest(_STYLE)}';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def curl(route: Route, *, url: str) -> str:
    """Return the command that sends a route's example.

    Args:
        route: The route.
        url: Where the server is; quoted if the shell needs that.
    """
    prefix, _, name = route.path.partition("{")
    command = f"curl {url}{prefix}{name.rstrip('}').upper()}"
    if route.body is None:
        return command
    body = shlex.quote(json.dumps(route.example, ensure_ascii=False))
    return f"{command} \\\n  -H 'content-type: application/json' \\\n  -d {body}"


def body_keys(route: Route) -> tuple[Sequence[str], Sequence[str]]:
    """Return the keys that the body of a route must have, and those that it may have.

    Of a list, they are those of its entries.
    """
    kind = get_args(route.body)[0] if get_origin(route.body) is list else route.body
    fields = msgspec.structs.fields(kind)
    must = [one.encode_name for one in fields if one.required or one.encode_name == route.key]
    return must, [one.encode_name for one in fields if one.encode_name not in must]


def _section(tag: str, routes: Sequence[Route], public: Collection[str] | None) -> str:
    return f"<h2>{escape(tag)}</h2>\n{''.join(_details(one, public) for one in routes)}"


def _details(route: Route, public: Collection[str] | None) -> str:
    prefix, brace, name = route.path.partition("{")
    fields = ""
    if brace:
        name = escape(name.rstrip("}"))
        fields += f'<label>{name} <input name="part" required></label>\n'
    if route.body is not None:
        body = escape(json.dumps(route.example, indent=2, ensure_ascii=False))
        fields += _keys(route)
        fields += f'<label>Body <textarea name="body" rows="8">{body}</textarea></label>\n'
    method, path = escape(route.method), escape(prefix)
    command = curl(route, url="$URL")
    if public is not None and route.needs_credentials(public):
        command += ' \\\n  -H "authorization: Bearer $KEY"'
    return f"""<details>
<summary><code>{method} {escape(route.path)}</code> {escape(route.summary)}</summary>
<pre class="curl">{escape(command)}</pre>
<form data-method="{method}" data-path="{path}">
{fields}<button>Send</button>
<pre><output></output></pre>
</form>
</details>
"""


def _keys(route: Route) -> str:
    must, may = body_keys(route)
    kind = "a list of objects. Each" if get_origin(route.body) is list else "an object. It"
    sentences = [
        f"{verb} have {', '.join(f'<code>{escape(name)}</code>' for name in names)}"
        for verb, names in (("must", must), ("may", may))
        if names
    ]
    return f"<p>The body is {kind} {'; it '.join(sentences)}.</p>\n"


def _digest(text: str) -> str:
    """Return the hash by which a policy allows an inline script or style."""
    return f"sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
