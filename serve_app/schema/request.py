"""What a client may ask for: one model for JSON, for multipart forms (where all values are strings) and for handles.

The wire is generous about form (`"7"` and `7`, `size` or `width`+`height`, `seconds` or `num_frames`) and strict about
names: a field that is not read would be an ignored option, and an ignored option is a wrong hit.
"""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from serve_app.core import IntRange, Priority, Urgency
from serve_app.errors import UnknownField, Unprocessable
from serve_app.schema.input_reference import InputReference
from serve_app.schema.scalar import Number, Truth, WholeNumber, number_schema, whole_schema

MAX_SEED = 2**63 - 1
DEFAULT_SEED = 42
QUALITY = IntRange(0, 51, 23)
"""x264's constant rate factor, as `media.encode_mp4` takes it."""
MAX_DEADLINE_SECONDS = 86_400


def _is_text(value: str) -> str:
    """Refuse lone surrogates: JSON can say them, but UTF-8, and with it every answer and log line, cannot."""
    if not has_only_characters(value):
        raise PydanticCustomError("surrogate", "Input should be valid Unicode, without lone surrogates")
    return value


def has_only_characters(text: str) -> bool:
    """Tell whether UTF-8 can say `text`; by trying, which takes a millisecond where looking at a megabyte takes 50."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


Text = Annotated[str, AfterValidator(_is_text)]
Seed = Annotated[
    Annotated[WholeNumber, Field(ge=0, le=MAX_SEED)] | Literal["random"],
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": MAX_SEED},
                {"type": "string", "pattern": r"^([0-9]{1,19}(\.0{1,6})?|random)$"},
            ]
        }
    ),
]
InlinePriority = Annotated[Priority, WithJsonSchema({"type": "string", "enum": [each.value for each in Priority]})]
"""Its schema in place: a reference would dangle where this model is part of an OpenAPI document."""
MAX_TAGS, MAX_TAG_CHARS = 8, 64
_MOST_TYPED = 4 * MAX_TAG_CHARS
"""Of a tag before it is brought into its one form, in which it may be shorter."""


def _tags(value: Any) -> Any:
    """Read tags as a list, or as a form gives them: one string, between commas. Counts before anything is made."""
    if isinstance(value, list | tuple):
        _check_tags(len(value))
    if not isinstance(value, str):
        return value
    if len(value) > MAX_TAGS * (_MOST_TYPED + 1):
        raise PydanticCustomError("tags", f"There may be {MAX_TAGS} tags of {MAX_TAG_CHARS} characters")
    return [part for part in value.split(",") if part.strip()]


def _check_tags(count: int) -> None:
    if count > MAX_TAGS:
        raise PydanticCustomError("tags", f"There may be {MAX_TAGS} tags, not {count}")


def _tag(value: str) -> str:
    """Return a tag in its one form: NFC, without space around it."""
    tag = unicodedata.normalize("NFC", value).strip() if len(value) <= _MOST_TYPED else ""
    if not 1 <= len(tag) <= MAX_TAG_CHARS:
        raise PydanticCustomError("tag", "A tag has 1 to 64 characters")
    if "," in tag or any(unicodedata.category(char).startswith("C") for char in tag):
        raise PydanticCustomError("tag", "A tag has no commas and no control characters")
    return tag


_TAG_CHARS = r"[^,\s\x00-\x1f\x7f-\x9f]([^,\x00-\x1f\x7f-\x9f]{0,62}[^,\s\x00-\x1f\x7f-\x9f])?"
_TAG_SCHEMA = {"type": "string", "minLength": 1, "maxLength": MAX_TAG_CHARS, "pattern": f"^{_TAG_CHARS}$"}
Tag = Annotated[str, AfterValidator(_is_text), AfterValidator(_tag), WithJsonSchema(_TAG_SCHEMA)]
Tags = Annotated[
    tuple[Tag, ...],
    BeforeValidator(_tags),
    Field(max_length=MAX_TAGS),
    AfterValidator(lambda tags: tuple(dict.fromkeys(tags))),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "maxItems": MAX_TAGS, "items": _TAG_SCHEMA},
                {
                    "type": "string",
                    "description": "tags between commas",
                    "maxLength": MAX_TAGS * (_MOST_TYPED + 1),
                    "pattern": f"^{_TAG_CHARS}(,{_TAG_CHARS}){{0,{MAX_TAGS - 1}}}$",
                },
            ]
        }
    ),
]
MAX_METADATA, MAX_METADATA_NAME, MAX_METADATA_CHARS = 16, 64, 512
"""As OpenAI bounds them."""
MAX_USER_CHARS = 512
Metadata = Annotated[
    dict[
        Annotated[Text, Field(min_length=1, max_length=MAX_METADATA_NAME)],
        Annotated[Text, Field(max_length=MAX_METADATA_CHARS)],
    ],
    Field(max_length=MAX_METADATA),
]
Deadline = Annotated[
    Number,
    Field(gt=0, le=MAX_DEADLINE_SECONDS),
    WithJsonSchema(number_schema(exclusiveMinimum=0, maximum=MAX_DEADLINE_SECONDS)),
]
SIZE_PATTERN = r"^\s*[0-9]{1,6}[x\u00d7X*][0-9]{1,6}\s*$"


def _narrowed(**schema: Any) -> Callable[[dict[str, Any]], None]:
    """Return what adds to the JSON Schema of a text that may be null; the check itself is made elsewhere."""

    def narrow(whole: dict[str, Any]) -> None:
        next(each for each in whole.get("anyOf", [whole]) if each["type"] == "string").update(schema)

    return narrow


class VideoRequest(BaseModel):
    """A request for one video. Only `prompt` is needed; ranges and defaults are the model's (GET /v1/models)."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    prompt: Text = Field(description="what the video shows", json_schema_extra={"pattern": r"\S"})
    negative_prompt: Text | None = Field(None, description="what it should not show")
    model: Text | None = Field(None, description="a model this server has; absent: its own")
    seed: Seed | None = Field(None, description="0 to 2^63-1, or `random`, which draws one and returns it; absent: 42")
    size: Text | None = Field(
        None, description="WIDTHxHEIGHT in pixels", json_schema_extra=_narrowed(pattern=SIZE_PATTERN)
    )
    width: WholeNumber | None = Field(None, description="pixels; together with height, instead of size")
    height: WholeNumber | None = Field(None, description="pixels; together with width, instead of size")
    num_frames: WholeNumber | None = Field(None, description="frames; or give seconds")
    seconds: Annotated[Number, WithJsonSchema(number_schema(minimum=0.0001, maximum=3600))] | None = Field(
        None, description="playing time; without fps, a frame rate that fits is picked"
    )
    fps: WholeNumber | None = Field(None, description="frames per second")
    num_inference_steps: WholeNumber | None = Field(None, description="denoising steps")
    guidance_scale: Number | None = Field(None, description="how closely to follow the prompt; 1 is no guidance")
    quality: (
        Annotated[WholeNumber, WithJsonSchema(whole_schema(minimum=QUALITY.minimum, maximum=QUALITY.maximum))] | None
    ) = Field(None, description="of the file: x264's constant rate factor, 0 (lossless) to 51; absent: 23")
    correct_typos: Truth | None = Field(
        None, description="false: a mistyped word stays as it is; absent: corrected, and the answer says so"
    )
    priority: InlinePriority | None = Field(
        None, description="who waits for it, which orders renders; absent: interactive"
    )
    deadline_seconds: Deadline | None = Field(
        None, description="the video is wanted within so many seconds, at most 86400; orders renders, drops none"
    )

    tags: Tags | None = Field(
        None, description="up to 8 names by which the video can be invalidated later; they change no video"
    )

    metadata: Metadata | None = Field(
        None, description="up to 16 texts by name, kept on the job and given back with it; they change no video"
    )
    user: Annotated[Text, Field(max_length=MAX_USER_CHARS)] | None = Field(
        None, description="who it is for, as OpenAI's APIs take it; read by nobody, changes no video"
    )
    safety_identifier: Annotated[Text, Field(max_length=MAX_METADATA_NAME)] | None = Field(
        None, description="as `user`, under OpenAI's newer name for it"
    )
    n: Annotated[WholeNumber, WithJsonSchema({"enum": [1, "1"]})] | None = Field(
        None, description="1: a request is one video, and so is a seed"
    )

    input_reference: InputReference | None = Field(
        None,
        repr=False,
        description="an image (PNG, JPEG, WebP) that the video starts from: a multipart file, or an object whose "
        "image_url is a data: URL; scaled and cut in the middle to the video's size",
    )

    def drawn_seed(self) -> int:
        """Return the seed to use; `random` draws a new one at every call, so call once per request."""
        if self.seed == "random":
            return secrets.randbelow(2**31)
        return DEFAULT_SEED if self.seed is None else self.seed

    def urgency(self, now: float) -> Urgency:
        """Return how soon the video is wanted, asked at `now`, Unix seconds."""
        deadline = None if self.deadline_seconds is None else now + self.deadline_seconds
        return Urgency(self.priority or Priority.INTERACTIVE, deadline)


def parse_request(fields: Mapping[str, Any]) -> VideoRequest:
    """Validate wire fields; raises UnknownField or Unprocessable naming the first field at fault."""
    for name in fields:
        if name not in VideoRequest.model_fields:
            raise _unknown(str(name))
    try:
        request = VideoRequest.model_validate(fields)
    except ValidationError as error:
        raise _refusal(error) from None
    if request.n not in (None, 1):
        raise Unprocessable(
            "'n' must be 1: a request with one seed is one video. For several send a request for each, with different "
            'seeds or with "seed": "random".',
            param="n",
        )
    return request


def _refusal(error: ValidationError) -> Unprocessable:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    param = str(first["loc"][0])
    if first["type"] == "missing":
        return Unprocessable(f"'{param}' is required.", param=param)
    if param == "seed":
        return Unprocessable("'seed' must be a whole number from 0 to 2^63-1 or \"random\".", param="seed")
    return Unprocessable(f"'{param}' is not valid: {first['msg']}.", param=param)


def _unknown(name: str) -> UnknownField:
    param = name[:100].encode("utf-8", "replace").decode()  # a name may be anything, an answer must be UTF-8
    known = ", ".join(VideoRequest.model_fields)
    return UnknownField(f"Unknown field '{param}'. Known fields: {known}.", param=param)
