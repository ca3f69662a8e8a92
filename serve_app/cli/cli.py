"""The commands of `encore`, one line of story each; what they do lies in the modules beside this one.

Whatever fails on purpose is one line `encore: ...` on standard error and exit status 1; a wrong command line is
typer's own message and 2; Ctrl-C is 130. Standard output holds nothing but the answer. Modules are imported by the
command that needs them, so that `encore --help` does not wait for an HTTP client.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from serve_app import __version__
from serve_app.cli.fields import Fields, takes_fields
from serve_app.errors import EncoreError
from serve_app.urls import has_credentials


class Commands(TyperGroup):
    """The group of all commands; tells every EncoreError, and what Ctrl-C did, in one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except EncoreError as error:
            _complain(error.message)
            raise typer.Exit(1) from None
        except KeyboardInterrupt as interrupt:
            if interrupt.args:
                _complain(str(interrupt))
            raise


def _complain(message: str) -> None:
    typer.echo(f"encore: {' '.join(message.split())}", err=True)


app = typer.Typer(
    name="encore",
    cls=Commands,
    help="Text-to-video that renders once and plays many times.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Prompt = Annotated[str, typer.Argument(help="What the video shows.", show_default=False)]


def _url(url: str | None) -> str | None:
    if url is not None and has_credentials(url):
        raise typer.BadParameter(
            "it has credentials in it, which others see in `ps`; set ENCORE_URL or ENCORE_URL_FILE (a file with it)."
        )
    return url


Url = Annotated[
    str | None,
    typer.Option(
        help="The server. Absent: ENCORE_URL, else http://127.0.0.1:8000.",
        metavar="URL",
        show_default=False,
        callback=_url,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


def main() -> None:
    """Run the command line of this process and exit; the entry point of the package."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a prompt may not fit the terminal's encoding
    app(prog_name="encore")


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Text-to-video that renders once and plays many times."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"encore {__version__}")
        raise typer.Exit


@app.command()
def serve(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The API's port. Absent: the first free one from 8000 on.")
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="ENCORE_CACHE_DIR",
            help="Where videos, Valkey and logs lie. Absent: $XDG_CACHE_HOME/encore, else ~/.cache/encore.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model to serve.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A Serve config instead of the package's local.yaml.", exists=True, dir_okay=False),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, such as max_queued=8. Repeatable."),
    ] = None,
) -> None:
    """Start a server on this machine, in the foreground; Ctrl-C stops it."""
    from serve_app.cli.serve import launch

    launch(port=port, cache_dir=cache_dir, model=model, config=config, assignments=assignments or [])


@app.command()
@takes_fields
def generate(
    prompt: Prompt,
    fields: Fields,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where to put the MP4; an existing file is replaced. `-`: standard output. "
            "Absent: encore-KEY.mp4 here, which never replaces another file.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file also when -o is absent.")] = False,
    thumbnail: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where to put the middle frame too, a WebP.")
    ] = None,
    spritesheet: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where to put up to 16 frames in one picture too, a JPEG.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Make a video, or get it from the cache. Ctrl-C stops the render on the server too."""
    from serve_app.cli.generate import generate

    generate(
        prompt,
        fields,
        output=output,
        pictures={"thumbnail": thumbnail, "spritesheet": spritesheet},
        force=force,
        url=url,
        as_json=as_json,
    )


@app.command()
@takes_fields
def explain(
    prompt: Annotated[
        str, typer.Argument(help="A prompt; `-` reads prompts from standard input, one a line.", show_default=False)
    ],
    fields: Fields,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Tell what a prompt means: its normalised form, the spec, the keys, and which tier has the video.

    With `-` no server is asked: every line becomes one JSON object with `prompt`, `normalised` and `keys`, or with
    `prompt` and `error`; then the exit status is 1.
    """
    from serve_app.cli.explain import explain_lines, explain_one

    if prompt != "-":
        explain_one(prompt, fields, url=url, as_json=as_json)
    elif url is not None:
        raise typer.BadParameter("`-` asks no server, so it takes no --url.")
    elif not explain_lines(typer.get_binary_stream("stdin"), typer.get_binary_stream("stdout"), fields):
        raise typer.Exit(1)


@app.command()
def vocabulary(
    min_prompts: Annotated[int, typer.Option(min=1, help="How many different prompts must have a word.")] = 2,
) -> None:
    """Read earlier prompts from standard input, one a line; print their words, for the setting `vocabulary_file`."""
    from serve_app.cli.vocabulary import print_vocabulary

    print_vocabulary(typer.get_text_stream("stdin", encoding="utf-8", errors="replace"), min_prompts)


@app.command()
def invalidate(
    video: Annotated[
        str | None,
        typer.Argument(
            help="A video's key, 64 hex digits, as `encore explain` prints it.", metavar="[KEY]", show_default=False
        ),
    ] = None,
    key: Annotated[str | None, typer.Option(help="The same, as an option.")] = None,
    prompt: Annotated[str | None, typer.Option(help="A prompt: all its videos, whatever their size or seed.")] = None,
    model: Annotated[str | None, typer.Option(help="A model; with --prompt, only that model's.")] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="What videos were made by: weights, a text encoder, a decoder, a video encoder.")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="A tag that videos were asked for with.")] = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="SECONDS", help="Begun longer ago: 90, 15m, 12h, 3d. 0: everything.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Delete a video from every tier, or invalidate what an option chooses: exactly one, or a prompt and a model."""
    from serve_app.cli.invalidate import show_invalidated, show_invalidation

    choice = {
        "key": key, "prompt": prompt, "model": model, "fingerprint": fingerprint, "tag": tag, "older_than": older_than
    }  # fmt: skip
    chosen = {name: value for name, value in choice.items() if value is not None}
    if (video is None) == (not chosen):
        raise typer.BadParameter("Say what to invalidate: a KEY, or one of the options.")
    if video is not None:
        show_invalidated(video, url=url, as_json=as_json)
    else:
        show_invalidation(chosen, url=url, as_json=as_json)


@app.command()
def warm(
    file: Annotated[
        Path,
        typer.Argument(help="A YAML file of templates.", metavar="TEMPLATES.yaml", show_default=False),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Render nothing; count what is there and what the rest costs.")
    ] = False,
    price: Annotated[
        float | None, typer.Option(min=0, help="Of a GPU-hour, in dollars, for --dry-run.", show_default=False)
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Make the videos that templates stand for before anybody asks. Ctrl-C stops it; the same command goes on.

    A template is a prompt with variables in braces, a list of values for each variable, and any fields of a request;
    `ttl` (3d unless said) is how long L2 keeps what nobody asks for. Exit status 1 when a video could not be made.
    """
    from serve_app.cli.warm import estimate, warm

    if dry_run:
        estimate(file, price=price, url=url, as_json=as_json)
    elif price is not None:
        raise typer.BadParameter("--price is for --dry-run.")
    elif not warm(file, url=url, as_json=as_json):
        raise typer.Exit(1)


@app.command()
def stats(url: Url = None, as_json: Json = False) -> None:
    """Show the counters of the server: outcomes, tiers, renderer."""
    from serve_app.cli.stats import show_stats

    show_stats(url=url, as_json=as_json)


@app.command()
def models(url: Url = None, as_json: Json = False) -> None:
    """Show the models on offer with their ranges and defaults."""
    from serve_app.cli.stats import show_models

    show_models(url=url, as_json=as_json)


@app.command()
def train(
    out: Annotated[Path, typer.Argument(help="The run's folder; a run that lies there goes on.", file_okay=False)],
    recipe: Annotated[
        Literal["full", "short"], typer.Option(help="`full` makes native/demo, `short` shows in seconds that it runs.")
    ] = "full",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes of one thread each that share a CPU run. Absent: one per core."),
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to compute.")] = "cpu",
    seed: Annotated[
        int | None, typer.Option(min=0, help="Another run of the same recipe. Absent: the recipe's own.")
    ] = None,
    clip: Annotated[
        Path | None,
        typer.Option(
            help="A CLIP checkpoint's folder: its text encoder and tokenizer are used instead of trained ones.",
            show_default=False,
            exists=True,
            file_okay=False,
        ),
    ] = None,
) -> None:
    """Train the demo model from nothing but this package. Ctrl-C saves; the same command goes on."""
    from serve_app.cli.train import train_model

    train_model(out, recipe=recipe, workers=workers, device=device, seed=seed, clip=clip)


@app.command()
def evaluate(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="A folder that `encore train` made. Absent: native/demo.",
            show_default=False,
            exists=True,
            file_okay=False,
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many prompts to ask.")] = 400,
    steps: Annotated[str, typer.Option(help="Numbers of denoising steps, between commas.")] = "4,8,16,30",
    guidance: Annotated[
        float | None, typer.Option(help="The guidance scale. Absent: the model's default.", show_default=False)
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Other sizes to ask for as well, between commas, or `all` that are offered.", show_default=False
        ),
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to compute.")] = "cpu",
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write all figures there; `-`: print nothing else.")
    ] = None,
    sheet: Annotated[
        str | None, typer.Option(metavar="FILE.png", help="Write frames of some videos there and tell their verdicts.")
    ] = None,
    card: Annotated[bool, typer.Option("--card", help="Write the figures into the checkpoint's model card.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Other questions, other videos.")] = 0,
) -> None:
    """Ask a model for videos it never saw and judge their pixels; exit status 1 when a goal is unmet."""
    from serve_app.cli.evaluate import evaluate_model

    all_met = evaluate_model(
        checkpoint,
        count=count,
        steps=steps,
        guidance=guidance,
        device=device,
        seed=seed,
        sizes=sizes,
        json_file=json_file,
        sheet=sheet,
        card=card,
    )
    if not all_met:
        raise typer.Exit(1)


@app.command()
def model(
    name: Annotated[str, typer.Argument(help="native/demo, native/5b or wan2.2-t2v-5b.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Count what an architecture weighs and computes, and the least time it takes on named cards. Asks no server."""
    from serve_app.cli.model import show_model

    show_model(name, as_json=as_json)


CacheDir = Annotated[
    Path | None,
    typer.Option(
        envvar="ENCORE_CACHE_DIR",
        help="The server's cache folder, where no ENCORE_L3_URL is set. Absent: as for `encore serve`.",
        show_default=False,
    ),
]


@app.command()
def gc(
    max_bytes: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Evict down to so many bytes. Absent: the setting l3_max_bytes; for S3, where that has no default, "
            "only leftovers are removed.",
            show_default=False,
        ),
    ] = None,
    empty_quarantine: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="DAYS",
            help="Delete what `fsck --repair` moved to the quarantine more than so many days ago. Absent: nothing.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would go, and remove nothing.")] = False,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Evict what the object store (L3) has too much of, and remove leftovers. A server may be running."""
    from serve_app.cli.maintenance import collect

    collect(cache_dir, max_bytes=max_bytes, empty_quarantine=empty_quarantine, dry_run=dry_run, as_json=as_json)


@app.command()
def fsck(
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Move what does not verify to the quarantine, and put index and leftovers in order."
        ),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="With --repair: do not ask, however many values do not verify.")
    ] = False,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Verify everything in the object store (L3); exit status 1 when something is wrong and not repaired."""
    from serve_app.cli.maintenance import verify

    if not verify(cache_dir, repair=repair, yes=yes, as_json=as_json):
        raise typer.Exit(1)


@app.command()
def reindex(cache_dir: CacheDir = None, as_json: Json = False) -> None:
    """Make the index of a local object store (L3) anew from its files; how often each was used is forgotten."""
    from serve_app.cli.maintenance import rebuild

    rebuild(cache_dir, as_json=as_json)
