"""Requests that are made to hurt: for every route, content type and field, what is long, deep, many, odd or cut."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sizes import SMALLEST

MIB = 2**20
JSON, URL_ENCODED = "application/json", "application/x-www-form-urlencoded"
VIDEO_ROUTES = ("/v1/videos", "/v1/videos/sync", "/v1/explain")
SMALL: dict[str, Any] = {"size": SMALLEST, "num_frames": 8, "num_inference_steps": 2}
NUMBERS = (
    "seed",
    "width",
    "height",
    "num_frames",
    "seconds",
    "fps",
    "num_inference_steps",
    "guidance_scale",
    "quality",
)
TEXTS = ("prompt", "negative_prompt", "model", "size", "priority", "tags", "correct_typos", "deadline_seconds")
FIELDS = (*TEXTS, *NUMBERS, "input_reference")
PROMPTS = (
    "x" * 1990, "definately" * 190, "don't " * 330, "'" * 1990, '"' * 1990, " '" * 990, '"a" ' * 490, "--" * 990,
    ". " * 990, "a, " * 660, "\u0344" * 1990, "\u0f71\u0f72\u0f74" * 660, "\ufdfa" * 1990, "\u00bd" * 1990,
    "1\u00bd" * 990,
    "\u5e2e\u6211\u751f\u6210" * 490, "\u7684\u89c6\u9891" * 660, "\u9ad4" * 1990, "make a video of " * 124,
    "\u0130" * 1990,
    "\U0001f468\u200d" * 990, "\U0001f3f4\U000e0067" * 990, "\ue000" * 1990, "\ufe0f" * 1990, "aaaa " * 398,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """One request; `make` gives its body when its turn comes, so that only one is in memory."""

    kind: str
    method: str
    path: str
    make: Callable[[], bytes] = lambda: b""
    content_type: str | None = JSON
    query: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def all_cases() -> Iterator[Case]:
    """Yield every case."""
    for route in VIDEO_ROUTES:
        yield from _json_cases(route)
        yield from _form_cases(route)
    yield from _prompt_cases()
    yield from _warm_cases()
    yield from _invalidation_cases()
    yield from _header_and_path_cases()
    yield from _image_cases()


def largest_images() -> Iterator[Case]:
    """Yield images that are as large as they may be: they are read, in the memory that the settings document."""
    for colour, bits in ((2, 8), (6, 16), (0, 16), (4, 8)):
        yield _image(f"PNG, colour type {colour}, {bits} bits", lambda c=colour, b=bits: png(8000, 5000, c, b))
    yield _image("progressive JPEG", lambda: jpeg((8000, 5000)))
    yield _image("lossless WebP", lambda: webp((8000, 5000)))


def _json_cases(route: str) -> Iterator[Case]:
    values: dict[str, Callable[[], Any]] = {
        "long text": lambda: "x" * 900_000, "long text of accents": lambda: "\u0301" * 400_000,
        "many commas": lambda: "," * 900_000, "many words": lambda: "ab " * 300_000, "long list": lambda: [1] * 90_000,
        "long list of texts": lambda: ["a"] * 90_000, "many names": lambda: {str(n): n for n in range(40_000)},
        "deep": lambda: _Raw("[" * 450 + "]" * 450), "very deep": lambda: _Raw("[" * 450_000 + "]" * 450_000),
        "long number": lambda: _Raw("9" * 900_000), "wide float": lambda: _Raw("1e400"), "NaN": lambda: _Raw("NaN"),
        "digits as text": lambda: "9" * 900_000, "surrogates": lambda: _Raw('"' + "\\ud800" * 100_000 + '"'),
        "lists of nothing": lambda: _Raw("[" + ",".join(["[]"] * 300_000) + "]"), "quotes": lambda: '"' * 400_000,
    }  # fmt: skip
    for name in FIELDS:
        for kind, value in values.items():
            yield Case(f"JSON: {kind}", "POST", route, lambda n=name, v=value: _json(n, v()))
    yield Case("JSON: a long name", "POST", route, lambda: json.dumps({"p" * 900_000: 1}).encode())
    yield Case("JSON: many names", "POST", route, lambda: json.dumps({f"n{n}": n for n in range(60_000)}).encode())
    yield Case("JSON: one name often", "POST", route, lambda: b'{"prompt":"p"' + b',"seed":1' * 90_000 + b"}")
    yield Case("JSON: cut", "POST", route, lambda: b'{"prompt":"' + b"x" * 900_000)
    yield Case("JSON: garbage behind", "POST", route, lambda: b'{"prompt":"p"}' + b"[" * 900_000)
    yield Case("JSON: blanks", "POST", route, lambda: b" " * MIB)


def _form_cases(route: str) -> Iterator[Case]:
    for name in FIELDS:
        for kind, value in (("commas", b"," * 500_000), ("percent", b"%41" * 300_000), ("plus", b"+" * 900_000)):
            yield Case(f"form: {kind}", "POST", route, lambda n=name, v=value: f"{n}=".encode() + v, URL_ENCODED)
    yield Case("form: many pairs", "POST", route, lambda: b"a=1&" * 250_000, URL_ENCODED)
    yield Case("form: only &", "POST", route, lambda: b"&" * MIB, URL_ENCODED)
    part = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    bodies: dict[str, Callable[[], bytes]] = {
        "10,000 parts": lambda: b"".join(part % (b"n%d" % n, b"1") for n in range(10_000)) + b"--x--\r\n",
        "long headers": lambda: b"--x\r\nA: " + b"b" * 900_000 + b"\r\n\r\n\r\n--x--\r\n",
        "many headers": lambda: b"--x\r\n" + b"A: b\r\n" * 150_000 + b"\r\n\r\n--x--\r\n",
        "long name": lambda: part % (b"n" * 900_000, b"1") + b"--x--\r\n",
        "options": lambda: b"--x\r\nContent-Disposition: form-data" + b"; a=b" * 200_000 + b"\r\n\r\n1\r\n--x--\r\n",
        "almost boundaries": lambda: part % (b"prompt", b"\r\n--" * 220_000) + b"--x--\r\n",
        "carriage returns": lambda: part % (b"prompt", b"\r" * 900_000) + b"--x--\r\n",
        "cut": lambda: part % (b"prompt", b"x" * 900_000),
        "behind the end": lambda: b"--x--\r\n" + b"--x" * 300_000,
        "tags": lambda: part % (b"tags", b"," * 900_000) + b"--x--\r\n",
    }  # fmt: skip
    for kind, body in bodies.items():
        yield Case(f"multipart: {kind}", "POST", route, body, "multipart/form-data; boundary=x")


def _prompt_cases() -> Iterator[Case]:
    for prompt in PROMPTS:
        for other in ("", prompt):
            yield Case("prompt: odd text", "POST", "/v1/videos/sync", lambda p=prompt, o=other: _prompt(p, o))
        yield Case("prompt: odd text", "POST", "/v1/cache/invalidate", lambda p=prompt: _body({"prompt": p}))


def _warm_cases() -> Iterator[Case]:
    numbers = [str(n) for n in range(100)]
    templates: dict[str, Callable[[], Any]] = {
        "long values": lambda: [{"prompt": "{a}" * 20_000, "variables": {"a": ["x" * 50_000]}}],
        "10^8 combinations": lambda: [{"prompt": "{a}{b}{c}{d}", "variables": dict.fromkeys("abcd", numbers)}],
        "10^4000 combinations": lambda: [
            {"prompt": "".join(f"{{v{n}}}" for n in range(4_000)),
            "variables": {f"v{n}": ["1"] * 10 for n in range(4_000)}}
        ],
        "many braces": lambda: [{"prompt": "{{" * 400_000}],
        "many values": lambda: [{"prompt": "{a}", "variables": {"a": ["x"] * 90_000}}],
        "many templates": lambda: [{"prompt": "x"}] * 40_000,
        "a deep ttl": lambda: [{"prompt": "x", "ttl": [[["1"]]] * 10_000}],
        "a long name": lambda: [{"prompt": "{" + "a" * 900_000 + "}"}],
        "odd prompts": lambda: [{"prompt": "{a}",
        "variables": {"a": [p + str(n) for p in PROMPTS[:5] for n in range(60)]}}],
    }  # fmt: skip
    for kind, made in templates.items():
        for dry in (True, False):
            yield Case(
                f"warm: {kind}", "POST", "/v1/cache/warm", lambda m=made, d=dry: _body({"templates": m(), "dry_run": d})
            )


def _invalidation_cases() -> Iterator[Case]:
    for number in range(1_200):
        yield Case("1,200 rules", "POST", "/v1/cache/invalidate", lambda n=number: _body({"tag": f"t{n}"}))
    for name in ("key", "prompt", "model", "fingerprint", "tag", "older_than_seconds"):
        for value in ("x" * 900_000, "\u0301" * 300_000, 10**300, [1] * 50_000):
            yield Case(
                "invalidate: long", "POST", "/v1/cache/invalidate", lambda n=name, v=value: json.dumps({n: v}).encode()
            )


def _header_and_path_cases() -> Iterator[Case]:
    long = "x" * 60_000
    for path in ("/v1/videos/{}", "/v1/videos/{}/content", "/v1/videos/{}/events", "/v1/cache/warm/{}"):
        for text in (long, "video_" + "A" * 84, "video_" + "A" * 60_000, "\u00e9" * 20_000, "a/" * 10_000):
            yield Case("path: long id", "GET", path.format(text), content_type=None)
    for headers in (
        {"Range": "bytes=" + ",".join(f"{n}-{n}" for n in range(1_000))}, {"Range": "bytes=" + "9" * 60_000 + "-"},
        {"If-None-Match": ", ".join([f'"{n:064x}"' for n in range(900)])}, {"If-None-Match": "," * 60_000},
        {"Last-Event-ID": long}, {"Idempotency-Key": long}, {"x-stainless-retry-count": "9" * 60_000},
        {"Content-Type": "multipart/form-data; boundary=" + long}, {"Content-Type": "a" + "; b=c" * 12_000},
    ):  # fmt: skip
        for method, path in (
            ("GET", "/v1/videos/video_x/content"),
            ("POST", "/v1/videos"),
            ("GET", "/v1/videos/x/events"),
        ):
            body = (lambda: _prompt("p", "")) if method == "POST" else (lambda: b"")
            yield Case("header: long", method, path, body, JSON if method == "POST" else None, headers=headers)
    for query in (
        b"a=1&" * 15_000,
        b"&" * 60_000,
        b"after=" + b"%41" * 20_000,
        b"limit=" + b"9" * 60_000,
        b"seed=7",
        b"%zz",
    ):
        for method, path in (
            ("GET", "/v1/videos"),
            ("POST", "/v1/videos/sync"),
            ("GET", "/healthz"),
            ("POST", "/invalidate"),
        ):
            yield Case("query: odd", method, path, lambda: b"", None, query)


def _image_cases() -> Iterator[Case]:
    images: dict[str, Callable[[], bytes]] = {
        "1 x 40,000,000": lambda: png(1, 40_000_000), "a million chunks": lambda: png(64, 64, chunks=800_000),
        "128 scans": _scans, "a million segments": lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 2_000_000 + b"\xff\xd9",
        "a bomb in zTXt": lambda: png(64, 64, more=(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 60_000_000))),
        "a bomb in iCCP": lambda: png(64, 64, more=(b"iCCP", b"a\0\0" + zlib.compress(b"x" * 60_000_000))),
        "a header that lies": lambda: png(64, 64)[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + png(64, 64)[24:],
        "cut": lambda: png(512, 512)[:-300], "10 MiB of nothing": lambda: b"\x89PNG\r\n\x1a\n" + bytes(10 * MIB - 8),
        "a WebP animation": _animation, "a WebP of 34 bytes and 16383 x 16383": lambda: webp((64, 64))[:21] + bytes(13),
    }  # fmt: skip
    for kind, image in images.items():
        yield _image(kind, image)
    yield Case("image: 10 MiB as a data: URL", "POST", "/v1/explain", lambda: _data_url(bytes(10 * MIB)))
    yield Case("image: data: URLs", "POST", "/v1/explain", lambda: b'{"prompt":[' + b'"data:",' * 120_000 + b'""]}')


def _image(kind: str, image: Callable[[], bytes]) -> Case:
    head = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\np\r\n--x\r\nContent-Disposition: form-data; '
    head += b'name="input_reference"; filename="a"\r\n\r\n'
    return Case(
        f"image: {kind}",
        "POST",
        "/v1/explain",
        lambda: head + image() + b"\r\n--x--\r\n",
        "multipart/form-data; boundary=x",
    )


@dataclass(frozen=True, slots=True)
class _Raw:
    """JSON as it is to be sent."""

    text: str


def _json(name: str, value: Any) -> bytes:
    fields: dict[str, Any] = {"prompt": "p"} | {name: "@" if isinstance(value, _Raw) else value}
    text = json.dumps(fields)
    return (text.replace('"@"', value.text) if isinstance(value, _Raw) else text).encode()


def _body(fields: Any) -> bytes:
    return json.dumps(fields).encode()


def _prompt(prompt: str, negative: str) -> bytes:
    return _body({"prompt": prompt, **SMALL} | ({"negative_prompt": negative} if negative else {}))


def _data_url(data: bytes) -> bytes:
    url = b"data:image/png;base64," + base64.b64encode(data)
    return b'{"prompt":"p","input_reference":{"image_url":"' + url + b'"}}'


def png(
    width: int, height: int, colour: int = 2, bits: int = 8, *, chunks: int = 0, more: tuple[bytes, bytes] | None = None
) -> bytes:
    """Return a black PNG, made row by row, with empty or other chunks in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = 1 + (width * {0: 1, 2: 3, 4: 2, 6: 4}[colour] * bits + 7) // 8
    packer, rows = zlib.compressobj(9), max(1, MIB // row)
    packed = [packer.compress(bytes(row * min(rows, height - done))) for done in range(0, height, rows)]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    extra = chunk(b"teST", b"") * chunks + (chunk(*more) if more else b"")
    pixels = chunk(b"IDAT", b"".join(packed) + packer.flush())
    return b"\x89PNG\r\n\x1a\n" + header + extra + pixels + chunk(b"IEND", b"")


def jpeg(size: tuple[int, int]) -> bytes:
    """Return a black progressive JPEG."""
    return _saved(size, "JPEG", progressive=True)


def webp(size: tuple[int, int]) -> bytes:
    """Return a black lossless WebP."""
    return _saved(size, "WEBP", lossless=True, method=0)


def _saved(size: tuple[int, int], form: str, **options: Any) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", size).save(out, form, **options)
    return out.getvalue()


def _scans() -> bytes:
    made = jpeg((8000, 5000))
    last = made[made.rindex(b"\xff\xda") : -2]
    return made[:-2] + last * (128 - made.count(b"\xff\xda")) + b"\xff\xd9"


def _animation() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    frames = [Image.new("RGB", (256, 256), (n, 0, 0)) for n in range(40)]
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:])
    return out.getvalue()
