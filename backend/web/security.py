"""Who may call: the password, pages of other sites, and names that may be another site's.

A browser sends what any page asks it to, with the password that it was given for us and from inside the network. So
calls for pages of other sites are refused, and so is every call under a name that could be another site's own: its
owner may have that name lead to our address once the page is loaded (DNS rebinding), which makes it our own page to a
browser. No site can have an IP address for a name, nor a name that the public DNS does not give.
"""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from flask import Flask, Response, jsonify, request

from backend import webhook_secret
from backend.errors import CrossSiteRequest
from backend.settings import Settings

OPEN_PATHS = frozenset({"/health", "/ready", "/webhook"})
"""Called without basic auth: by health checks, and by Label Studio's webhooks, which carry a secret of their own."""
READING = ("GET", "HEAD", "OPTIONS")
PRIVATE_DOMAINS = (".localhost", ".local", ".internal", ".home.arpa")
"""Never given to anybody by the public DNS."""
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)


def secure(app: Flask, settings: Settings) -> None:
    """Have every route of an application refuse who may not call, and forbid scripts and frames of others."""

    @app.before_request
    def check() -> Response | None:
        refuse_other_sites()
        if not settings.basic_auth_user:
            refuse_unknown_hosts(settings)
            return None
        return None if request.path in OPEN_PATHS or _has_password(settings) else _ask_for_password()

    @app.after_request
    def harden(answer: Response) -> Response:
        answer.headers["Content-Security-Policy"] = CONTENT_POLICY
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        answer.headers["Referrer-Policy"] = "same-origin"
        answer.headers.setdefault("Cache-Control", "no-store")
        return answer


def is_from_label_studio(settings: Settings) -> bool:
    """Whether an event carries the webhook's secret, or the password: that is how *Start Training* comes."""
    given = request.headers.get(webhook_secret.HEADER, "")
    return webhook_secret.is_webhook_secret(given, settings) or (
        bool(settings.basic_auth_user) and _has_password(settings)
    )


def refuse_other_sites() -> None:
    """Refuse what a browser sends for a page of another site: no such page may connect, pause or delete anything.

    Browsers add the password of basic auth by themselves, so a password does not tell. Label Studio and programs send
    neither of the two headers. Another port is another site too: Label Studio's own pages may not press our buttons.
    """
    if request.method in READING:
        return
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    same_host = origin is None or _netloc(origin) == request.host
    # a browser leaves out the first header over plain http, except to this machine itself
    if not (same_host if site is None else site == "same-origin"):
        raise CrossSiteRequest("This call came from a page of another site; use the backend's own page.")


def refuse_unknown_hosts(settings: Settings) -> None:
    """Refuse every call under a host name that may be another site's, which to a browser is then our own page.

    With basic auth there is no need: a browser gives the password to no other name.
    """
    host = _hostname(f"//{request.host}")
    if not is_ours(host, settings):
        raise CrossSiteRequest(
            f"The backend is not known to be at {host}; if it is, add that name to CAVSAM_ALLOWED_HOSTS, or call it by "
            "its IP address."
        )


def is_ours(host: str, settings: Settings) -> bool:
    """Tell whether a host name that a browser called us by can only be ours."""
    host = host.lower().rstrip(".")
    own = (settings.host, _hostname(settings.label_studio_url), *settings.allowed_hosts.split(","))
    if "." not in host or host.endswith(PRIVATE_DOMAINS) or host in {name.strip().lower() for name in own}:
        return True
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def may_read(settings: Settings) -> bool:
    """Tell whether whoever calls an open path may be told of addresses and folders."""
    return not settings.basic_auth_user or _has_password(settings)


def _has_password(settings: Settings) -> bool:
    given = request.authorization
    user = (given.username or "") if given else ""
    password = (given.password or "") if given else ""
    user_right = hmac.compare_digest(user.encode(), settings.basic_auth_user.encode())
    password_right = hmac.compare_digest(password.encode(), settings.basic_auth_password.encode())
    return given is not None and given.type == "basic" and user_right and password_right


def _ask_for_password() -> Response:
    answer = jsonify({"error": "Give the backend's user name and password (CAVSAM_BASIC_AUTH_USER)."})
    answer.status_code = 401
    answer.headers["WWW-Authenticate"] = 'Basic realm="cavsam"'
    return answer


def _netloc(address: str) -> str:
    try:
        return urlsplit(address).netloc
    except ValueError:
        return ""


def _hostname(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
