"""What imports what: no cycles, lazy imports counted, and no torch in what runs in the router."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]


def modules() -> dict[str, Path]:
    """Return the path of each module of the project, by its name."""
    paths = [path for package in ("serve_app", "deployments") for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports(path: Path, names: set[str]) -> set[str]:
    """Return the modules of `names` that a file imports anywhere, inside functions too; not for types alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in names else node.module)
    return found & names


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """Return what is left when modules that import nothing left are taken away, again and again."""
    left = dict(graph)
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def test_there_is_no_import_cycle() -> None:
    """Modules can be put in an order in which each imports only earlier ones, also where an import is lazy."""
    known = modules()
    graph = {name: imports(path, set(known)) - {name} for name, path in known.items()}
    assert sum(map(len, graph.values())) > 1000
    assert cycles(graph) == []
    assert cycles({"a": {"b"}, "b": {"a"}, "c": {"a"}, "d": set()}) == ["a", "b", "c"]


def test_the_router_opens_without_torch(tmp_path: Path) -> None:
    """With torch, transformers and diffusers blocked a router's service opens and explains, and its API builds."""
    program = """
        import asyncio, sys

        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("torch", "transformers", "diffusers"):
                    raise ImportError(f"{name} is blocked")

        sys.meta_path.insert(0, Blocked())

        from serve_app.api.api import build_api
        from serve_app.schema import VideoRequest
        from serve_app.settings import Settings
        from serve_app.telemetry import Telemetry
        from serve_app.wiring.router import open_service

        class Renderer:
            async def stats(self):
                return {}

        async def main():
            service = open_service(Settings(l3_url=sys.argv[1]), Renderer(), None, Telemetry())
            build_api(service, max_body_bytes=1000)
            told = await service.explain(VideoRequest(prompt="a red circle moves left"))
            assert told["tiers"] == {"l1": False, "l3": False}, told["tiers"]
            await service.aclose()

        asyncio.run(main())
        print("opened")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), f"file://{tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "opened\n"), done.stderr
