"""Prompt embeddings behind their cache: counted, shared, computed in one call, and never kept from a failure."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from serve_app.cache.cache import TieredCache
from serve_app.cache.memory import MemoryTier
from serve_app.core import Entry, Origin
from serve_app.errors import RenderFailed, TooLarge
from serve_app.render.latents import LatentsCache
from serve_app.render.text_encoding import AT_ONCE, PromptEmbedder, PromptEmbeds
from serve_app.telemetry import EmbeddingServed, Telemetry
from tests.serve_app.service.rig import Rig, until

A, B, N = "a" * 64, "b" * 64, "0" * 64


class CountingEncoder:
    """Embeds a prompt as its length; remembers each call, waits for `gate`, raises `failure`."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None

    def encode(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        self.calls.append(list(prompts))
        assert self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        if "bad" in prompts:
            raise TooLarge("a lot")
        return [torch.full((len(prompt) + 1, 4), float(len(prompt))) for prompt in prompts]


class Bench:
    def __init__(self, folder: Path) -> None:
        self.rig = Rig(folder)
        self.encoder = CountingEncoder()
        self.embedder = self.restarted()

    def restarted(self) -> PromptEmbedder:
        return PromptEmbedder(self.encoder, self.rig.cache(kind="embedding"), self.rig.telemetry)

    @property
    def served(self) -> list[str]:
        return [event.result for event in self.rig.events if isinstance(event, EmbeddingServed)]

    async def joined(self, requests: int) -> None:
        """Wait until so many requests have missed both prompts, and so wait for the encoder."""
        await until(lambda: len(self.served) == 2 * requests and bool(self.encoder.calls))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_one_call_for_both_prompts(bench: Bench) -> None:
    """Prompt and negative prompt are computed in one call and come back in that order, as float32 arrays."""
    embeds = await bench.embedder.embed((A, N), ("four", "no"))
    assert bench.encoder.calls == [["four", "no"]]
    assert embeds.embedding == "miss"
    assert (embeds.prompt_embeds.shape, embeds.negative_prompt_embeds.shape) == ((5, 4), (3, 4))
    assert embeds.prompt_embeds.dtype == np.float32
    assert bench.served == ["miss", "miss"]


async def test_found_again(bench: Bench) -> None:
    """A known prompt costs no call, in this process or the next; the bytes are the same."""
    first = await bench.embedder.embed((A, N), ("four", "no"))
    for embedder in (bench.embedder, bench.restarted()):
        await bench.embedder.settled()  # the shared tiers are written behind the answer
        again = await embedder.embed((A, N), ("four", "no"))
        assert again.embedding == "hit"
        assert np.array_equal(again.prompt_embeds, first.prompt_embeds)
    assert len(bench.encoder.calls) == 1
    assert bench.served == ["miss"] * 2 + ["hit"] * 4


async def test_only_what_is_missing(bench: Bench) -> None:
    """A new prompt with the known negative prompt computes the prompt alone; `embedding` speaks of the prompt."""
    await bench.embedder.embed((A, N), ("four", "no"))
    other = await bench.embedder.embed((B, N), ("seven!!", "no"))
    assert bench.encoder.calls[1:] == [["seven!!"]]
    assert other.embedding == "miss"
    known = await bench.embedder.embed((A, "1" * 64), ("four", "new"))
    assert (known.embedding, known.negative_prompt_embeds.shape) == ("hit", (4, 4))


async def test_prompt_equal_to_negative_prompt(bench: Bench) -> None:
    """When both are one prompt (equal keys) it is computed once and serves as both, cold and warm."""
    for expected in ("miss", "hit"):
        embeds = await bench.embedder.embed((A, A), ("same", "same"))
        assert embeds.embedding == expected
        assert np.array_equal(embeds.prompt_embeds, embeds.negative_prompt_embeds)
    assert bench.encoder.calls == [["same"]]


async def test_concurrent_equal_prompts_encode_once(bench: Bench) -> None:
    """Many requests for one prompt at one time are one call; a different one among them joins for what is shared."""
    bench.encoder.gate.clear()
    asked = [asyncio.create_task(bench.embedder.embed((A, N), ("four", "no"))) for _ in range(5)]
    await until(lambda: bool(bench.encoder.calls))
    asked.append(asyncio.create_task(bench.embedder.embed((B, N), ("seven!!", "no"))))
    await bench.joined(6)
    bench.encoder.gate.set()
    answers = await asyncio.gather(*asked)
    assert bench.encoder.calls == [["four", "no"], ["seven!!"]]
    assert all(np.array_equal(answer.negative_prompt_embeds, answers[0].negative_prompt_embeds) for answer in answers)


@pytest.mark.parametrize(
    ("failure", "told"), [(RuntimeError("CUDA at /a/path"), RenderFailed), (TooLarge("a lot"), TooLarge)]
)
async def test_a_failure_reaches_all_and_is_not_cached(bench: Bench, failure: Exception, told: type[Exception]) -> None:
    """Everybody who waited gets the failure, a foreign one without its text; the next request tries again."""
    bench.encoder.gate.clear()
    bench.encoder.failure = failure
    asked = [asyncio.create_task(bench.embedder.embed((A, N), ("four", "no"))) for _ in range(3)]
    await bench.joined(3)
    bench.encoder.gate.set()
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(result) for result in results} == {told}
    assert "/a/path" not in str(results[0])
    await until(lambda: len(bench.encoder.calls) == 3)
    assert bench.encoder.calls == [["four", "no"], ["four"], ["no"]]  # together, and then each by itself
    bench.encoder.failure = None
    assert (await bench.embedder.embed((A, N), ("four", "no"))).embedding == "miss"
    assert len(bench.embedder._flights) == 0
    await until(lambda: bench.embedder._runner is not None and bench.embedder._runner.done())


async def test_the_leaders_disconnect(bench: Bench) -> None:
    """The request that started the batch is cancelled; those who joined it get their embeddings."""
    bench.encoder.gate.clear()
    leader = asyncio.create_task(bench.embedder.embed((A, N), ("four", "no")))
    await until(lambda: bool(bench.encoder.calls))
    follower = asyncio.create_task(bench.embedder.embed((A, N), ("four", "no")))
    await bench.joined(2)
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)
    bench.encoder.gate.set()
    assert (await follower).prompt_embeds.shape == (5, 4)
    assert len(bench.encoder.calls) == 1


async def test_what_comes_while_the_encoder_is_busy_is_one_call(bench: Bench) -> None:
    """Misses of different requests that wait for the encoder go into its next call together, not one call each."""
    bench.encoder.gate.clear()
    asked = [asyncio.create_task(bench.embedder.embed((A, N), ("four", "no")))]
    await until(lambda: bool(bench.encoder.calls))
    asked += [asyncio.create_task(bench.embedder.embed((f"{n:064x}", N), (f"prompt {n}", "no"))) for n in range(1, 21)]
    await until(lambda: len(bench.embedder._missing) == 20)
    bench.encoder.gate.set()
    answers = await asyncio.gather(*asked)
    assert [len(call) for call in bench.encoder.calls] == [2, AT_ONCE, 20 - AT_ONCE]
    assert [len(answer.prompt_embeds) for answer in answers[1:]] == [len(f"prompt {n}") + 1 for n in range(1, 21)]


async def test_one_bad_prompt_fails_alone(bench: Bench) -> None:
    """Of prompts that were encoded together the one that the encoder refuses fails, all others are answered."""
    bench.encoder.gate.clear()
    first = asyncio.create_task(bench.embedder.embed((A, N), ("four", "no")))
    await until(lambda: bool(bench.encoder.calls))
    prompts = ["good", "bad", "fine"]
    asked = [asyncio.create_task(bench.embedder.embed((p.ljust(64, "0"), N), (p, "no"))) for p in prompts]
    await until(lambda: len(bench.embedder._missing) == 3)
    bench.encoder.gate.set()
    await first
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(answer) for answer in answers] == [PromptEmbeds, TooLarge, PromptEmbeds]


@pytest.mark.parametrize(
    ("dtype", "bytes_each"), [(torch.bfloat16, 2), (torch.float16, 2), (torch.float32, 4)], ids=str
)
async def test_half_precision_where_nothing_is_lost(bench: Bench, dtype: torch.dtype, bytes_each: int) -> None:
    """What a model computed in half precision is kept in it, what it did not is not; either comes back as it was."""
    values = torch.randn(7, 64, generator=torch.Generator().manual_seed(1)).to(dtype).float()
    bench.encoder.encode = lambda prompts: [values for _ in prompts]  # type: ignore[method-assign]
    await bench.embedder.embed((A, N), ("four", "no"))
    await bench.embedder.settled()
    found = await bench.rig.cache(kind="embedding").get(A)
    assert found is not None
    assert 0 <= found[0].size - 7 * 64 * bytes_each < 200
    again = await bench.restarted().embed((A, N), ("four", "no"))
    assert again.prompt_embeds.dtype == np.float32
    assert np.array_equal(again.prompt_embeds, values.numpy())


async def test_memory_is_bounded_in_bytes() -> None:
    """Two hundred prompts stay within the bound of the embeddings in memory; the last one is there."""
    cache = TieredCache("embedding", secret=b"secret", l1=MemoryTier(64 << 10))
    embedder = PromptEmbedder(CountingEncoder(), cache, Telemetry())
    for n in range(200):
        await embedder.embed((f"{n:064x}", N), (f"prompt {n}", "no"))
    held = cache.stats()["l1"]
    assert held["bytes"] <= 64 << 10
    assert held["evicted"] > 100
    assert cache.contains_now(f"{199:064x}")


async def test_an_invalidated_embedding_is_computed_anew(bench: Bench) -> None:
    """What was begun before a render's invalidations is a miss in every tier, and replaced there for everybody."""
    await bench.embedder.embed((A, N), ("four", "no"), Origin(begun_at=5, labels=("l",)))
    await bench.embedder.settled()
    assert (await bench.embedder.embed((A, N), ("four", "no"), Origin(7, 5))).embedding == "hit"
    assert (await bench.embedder.embed((A, N), ("four", "no"), Origin(9, 8, ("l",)))).embedding == "miss"
    await bench.embedder.settled()
    found = await bench.rig.cache(kind="embedding").get(A)
    assert found is not None
    assert (found[0].meta["begun_at"], found[0].meta["labels"]) == (9, ["l"])
    assert (await bench.embedder.embed((A, N), ("four", "no"), Origin(12, 8))).embedding == "hit"


UNREADABLE = {
    "nothing": b"",
    "noise": bytes(range(256)),
    "a header that is none": (1 << 40).to_bytes(8, "little") + b"{}",
    "deep": (60_000).to_bytes(8, "little") + b"[" * 60_000,
    "another name": safetensors.torch.save({"x": torch.zeros(2, 4)}),
    "another shape": safetensors.torch.save({"embeds": torch.zeros(2)}),
    "integers": safetensors.torch.save({"embeds": torch.zeros(2, 4, dtype=torch.int32)}),
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_a_payload_that_cannot_be_read_is_a_miss(bench: Bench, data: bytes) -> None:
    """Stored by a release with another form, whole and ours: computed anew, and stored in its place."""
    cache = bench.rig.cache(kind="embedding")
    await cache.put(Entry.of(A, data))
    first = await bench.embedder.embed((A, N), ("an orange", ""))
    assert first.embedding == "miss"
    await bench.embedder.settled()
    again = await bench.restarted().embed((A, N), ("an orange", ""))
    assert again.embedding == "hit"
    assert np.array_equal(again.prompt_embeds, first.prompt_embeds)


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_latents_that_cannot_be_read_are_a_miss(bench: Bench, data: bytes) -> None:
    """The same of latents: none, and no longer there."""
    cache = bench.rig.latents()
    await cache.put(Entry.of(A, data))
    assert await LatentsCache(cache).find(A) is None
    assert await cache.where(A) == {"l3": False}
