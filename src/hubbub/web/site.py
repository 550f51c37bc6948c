"""The page: a few files, read once at the start, served with a policy that lets nothing else in."""

from importlib import resources

from hubbub.web.http import Response

SECURITY_HEADERS = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' ws: wss:; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cache-Control", "no-cache"),
)

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/static/hubbub.css": ("hubbub.css", "text/css; charset=utf-8"),
    "/static/hubbub.js": ("hubbub.js", "text/javascript; charset=utf-8"),
    "/static/favicon.svg": ("favicon.svg", "image/svg+xml"),
}


def load_site() -> dict[str, Response]:
    """Return the response for each path of the page."""
    folder = resources.files("hubbub.web") / "static"
    return {
        path: Response(200, (folder / name).read_bytes(), content_type, SECURITY_HEADERS)
        for path, (name, content_type) in _FILES.items()
    }
