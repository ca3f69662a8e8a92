"""One meaning, one spec, one key: over random cards, all ways to say one request resolve alike."""

import dataclasses
import re
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from serve_app.cache.key import keys_for
from serve_app.core import FloatRange, IntRange, ModelCard, VideoSpec
from serve_app.errors import Contradiction, NotFound, Unprocessable
from serve_app.model.families import load_family
from serve_app.schema import parse_request, resolve
from serve_app.schema.request import QUALITY

OFFERED = load_family("native/demo").card
DEMO = dataclasses.replace(
    OFFERED, sizes=None, width=IntRange(32, 128, 64, step=16), height=IntRange(32, 128, 64, step=16)
)
"""The demo's card with every size on the grid, as a card has that declares none."""
WIDE = dataclasses.replace(
    DEMO,
    name="test/wide",
    aliases=(),
    width=IntRange(256, 1280, 832, step=32),
    height=IntRange(256, 720, 480, step=16),
    num_frames=IntRange(5, 121, 81, step=4),
    fps=IntRange(8, 24, 24),
    num_inference_steps=IntRange(1, 100, 50),
    guidance_scale=FloatRange(1.0, 20.0, 5.0),
    default_negative_prompt="blurry",
)
cards = st.sampled_from([DEMO, WIDE])
WHOLE = ("width", "height", "num_frames", "fps", "num_inference_steps")


def spec_of(fields: dict[str, Any], card: ModelCard = DEMO) -> VideoSpec:
    return resolve(parse_request(fields), card)


def outcome(fields: dict[str, Any], card: ModelCard = DEMO) -> VideoSpec | Unprocessable:
    try:
        return spec_of(fields, card)
    except Unprocessable as error:
        return error


def key_of(spec: VideoSpec, card: ModelCard = DEMO) -> str:
    return keys_for(spec, card, "encoder").video


def on_grid(allowed: IntRange) -> st.SearchStrategy[int]:
    count = (allowed.maximum - allowed.minimum) // allowed.step
    return st.integers(0, count).map(lambda index: allowed.minimum + index * allowed.step)


@st.composite
def meanings(draw: st.DrawFn) -> tuple[ModelCard, VideoSpec]:
    card = draw(cards)
    return card, VideoSpec(
        model=card.name,
        prompt=draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)),
        negative_prompt=draw(st.sampled_from([card.default_negative_prompt, "", "grey"])),
        seed=draw(st.just(42) | st.integers(0, 2**63 - 1)),
        guidance_scale=draw(st.floats(card.guidance_scale.minimum, card.guidance_scale.maximum)),
        quality=draw(st.just(23) | st.integers(0, 51)),
        **{name: draw(on_grid(getattr(card, name))) for name in WHOLE},
    )


@st.composite
def wires(draw: st.DrawFn, card: ModelCard, spec: VideoSpec) -> dict[str, Any]:
    """One way to say `spec`, in JSON or as a form of strings; what is default may be left out."""
    fields: dict[str, Any] = {"prompt": spec.prompt}

    def default(is_default: bool) -> bool:
        return is_default and draw(st.booleans())

    if not default(True):
        fields["model"] = draw(st.sampled_from([card.name, *card.aliases]))
    if not default(spec.negative_prompt == card.default_negative_prompt):
        fields["negative_prompt"] = spec.negative_prompt
    if not default(spec.seed == 42):
        fields["seed"] = spec.seed
    if not default((spec.width, spec.height) == (card.width.default, card.height.default)):
        form = draw(st.sampled_from(["size", "sides", "both"]))
        if form != "sides":
            fields["size"] = draw(st.sampled_from(["x", "X", "\u00d7"])).join([str(spec.width), str(spec.height)])
        if form != "size":
            fields |= {"width": spec.width, "height": spec.height}
    form = draw(st.sampled_from(["frames", "seconds+fps", "seconds+frames", "all"]))
    if form != "frames":
        fields["seconds"] = draw(st.sampled_from([spec.seconds, f"{spec.seconds:g}"]))  # the latter as answers show it
    if form in ("seconds+frames", "all") or (
        form == "frames" and not default(spec.num_frames == card.num_frames.default)
    ):
        fields["num_frames"] = spec.num_frames
    if form in ("seconds+fps", "all") or (form == "frames" and not default(spec.fps == card.fps.default)):
        fields["fps"] = spec.fps
    if not default(spec.num_inference_steps == card.num_inference_steps.default):
        fields["num_inference_steps"] = spec.num_inference_steps
    if not default(spec.guidance_scale == card.guidance_scale.default):
        fields["guidance_scale"] = spec.guidance_scale
    if not default(spec.quality == 23):
        fields["quality"] = spec.quality
    if draw(st.booleans()):
        return {name: str(value) for name, value in fields.items()}
    return {name: draw(_numeric_form(value)) for name, value in fields.items()}


def _numeric_form(value: Any) -> st.SearchStrategy[Any]:
    if isinstance(value, int) and abs(value) < 2**53:
        return st.sampled_from([value, float(value), str(value)])
    return st.just(value)


@given(st.data())
def test_every_wire_form_of_one_meaning_is_one_spec_and_one_key(data: st.DataObject) -> None:
    """Two wire forms of one request (JSON or strings, defaults said or not, size or sides, seconds or frames) agree."""
    card, meaning = data.draw(meanings())
    first, second = (spec_of(data.draw(wires(card, meaning)), card) for _ in range(2))
    assert first == second == meaning
    assert keys_for(first, card, "encoder") == keys_for(second, card, "encoder")


@given(st.data())
def test_any_change_gives_another_key(data: st.DataObject) -> None:
    """Two requests that differ in any field, by however little, never share a key."""
    card, meaning = data.draw(meanings())
    _, other = data.draw(meanings())
    field = data.draw(st.sampled_from([f.name for f in dataclasses.fields(VideoSpec) if f.name != "model"]))
    fresh: dict[str, Any] = {"container": "webm", "codec": "av1", "scope": "tenant"}
    value = fresh.get(field, getattr(other, field))
    assume(value != getattr(meaning, field))
    assert key_of(dataclasses.replace(meaning, **{field: value}), card) != key_of(meaning, card)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", "a blue circle"), ("negative_prompt", "grey"), ("seed", 43), ("seed", 0), ("size", "64x80"),
        ("size", "80x64"), ("num_frames", 17), ("seconds", 2), ("fps", 15), ("num_inference_steps", 17),
        ("guidance_scale", 3.0000000000000004), ("guidance_scale", 1), ("quality", 22), ("quality", 0),
    ],
)  # fmt: skip
def test_each_wire_field_counts(field: str, value: Any) -> None:
    """Each field a client can send changes the key: none is ignored."""
    plain = {"prompt": "a red circle"}
    assert key_of(spec_of(plain | {field: value})) != key_of(spec_of(plain))


def test_quality_is_of_the_file_alone() -> None:
    """Another quality is another file of the same latents; absent is the default of a spec."""
    plain, fine = spec_of({"prompt": "p"}), spec_of({"prompt": "p", "quality": 10})
    assert plain.quality == QUALITY.default == VideoSpec.__dataclass_fields__["quality"].default
    one, other = (keys_for(spec, DEMO, "encoder") for spec in (plain, fine))
    assert one.latents == other.latents
    assert one.video != other.video


def test_the_card_counts() -> None:
    """Other weights, another text encoder, decoder or prompt rules give the same spec another key."""
    spec = spec_of({"prompt": "a red circle"})
    fingerprints = ("model_fingerprint", "text_encoder_fingerprint", "decoder_fingerprint")
    cards = [dataclasses.replace(DEMO, **{name: "other"}) for name in fingerprints]
    keys = [key_of(spec, card) for card in (DEMO, *cards)] + [keys_for(spec, DEMO, "another encoder").video]
    assert len(set(keys)) == len(keys)


numbers = st.integers(-10, 200) | st.integers() | st.floats(allow_nan=False)
loose = st.fixed_dictionaries(
    {"prompt": st.just("p")},
    optional={
        "seed": st.integers() | st.just("random"),
        "size": st.from_regex(r"[0-9]{1,4}x[0-9]{1,4}", fullmatch=True) | st.sampled_from(["64x64", "832x480"]),
        "width": st.sampled_from([64, 832]) | numbers,
        "height": st.sampled_from([64, 480]) | numbers,
        "num_frames": st.integers(5, 24) | numbers,
        "seconds": st.sampled_from([1, "4", 0.5, 1.5]) | numbers,
        "fps": st.integers(1, 30) | numbers,
        "num_inference_steps": st.integers(1, 50) | numbers,
        "guidance_scale": st.floats(1, 15) | numbers,
        "quality": st.integers(0, 51) | numbers,
    },
)


@given(cards, loose)
def test_resolved_is_on_the_grid_and_says_what_was_asked(card: ModelCard, fields: dict[str, Any]) -> None:
    """Whatever resolves lies on the card's grid and keeps every number the client gave; all else is Unprocessable."""
    spec = outcome(fields, card)
    if isinstance(spec, Unprocessable):
        assert spec.param in fields or spec.param in ("width", "height")
        assert str(spec).isprintable()
        return
    assert all(getattr(spec, name) in getattr(card, name) for name in WHOLE)
    assert spec.guidance_scale in card.guidance_scale
    assert 0 <= spec.seed < 2**63
    assert spec.quality in QUALITY
    for name in (*WHOLE, "guidance_scale", "quality"):
        assert name not in fields or getattr(spec, name) == fields[name]
    if "seconds" in fields:
        lasts = {spec.seconds} | ({(spec.num_frames - 1) / spec.fps} if card is WIDE else set())
        assert min(abs(each - float(fields["seconds"])) for each in lasts) < 1e-4
    if "size" in fields:
        assert spec.size == "x".join(str(int(side)) for side in fields["size"].split("x"))


@pytest.mark.parametrize(
    ("seconds", "num_frames", "fps"),
    [("4", 24, 6), ("8", 24, 3), ("12", 24, 2), (1, 16, 16), (0.5, 8, 16), ("1.5", 24, 16), (24, 24, 1)],
)
def test_seconds_pick_a_frame_rate(seconds: Any, num_frames: int, fps: int) -> None:
    """`seconds` alone picks the fitting frame rate nearest the default; the SDK's "4" is 24 frames at 6."""
    spec = spec_of({"prompt": "p", "seconds": seconds})
    assert (spec.num_frames, spec.fps) == (num_frames, fps)


@pytest.mark.parametrize(
    ("fields", "num_frames", "fps"),
    [
        ({"seconds": "4"}, 97, 24), ({"seconds": "5", "fps": 16}, 81, 16), ({"seconds": 5.0625, "fps": 16}, 81, 16),
        ({"seconds": 5.0625}, 81, 16), ({"seconds": 5, "num_frames": 81, "fps": 16}, 81, 16),
    ],
)  # fmt: skip
def test_a_first_frame_at_time_zero(fields: dict[str, Any], num_frames: int, fps: int) -> None:
    """On a grid of 4n + 1 frames n seconds are n x fps + 1 frames, and what an answer prints means the same again."""
    spec = spec_of({"prompt": "p"} | fields, WIDE)
    assert (spec.num_frames, spec.fps) == (num_frames, fps)


@given(cards, st.integers(1, 2000), st.integers(1, 60))
def test_a_fitting_rate_is_found_whenever_there_is_one(card: ModelCard, frames: int, rate: int) -> None:
    """`seconds` without fps is refused only if no frame rate of the model fits, checked by trying them all."""
    seconds = Fraction(frames, rate)
    rates = range(card.fps.minimum, card.fps.maximum + 1)
    extra = (0, 1) if card is WIDE else (0,)  # whose first frame is at time zero
    fits = [fps for fps in rates for more in extra if seconds * fps + more in card.num_frames]
    if not fits:
        with pytest.raises(Unprocessable, match="seconds"):
            spec_of({"prompt": "p", "seconds": float(seconds)}, card)
        return
    spec = spec_of({"prompt": "p", "seconds": float(seconds)}, card)
    assert seconds in {Fraction(spec.num_frames - more, spec.fps) for more in extra}
    assert abs(spec.fps - card.fps.default) == min(abs(fps - card.fps.default) for fps in fits)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"size": "64x64", "width": 32, "height": 64}, ("size", "width", "height")),
        ({"num_frames": 23, "fps": 6, "seconds": 4}, ("num_frames", "fps", "seconds")),
        ({"num_frames": 16, "seconds": 3}, ("num_frames", "seconds")),
        ({"num_frames": 8, "seconds": 0.1}, ("num_frames", "seconds")),
    ],
)
def test_contradictions_name_the_fields(fields: dict[str, Any], named: tuple[str, ...]) -> None:
    """Two fields that cannot both hold are a Contradiction whose message names each of them."""
    with pytest.raises(Contradiction) as refused:
        spec_of({"prompt": "p"} | fields)
    assert refused.value.status == 422
    assert all(f"'{name}'" in str(refused.value) for name in named)


@pytest.mark.parametrize(
    ("fields", "param", "nearest"),
    [
        ({"size": "65x64"}, "size", "64 and 80"),
        ({"size": "64x1"}, "size", "nearest 32"),
        ({"width": 100, "height": 64}, "width", "96 and 112"),
        ({"width": 64, "height": 4096}, "height", "nearest 128"),
        ({"num_frames": 7}, "num_frames", "nearest 8"),
        ({"num_frames": 10**30}, "num_frames", "nearest 24"),
        ({"num_frames": -(10**30)}, "num_frames", "nearest 8"),
        ({"num_frames": 10**5000}, "num_frames", "nearest 24"),
        ({"fps": 0}, "fps", "nearest 1"),
        ({"num_inference_steps": 51}, "num_inference_steps", "nearest 50"),
        ({"quality": 52}, "quality", "nearest 51"),
        ({"quality": -1}, "quality", "nearest 0"),
        ({"seconds": 4, "fps": 7}, "seconds", "nearest is 3.42857 seconds"),
        ({"seconds": 0.53, "fps": 30}, "seconds", "nearest is 0.533333 seconds"),
    ],
)
def test_off_grid_names_the_nearest(fields: dict[str, Any], param: str, nearest: str) -> None:
    """A value off the grid is refused, never rounded, and the nearest allowed ones are told."""
    with pytest.raises(Unprocessable) as refused:
        spec_of({"prompt": "p"} | fields)
    assert refused.value.param == param
    assert nearest in str(refused.value)
    assert len(str(refused.value)) < 300


@given(st.floats(0.001, 100), st.integers(1, 30))
def test_the_nearest_seconds_are_allowed(seconds: float, fps: int) -> None:
    """The seconds that a refusal names are accepted when the client sends them back as printed."""
    refused = outcome({"prompt": "p", "seconds": seconds, "fps": fps})
    if isinstance(refused, Unprocessable):
        told = re.search(r"nearest is ([\d.]+)(?: and ([\d.]+))? seconds", str(refused))
        assert told is not None, str(refused)
        for near in filter(None, told.groups()):
            spec_of({"prompt": "p", "seconds": near, "fps": fps})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"width": 64}, "height"), ({"height": 64}, "width"), ({"size": "64"}, "size"), ({"size": ""}, "size"),
        ({"size": "64x"}, "size"), ({"size": "-64x64"}, "size"), ({"size": "64x64x64"}, "size"),
        ({"size": "9999999x64"}, "size"), ({"size": "\u0666\u0664x64"}, "size"), ({"size": "\ud800"}, "size"),
        ({"size": "64x64\n64x64"}, "size"), ({"seed": -1}, "seed"), ({"seed": 2**63}, "seed"),
        ({"seed": 10**30}, "seed"),
        ({"seconds": 0}, "seconds"), ({"seconds": -1}, "seconds"), ({"seconds": 1e-9}, "seconds"),
        ({"seconds": 1e-5, "num_frames": 8}, "seconds"), ({"seconds": 1e-5, "fps": 8}, "seconds"),
        ({"seconds": 1e300}, "seconds"), ({"seconds": 5e-324}, "seconds"), ({"guidance_scale": 0.99}, "guidance_scale"),
        ({"guidance_scale": 1e300}, "guidance_scale"), ({"guidance_scale": -3}, "guidance_scale"),
    ],
)  # fmt: skip
def test_refused(fields: dict[str, Any], param: str) -> None:
    """Each of these is a 422 that names the field, in a short printable sentence."""
    with pytest.raises(Unprocessable) as refused:
        spec_of({"prompt": "p"} | fields)
    assert refused.value.param == param
    assert str(refused.value).isprintable()


@given(st.sampled_from(OFFERED.sizes), st.sampled_from(["size", "sides", "both"]))
def test_every_offered_size_is_accepted(size: tuple[int, int], form: str) -> None:
    """Each size that the demo declares is accepted in each form, and so is its default."""
    width, height = size
    fields: dict[str, Any] = {"prompt": "p"}
    fields |= {} if form == "sides" else {"size": f"{width}x{height}"}
    fields |= {} if form == "size" else {"width": width, "height": height}
    spec = spec_of(fields, OFFERED)
    default = spec_of({"prompt": "p"}, OFFERED)
    assert (spec.width, spec.height) == size
    assert (default.width, default.height) in OFFERED.sizes


@given(st.integers(-(10**6), 10**13) | st.integers(32, 160), st.integers(1, 10**13) | st.integers(32, 160))
def test_another_size_is_refused_with_those_offered(width: int, height: int) -> None:
    """Whatever size is not declared, in either form, is a 422 on `size` that names all that are, briefly."""
    assume((width, height) not in OFFERED.sizes)
    forms: list[dict[str, Any]] = [{"width": width, "height": height}]
    forms += [{"size": f"{width}x{height}"}] if 0 <= width < 10**6 > height else []
    for form in forms:
        with pytest.raises(Unprocessable) as refused:
            spec_of({"prompt": "p"} | form, OFFERED)
        assert refused.value.param == "size"
        assert all(f"{each[0]}x{each[1]}" in str(refused.value) for each in OFFERED.sizes)
        assert len(str(refused.value)) < 200


@pytest.mark.parametrize("name", ["sora-2", "", "native", "x" * 10_000])
def test_another_model(name: str) -> None:
    """A model that is not here is a 404 that tells which is; a long name is not repeated in full."""
    with pytest.raises(NotFound) as refused:
        spec_of({"prompt": "p", "model": name})
    assert refused.value.param == "model"
    assert DEMO.name in str(refused.value)
    assert len(str(refused.value)) < 300
