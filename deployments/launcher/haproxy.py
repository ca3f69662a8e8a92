"""What is changed in the HAProxy configuration that Ray 2.60 generates, because Ray has no setting for it.

Ray runs `haproxy.sh` as its HAProxy; that runs this file, which rewrites the configuration and becomes HAProxy, with
the same process id. What changes:

- statistics and metrics listen on loopback alone;
- a client has so long for a request's headers, for its body, and between two bytes; connections have a bound, all of
  them and, where wanted, those of one address;
- only replicas of this very server are asked and believed: they show its instance id in the health check and in every
  answer, and refuse requests that carry another (`deployments/replica/instance.py`). So a port that a dead replica
  left and another program took is never taken for ours;
- errors of HAProxy and of the replicas' HTTP server have the OpenAI form. What is no HTTP at all, or has too large a
  head, HAProxy refuses before any file or rule is looked at: a 400 in HTML;
- as long as no route is known, and for what HAProxy itself cannot do, the answer is a 503 in the OpenAI form with
  Retry-After, never a 404 or a 500;
- a HAProxy that starts anew while routes are not known yet goes on with the routes that were known last, and whatever
  HAProxy still runs for this configuration hands its port over.

Standard library only, and no import of ours: it runs at every reload, and Ray waits for it.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

OPTIONS_VARIABLE = "ENCORE_HAPROXY_OPTIONS"
BINARY_VARIABLE = "ENCORE_HAPROXY_BINARY"
PYTHON_VARIABLE = "ENCORE_PYTHON"
LAST_ROUTES = ".routes"
"""Suffix of the copy of the last configuration that had routes."""
STAND_IN = ".stand-in"
HEADER = "x-encore-instance"


@dataclass(frozen=True, slots=True)
class Options:
    """How HAProxy treats clients, and by what it knows its replicas; times in seconds."""

    instance: str
    header_timeout: float
    body_timeout: float
    idle_timeout: float
    max_connections: int
    max_connections_per_address: int | None = None

    def to_json(self) -> str:
        """Return it as the value of OPTIONS_VARIABLE."""
        return json.dumps(asdict(self))


def rewrite(generated: str, options: Options, folder: Path) -> str:
    """Return Ray's configuration with our changes; `folder` is where `write_error_files` wrote."""
    has_routes = knows_routes(generated)
    lines: list[str] = []
    section = ""
    for line in generated.splitlines():
        if line and not line[0].isspace():
            section = line
        lines += _rewritten(line, section, options, folder, has_routes)
    return "\n".join(lines) + "\n"


def knows_routes(generated: str) -> bool:
    """Tell whether a configuration of Ray's has an application to ask."""
    return re.search(r"^ *use_backend ", generated, re.MULTILINE) is not None


def _rewritten(line: str, section: str, options: Options, folder: Path, has_routes: bool) -> list[str]:
    words = line.split()
    match words[:2]:
        case ["bind", _]:
            here = re.sub(r"(bind )\*?:", r"\g<1>127.0.0.1:", line)
            return [here, *(_frontend(options) if section == "frontend http_frontend" else ())]
        case ["maxconn", _]:
            return [f"    maxconn {options.max_connections}", "    no strict-limits"]
        case ["timeout", "client"]:
            return [
                f"    timeout client {_milliseconds(options.idle_timeout)}",
                f"    timeout http-request {_milliseconds(options.header_timeout)}",
            ]
        case ["timeout", "http-request"]:
            return []
        case ["errorfile", "502"]:
            return [f"    errorfile {status} {folder / f'{status}.http'}" for status in ERRORS]
        case ["errorfile", _]:
            return []
        case ["http-check", "expect"] if section.startswith("backend http-"):
            return _backend(line, options)
        case ["http-request", "return"] if section == "backend default_backend" and not has_routes:
            return [f"    {_returned(503, 'http-request')}"]
    return [line]


def _frontend(options: Options) -> list[str]:
    lines = []
    if options.max_connections_per_address is not None:
        most = options.max_connections_per_address
        lines = [
            "stick-table type ipv6 size 100k expire 10m store conn_cur",
            "tcp-request connection track-sc0 src",
            f"tcp-request connection reject if {{ sc0_conn_cur gt {2 * most} }}",
            f"{_returned(429, 'http-request')} if {{ sc0_conn_cur gt {most} }}",
        ]
    lines += [
        f"http-request set-var(txn.encore_asked) bool(true) if {{ req.hdr({HEADER}) -m str {options.instance} }}",
        f"http-request set-header {HEADER} {options.instance}",
        f"http-request wait-for-body time {_milliseconds(options.body_timeout)} unless METH_GET",
    ]
    return [f"    {line}" for line in lines]


def _backend(expected: str, options: Options) -> list[str]:
    lines = [
        f"http-check send hdr {HEADER} {options.instance}",
        expected.strip(),
        f'http-check expect hdr name "{HEADER}" value "{options.instance}"',
        f"{_returned(503, 'http-response')} unless {{ res.hdr({HEADER}) -m str {options.instance} }}",
        # Ray's own proxy, asked while no replica is there, and before it has heard of a route
        f"{_returned(503, 'http-response')} if {{ status 404 }} {{ srv_name -m beg SERVE_PROXY_ACTOR }}",
        # what the replica's HTTP server answers before the application, as text
        *(
            f"{_returned(status, 'http-response')} if {{ status {status} }} !{{ res.hdr(content-type) -m beg {_JSON} }}"
            for status in _ANSWERED_BY_RAY
        ),
        f"http-response del-header {HEADER} unless {{ var(txn.encore_asked) -m bool }}",
    ]
    return [f"    {line}" for line in lines]


ERRORS: dict[int, tuple[str, str, str, str]] = {
    400: (
        "Bad Request",
        "invalid_request_error",
        "invalid_request",
        "The request is not valid HTTP, or its body ceased to arrive (setting client_idle_timeout_seconds).",
    ),
    403: ("Forbidden", "invalid_request_error", "forbidden", "The request is not allowed here."),
    405: ("Method Not Allowed", "invalid_request_error", "invalid_request", "The server has no such method."),
    408: (
        "Request Timeout",
        "invalid_request_error",
        "request_timeout",
        "The request took too long to arrive (settings client_header_timeout_seconds, client_body_timeout_seconds).",
    ),
    413: (
        "Content Too Large",
        "invalid_request_error",
        "request_too_large",
        "The request is larger than the server takes (settings max_body_bytes, max_image_bytes).",
    ),
    422: (
        "Unprocessable Content",
        "invalid_request_error",
        "invalid_request",
        "The request's Transfer-Encoding is not understood; send the body as it is, or chunked.",
    ),
    429: (
        "Too Many Requests",
        "rate_limit_error",
        "too_many_connections",
        "This address has too many connections (setting max_connections_per_address); close some and try again.",
    ),
    500: ("Internal Server Error", "server_error", "internal_error", "The server failed; its log says more."),
    501: ("Not Implemented", "invalid_request_error", "not_supported", "The server does not know this part of HTTP."),
    502: ("Bad Gateway", "server_error", "unavailable", "The server broke off; ask again."),
    503: ("Service Unavailable", "server_error", "unavailable", "The server is starting or recovering; try again."),
    504: ("Gateway Timeout", "server_error", "unavailable", "The server did not answer in time; ask again."),
}
"""By status: its reason, and type, code and message of the OpenAI form."""
RETRY_AFTER = 1
_ANSWERED_BY_RAY = (400, 408, 500, 502, 503, 504)
_JSON = "application/json"
_WORTH_ANOTHER_TRY = (429, 502, 503, 504)


def _body(status: int) -> str:
    _, kind, code, message = ERRORS[status]
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}, separators=(",", ":"))


def _returned(status: int, rule: str) -> str:
    text = _body(status).replace("\\", "\\\\").replace('"', '\\"')
    retry = f" hdr Retry-After {RETRY_AFTER}" if status in _WORTH_ANOTHER_TRY else ""
    return f'{rule} return status {status} content-type {_JSON} string "{text}"{retry}'


def write_error_files(folder: Path) -> None:
    """Write what HAProxy itself answers, one file a status."""
    for status, (reason, *_) in ERRORS.items():
        body = _body(status)
        retry = f"Retry-After: {RETRY_AFTER}\r\n" if status in _WORTH_ANOTHER_TRY else ""
        head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        (folder / f"{status}.http").write_text(
            f"{head}{retry}Cache-Control: no-store\r\nConnection: close\r\n\r\n{body}"
        )


def _milliseconds(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"


def prepare(config: Path, options: Options) -> None:
    """Rewrite the configuration in `config`, which Ray has just generated."""
    generated = config.read_text()
    last = config.with_name(config.name + LAST_ROUTES)
    if knows_routes(generated):
        last.write_text(generated)
    elif last.exists():
        generated = last.read_text()
    write_error_files(config.parent)
    config.write_text(rewrite(generated, options, config.parent))


def stand_in_of(config: Path) -> Path:
    """Return where the configuration of the launcher's own HAProxy is, which stands in for one that died."""
    return config.with_name(config.name + STAND_IN)


def write_stand_in(config: Path, options: Options) -> Path:
    """Write the last configuration that had routes for a stand-in; raises OSError when there was none.

    Its administration socket is another one: Ray must see that its own HAProxy is gone, and start it again.
    """
    text = rewrite(config.with_name(config.name + LAST_ROUTES).read_text(), options, config.parent)
    stand_in = stand_in_of(config)
    stand_in.write_text(re.sub(r"(stats socket \S+)", r"\1.2", text))
    return stand_in


def running(config: Path) -> list[int]:
    """Return the ids of the HAProxy processes of `config` or its stand-in; empty where there is no /proc."""
    configs = {str(config).encode(), str(stand_in_of(config)).encode()}
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = cmdline.read_bytes().split(b"\0")
        except OSError:
            continue
        if configs & set(words) and os.path.basename(words[0]) == b"haproxy":  # noqa: PTH119 - bytes
            found.append(int(cmdline.parent.name))
    return found


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def main(arguments: list[str]) -> None:
    """Become HAProxy with `arguments`."""
    binary = os.environ[BINARY_VARIABLE]
    if "-f" in arguments:
        config = Path(arguments[arguments.index("-f") + 1])
        prepare(config, Options(**json.loads(os.environ[OPTIONS_VARIABLE])))
        if "-sf" not in arguments and (others := running(config)):
            arguments = [*arguments, "-sf", *map(str, others)]
        _die_with_parent()
    os.execv(binary, [binary, *arguments])  # noqa: S606 - the point


if __name__ == "__main__":
    main(sys.argv[1:])
