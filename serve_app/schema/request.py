"""What a client may ask for: one model for JSON, for multipart forms (where all values are strings) and for handles.

The wire is generous about form (`"7"` and `7`, `size` or `width`+`height`, `seconds` or `num_frames`) and strict about
names: a field nobody reads would be an ignored option, and an ignored option is a wrong hit.
"""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from serve_app.core import IntRange, Priority, Urgency
from serve_app.errors import UnknownField, Unprocessable
from serve_app.schema.input_reference import InputReference

MAX_SEED = 2**63 - 1
DEFAULT_SEED = 42
QUALITY = IntRange(0, 51, 23)
"""x264's constant rate factor, as `media.encode_mp4` takes it."""
MAX_DEADLINE_SECONDS = 86_400


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("bool", "Input should be a number, not true or false")
    return value


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
WholeNumber = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
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


Tag = Annotated[str, AfterValidator(_is_text), AfterValidator(_tag)]
Tags = Annotated[
    tuple[Tag, ...],
    BeforeValidator(_tags),
    Field(max_length=MAX_TAGS),
    AfterValidator(lambda tags: tuple(dict.fromkeys(tags))),
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
Deadline = Annotated[Number, Field(gt=0, le=MAX_DEADLINE_SECONDS)]


class VideoRequest(BaseModel):
    """A request for one video. Only `prompt` is needed; ranges and defaults are the model's (GET /v1/models)."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    prompt: Text = Field(description="what the video shows")
    negative_prompt: Text | None = Field(None, description="what it should not show")
    model: Text | None = Field(None, description="a model this server has; absent: its own")
    seed: WholeNumber | Literal["random"] | None = Field(
        None, description="0 to 2^63-1, or `random`, which draws one and returns it; absent: 42"
    )
    size: Text | None = Field(None, description="WIDTHxHEIGHT in pixels")
    width: WholeNumber | None = Field(None, description="pixels; together with height, instead of size")
    height: WholeNumber | None = Field(None, description="pixels; together with width, instead of size")
    num_frames: WholeNumber | None = Field(None, description="frames; or give seconds")
    seconds: Number | None = Field(None, description="playing time; without fps, a frame rate that fits is picked")
    fps: WholeNumber | None = Field(None, description="frames per second")
    num_inference_steps: WholeNumber | None = Field(None, description="denoising steps")
    guidance_scale: Number | None = Field(None, description="how closely to follow the prompt; 1 is no guidance")
    quality: WholeNumber | None = Field(
        None, description="of the file: x264's constant rate factor, 0 (lossless) to 51; absent: 23"
    )
    correct_typos: bool | None = Field(
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
    n: WholeNumber | None = Field(None, description="1: a request is one video, and so is a seed")

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
        """Return how soon the video is wanted by somebody who asks at `now`, Unix seconds."""
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
