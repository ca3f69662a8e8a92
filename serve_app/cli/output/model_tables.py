"""The tables of `encore model`, for people: parts, grid, memory, rooflines, and what is left of the claim."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from serve_app.model.roofline import PRECISIONS, STEPS, Claim, Roofline, Sizing, Work

UNSERVED = "an architecture without weights, so it cannot be served"
PARTS = {
    "text_encoder": "text encoder",
    "denoiser": "denoiser",
    "encoder": "frame encoder (training only)",
    "decoder": "frame decoder",
}
NOTES = (
    "FLOPs: a multiplication and an addition are two. One pass is that of one clip; a guided clip takes two a step.",
    "Memory: text encoder, denoiser in the precision, decoder, and the most activations alive at one time, counted op "
    "by op in fp16: a guided pass of the batch with a clip decoding beside it. An allocator's fragments and workspaces "
    "come on top.",
)
PEAKS = (
    "Seconds a guided clip takes alone if every pass runs at the published dense peaks; at half of them, twice that. "
    "int8 and fp8 hold for weights and activations of the denoiser's linear layers and convolutions; a card without "
    "fp8 hardware only stores fp8. Products are summed in fp32 unless the precision says otherwise.",
)


def print_model(
    model: str,
    served: bool,
    sizing: Sizing,
    works: Sequence[Work],
    cases: Sequence[Roofline],
    claim: Claim,
    efficiencies: Sequence[float],
) -> None:
    """Print everything on standard output; without cases, nothing of cards and the claim."""
    console = Console(markup=False, highlight=False)
    width, height = sizing.size
    console.print(f"{model}, {width}x{height}{'' if served else f': {UNSERVED}'}.\n")
    for table in (_parts(sizing), _grid(sizing, works), _clips(works), _memory(works)):
        console.print(table)
    away = [f"Not in that memory, because it is elsewhere: {PARTS[name]}." for name in works[0].elsewhere]
    console.print(*NOTES, *away, sep="\n", end="\n\n")
    if cases:
        for table in _rooflines(cases):
            console.print(table)
        console.print(*PEAKS, _batching(cases), sep="\n", end="\n\n")
        console.print(_kept(cases, claim, efficiencies))
        for efficiency in efficiencies:
            console.print(_sentence(cases, claim, efficiency))


def _table(title: str, *columns: str) -> Table:
    first, *others = columns
    table = Table(first, title=title, title_justify="left")
    for column in others:
        table.add_column(column, justify="left" if column == "precision" else "right", no_wrap=True)
    return table


def _parts(sizing: Sizing) -> Table:
    table = _table("Parameters", "part", "parameters")
    parameters = sizing.parameters()
    for name, count in parameters.items():
        table.add_row(PARTS[name], f"{count:,}")
    table.add_row("all", f"{sum(parameters.values()):,}")
    return table


def _grid(sizing: Sizing, works: Sequence[Work]) -> Table:
    table = _table("Grid and computing", "frames", "latents", "tokens", "GFLOPs a pass", "GFLOPs of decoding")
    for work in works:
        if work.batch == 1:
            latents = "x".join(map(str, sizing.latent_shape(work.frames)))
            figures = (f"{flops / 1e9:,.1f}" for flops in (work.pass_flops, work.decode.flops))
            table.add_row(str(work.frames), latents, f"{sizing.tokens(work.frames):,}", *figures)
    return table


def _clips(works: Sequence[Work]) -> Table:
    table = _table(
        "GFLOPs of a guided clip: prompts, steps, decoding", "frames", *(f"{steps} steps" for steps in STEPS)
    )
    for work in works:
        if work.batch == 1:
            table.add_row(str(work.frames), *(f"{work.video_flops(steps) / 1e9:,.1f}" for steps in STEPS))
    return table


def _memory(works: Sequence[Work]) -> Table:
    batches = [f"batch {batch}" for batch in dict.fromkeys(work.batch for work in works)]
    table = _table("Memory: weights and peak activations", "precision", "weights", "frames", *batches)
    for precision in PRECISIONS:
        table.add_section()
        names = [precision, _bytes(works[0].weight_bytes(precision))]
        for frames, own in groupby(works, lambda work: work.frames):
            table.add_row(*names, str(frames), *(_bytes(work.memory_bytes(precision)) for work in own))
            names = ["", ""]
    return table


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _rooflines(cases: Sequence[Roofline]) -> Iterator[Table]:
    """Yield a table per card: with all of them in one, a terminal of 80 columns cuts the names and the figures."""
    alone = [case for case in cases if case.batch == 1]
    for card, of_card in groupby(alone, lambda case: case.card):
        table = _table(f"{card}: least seconds a clip", "precision", "frames", *(f"{steps} steps" for steps in STEPS))
        for precision, of_precision in groupby(of_card, lambda case: case.precision):
            table.add_section()
            name = precision
            for frames, own in groupby(of_precision, lambda case: case.frames):
                table.add_row(name, str(frames), *(f"{case.clip_seconds:.2f}" for case in own))
                name = ""
        yield table


def _batching(cases: Sequence[Roofline]) -> str:
    alone = {
        (case.card, case.precision, case.frames, case.steps): case.clip_seconds for case in cases if case.batch == 1
    }
    shares = [
        case.clip_seconds / alone[case.card, case.precision, case.frames, case.steps]
        for case in cases
        if case.batch > 1
    ]
    return f"In a larger batch a clip's share of the time is {min(shares):.2f} to {max(shares):.2f} of that."


def _kept(cases: Sequence[Roofline], claim: Claim, efficiencies: Sequence[float]) -> Table:
    own = [case for case in cases if case.card == claim.card]
    lengths = list(dict.fromkeys(case.frames for case in own))
    columns = [f"{frames}\n{share:.0%}" for share in efficiencies for frames in lengths]
    title = "Batches that keep the claim, by frames"
    table = _table(title, "precision", "steps", *columns)
    kept = {share: set(claim.kept(cases, share)) for share in efficiencies}
    for precision, steps in dict.fromkeys((case.precision, case.steps) for case in own):
        kind = [case for case in own if (case.precision, case.steps) == (precision, steps)]
        cells = [
            " ".join(str(case.batch) for case in kind if case.frames == frames and case in kept[share]) or "-"
            for share in efficiencies
            for frames in lengths
        ]
        table.add_row(precision, str(steps), *cells)
    return table


def _sentence(cases: Sequence[Roofline], claim: Claim, efficiency: float) -> str:
    """Say in words at which precisions and steps the claim holds: for everything it names, then length by length."""
    own, kept = [case for case in cases if case.card == claim.card], claim.kept(cases, efficiency)
    by_clip, by_batch = (claim.everywhere(cases, efficiency, whole_batch=whole) for whole in (False, True))
    lengths = (
        f"{frames} frames: {_most(claim.everywhere([case for case in cases if case.frames == frames], efficiency))}"
        for frames in dict.fromkeys(case.frames for case in own)
    )
    return (
        f"At {efficiency:.0%} of the {claim.card}'s peaks '{claim.words}' holds in {len(kept)} of {len(own)} cases: "
        f"at most {claim.seconds:g} s a clip and less than {claim.gigabytes:g} GB. "
        f"For every length and batch: {_most(by_clip)} (waiting for the whole batch: {_most(by_batch)}). "
        f"For every batch of {'; '.join(lengths)}."
    )


def _most(kinds: Sequence[tuple[str, int]]) -> str:
    """Name each precision with the most steps it has."""
    most = {precision: max(steps for each, steps in kinds if each == precision) for precision, _ in kinds}
    return ", ".join(f"{precision} up to {steps} steps" for precision, steps in most.items()) or "never"
