"""Every knob of a server in one place: the argument of `deployments.app:build` and the `args` of a config YAML.

Only the wiring reads this; everything below gets plain arguments. Values come from the caller (YAML, command line),
then from `ENCORE_*` environment variables, then from the defaults here. Unknown keys are refused.

Secrets, and URLs that carry credentials, come from the environment alone (`ENCORE_X`, or the file that `ENCORE_X_FILE`
names), so that they end in no committed file, no list of processes and not in Ray's control store. What the environment
says of a URL never travels either: `args()` names the variable, and each replica reads its own node's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from serve_app.setting_names import check_names
from serve_app.setting_sources import PREFIX, meant, of_environment, of_file, sources, unknown_variables, variable
from serve_app.setting_urls import check_url
from serve_app.urls import has_credentials, redacted

MIB = 2**20
DAY = 86_400
SECRETS = frozenset({"secret"})
ELSEWHERE = "env:"
"""What travels instead of a URL of the environment, with the variable's name after it."""
UNSET_SECRET = "encore-without-a-secret"  # noqa: S105 - a placeholder; launcher and cluster.yaml set a real one


class Settings(BaseSettings):
    """Configuration of one Encore application; sizes in bytes, times in seconds."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,  # start scripts export every variable, those without a value too
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,  # a secret that is refused must not be repeated in a log
    )

    model: str = Field("native/demo", description="the model this application serves")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where Diffusion and TextEncoder compute")
    checkpoint: str | None = Field(
        None,
        description="folder or Hub id of a published Wan model's weights (diffusers' layout); none: its own Hub id",
    )
    revision: str | None = Field(
        None, description="branch, tag or commit of a checkpoint on the Hub; none: its newest state"
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="what a Wan model's transformers and text encoder compute in; none: bfloat16"
    )
    quantization: Literal["int8", "fp8"] | None = Field(
        None, description="keep a Wan model's transformer weights in a byte each, for memory; none: as `dtype` says"
    )
    torch_compile: bool = Field(
        False, description="compile a Wan model's transformer blocks (torch.compile); a start takes a minute longer"
    )
    vae_tiling: bool = Field(
        False, description="a Wan model decodes frames in tiles of 256 pixels: less memory, more time, seams blended"
    )
    text_device: Literal["auto", "cpu", "cuda"] | None = Field(
        None, description="where TextEncoder computes; none: as `device` says. cpu: its memory is all Diffusion's"
    )
    torch_threads: PositiveInt | None = Field(
        None,
        description="torch threads per Diffusion and TextEncoder replica; none: the cores Ray gives it, at least 1",
    )
    batch_invariant: bool | None = Field(
        None,
        description="a video's bytes depend on its request alone, not on what renders beside it or on torch_threads; "
        "none: on CPUs, not on GPUs",
    )
    max_batch_size: PositiveInt = Field(
        4, description="most jobs in one forward pass of the denoiser; fewer where measuring shows that more do not pay"
    )
    measurements_file: str | None = Field(
        None,
        description="where Diffusion keeps what it measured of its device between starts; none: measured each time",
    )
    drain_seconds: PositiveFloat = Field(
        60.0, description="a Diffusion replica that shuts down finishes what it can within, hands the rest to another"
    )

    redis_url: str | None = Field(
        None,
        description="L2, and job records without a `jobs_url`: redis://, rediss://, unix:// or redis+cluster://; none: "
        "no L2",
    )
    jobs_url: str | None = Field(
        None,
        description="job records, their images and marks: a Redis that evicts nothing and is persistent, URLs as of "
        "`redis_url`; none: the server of `redis_url`",
    )
    redis_timeout_seconds: PositiveFloat = Field(0.5, description="longest wait for one answer of L2 or of job records")
    l3_url: str | None = Field(None, description="object store: file:///folder or s3://bucket/prefix; none: no L3")
    s3_endpoint_url: str | None = Field(None, description="an S3-compatible store's address; none: AWS")
    s3_public_endpoint_url: str | None = Field(
        None, description="that store's address as clients reach it, for `s3_redirect`; none: `s3_endpoint_url`"
    )
    s3_redirect: bool = Field(
        False,
        description="a video that only S3 has is answered by 307 to a presigned URL; videos are stored there twice",
    )
    l3_timeout_seconds: PositiveFloat = Field(5.0, description="longest wait for one answer of L3, whatever it is")
    l3_filter: Literal["auto", "on", "off"] = Field(
        "auto", description="Bloom bits in L2 spare looks into L3 for what it never had; auto: for S3, not for a folder"
    )
    secret: SecretStr = Field(
        SecretStr(UNSET_SECRET),
        description="names in shared tiers are HMACs under it; ENCORE_SECRET or ENCORE_SECRET_FILE only",
    )

    l1_bytes: PositiveInt = Field(256 * MIB, description="finished videos kept in each router's memory")
    l2_ttl_seconds: PositiveInt = Field(7 * DAY, description="how long L2 keeps a value since its last use")
    l2_max_value_bytes: PositiveInt = Field(64 * MIB, description="larger values go to L3 only")
    l3_max_bytes: PositiveInt = Field(
        20 * 1024 * MIB, description="bound of a local L3 folder; S3 is bounded by `encore gc`"
    )
    keep_latents: bool = Field(
        True, description="final latents go to L3 too: another frame rate or quality of a video costs no denoising"
    )
    embedding_l1_bytes: PositiveInt = Field(128 * MIB, description="prompt embeddings kept in TextEncoder's memory")

    client_header_timeout_seconds: PositiveFloat = Field(
        10.0, description="a client sends a request's headers within this, else 408; where `encore serve` runs HAProxy"
    )
    client_body_timeout_seconds: PositiveFloat = Field(
        120.0, description="a client sends a request's body within this, else 408"
    )
    client_idle_timeout_seconds: PositiveFloat = Field(
        60.0, description="longest pause of a client amid sending a body or taking an answer; then it is cut off"
    )
    max_connections: PositiveInt = Field(
        10_000, description="connections of clients at once, where `encore serve` runs HAProxy; more wait"
    )
    max_connections_per_address: PositiveInt | None = Field(
        None, description="of one address: more is a 429, twice as many are refused; none: gateways share one address"
    )
    allowed_hosts: str | None = Field(
        None,
        description="names under which clients reach this server, between commas, `*.example.com` and `*` too; others "
        "are a 421. Always allowed: addresses, localhost, the machine's own name",
    )
    allowed_origins: str | None = Field(
        None,
        description="web pages of other sites that may use this server: origins (https://app.example.com) between "
        "commas, `https://*.example.com` and `*` too; others are a 403",
    )
    max_event_streams: PositiveInt = Field(
        1_000, description="readers of jobs' events per router, below its `max_ongoing_requests`; more is a 503"
    )
    max_slow_bodies: PositiveInt = Field(
        500, description="request bodies that a router waits for at once, because their clients are slow; more is a 503"
    )
    max_body_bytes: PositiveInt = Field(MIB, description="larger request bodies are a 413")
    max_image_bytes: PositiveInt = Field(
        10 * MIB, description="larger files as `input_reference` are a 413; they come on top of max_body_bytes"
    )
    max_image_pixels: PositiveInt = Field(
        40_000_000,
        description="larger pictures as `input_reference` are a 413, before they are decoded; the largest takes up to "
        "650 MB while it is read, and a router reads two at once",
    )
    max_prompt_chars: PositiveInt = Field(2_000, description="longer prompts are a 422, whatever the model could take")
    negative_prompt: str | None = Field(
        None, description="what a request that has no `negative_prompt` is taken to say; none: the model's own, empty"
    )
    max_queued: PositiveInt = Field(64, description="renders waiting or running per router; more is a 429")
    max_waiting: PositiveInt = Field(1_500, description="requests that wait for a render per router; more is a 429")
    linger_seconds: float = Field(30.0, ge=0, description="a render nobody waits for any more goes on this long")
    max_attempts: PositiveInt = Field(
        5, description="a video whose renders end so often in their process' death fails as `render_crashed`"
    )
    warm_up_renders: PositiveInt = Field(
        8, description="renders of warm-ups that a router waits for at a time; they give way to all others"
    )
    jobs_max_count: PositiveInt = Field(
        100_000,
        description="job records kept; beyond it finished ones go, the oldest first; when unfinished ones fill it a "
        "new job is a 429. Jobs that were complete when they came have as many places of their own",
    )
    jobs_max_bytes: PositiveInt = Field(
        256 * MIB,
        description="bytes of job records, as `jobs_max_count`, and of the images of unfinished jobs; on a server with "
        "`maxmemory` at most half, and for images a quarter, of that",
    )
    job_ttl_seconds: PositiveInt = Field(7 * DAY, description="how long a job record is kept; `expires_at` says so")

    traditional_to_simplified: bool = Field(True, description="traditional Chinese prompts are read as simplified ones")
    unify_spelling: bool = Field(True, description="British spelling is read as American")
    strip_wrappers: bool = Field(True, description="`please generate a video of ...` is read as what follows it")
    correct_typos: bool = Field(True, description="a mistyped word is read as the only known word one slip away")
    synonyms_file: str | None = Field(None, description="groups of words that are one, a line each; none: no synonyms")
    vocabulary_file: str | None = Field(
        None, description="words of earlier prompts (`encore vocabulary`), one a line; none: English alone is known"
    )

    otlp_endpoint: str | None = Field(None, description="where spans go (OTLP over HTTP); none: no tracing")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments, then the environment; a secret among the arguments is an error."""
        for name, value in init_settings().items():
            refuse_secret(name, value)
        return init_settings, env_settings, FileSource(settings_cls)

    @model_validator(mode="before")
    @classmethod
    def _know(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name in given:
            if name not in cls.model_fields:
                raise ValueError(f"There is no setting '{name}'{meant(name, cls.model_fields)}")
        return given

    @field_validator("*", mode="before")
    @classmethod
    def _resolve(cls, value: Any, info: ValidationInfo) -> Any:
        """Take a URL that did not travel from this process' environment."""
        if info.field_name not in SECRET_URLS or not isinstance(value, str) or not value.startswith(ELSEWHERE):
            return value
        found = of_environment(info.field_name)
        if found is None:
            raise ValueError(
                f"it was set by environment where the application was built, and is not set on this node: "
                f"{sources(info.field_name)} must be set on every Ray node before Ray starts there"
            )
        return found

    @field_validator("*", mode="after")
    @classmethod
    def _check(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name in SECRET_URLS and isinstance(value, str):
            check_url(info.field_name, value)
        elif isinstance(value, str) and info.field_name is not None:
            check_names(info.field_name, value)
        return value

    @model_serializer(mode="wrap")
    def _without_credentials(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = handler(self)
        return {name: _shown(name, value) for name, value in dumped.items()}

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, _shown(name or "", value)

    def args(self) -> dict[str, Any]:
        """Return everything but the secrets, as plain JSON-able values: what travels to the replicas.

        Of a URL that the environment told, only the variable's name travels.
        """
        dumped = self.model_dump(mode="json", exclude=set(SECRETS))
        return dumped | {
            name: f"{ELSEWHERE}{variable(name)}"
            for name in SECRET_URLS
            if (value := getattr(self, name)) is not None and (has_credentials(value) or value == of_environment(name))
        }

    @property
    def secret_bytes(self) -> bytes:
        """The key of every HMAC."""
        return self.secret.get_secret_value().encode()


SECRET_URLS = frozenset(name for name in Settings.model_fields if name.endswith(("_url", "_endpoint")))
"""Settings that may carry credentials."""


class FileSource(PydanticBaseSettingsSource):
    """Secrets and URLs out of files: `ENCORE_REDIS_URL_FILE=/run/secrets/redis_url`, as container images do it."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the content of the file that the variable names, without white space at its ends."""
        return of_file(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return what files tell; raises ValueError for one that cannot be read, and for two sources of one setting."""
        told = {name: of_file(name) for name in SECRETS | SECRET_URLS}
        return {name: value for name, value in told.items() if value is not None}


def refuse_secret(name: str, value: object) -> None:
    """Raise ValueError, which does not repeat it, for a secret that is about to be an argument."""
    if name in SECRETS:
        raise ValueError(f"{name} may only come from the environment: {sources(name)}")
    if name in SECRET_URLS and isinstance(value, str) and has_credentials(value):
        raise ValueError(
            f"{name} has credentials in it, and others can read arguments (ps, Ray's dashboard, logs); "
            f"set {sources(name)} instead"
        )


def first_fault(error: ValidationError) -> tuple[str, str]:
    """Return the setting that is wrong (empty when none is) and what is wrong with it, without its value."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return str(first["loc"][0]) if first["loc"] else "", str(first["msg"]).removeprefix("Value error, ")


def unknown() -> list[str]:
    """Return a line for each ENCORE_ variable that nothing reads: a misspelt one would silently do nothing."""
    return unknown_variables(Settings.model_fields, SECRETS | SECRET_URLS)


def _shown(name: str, value: Any) -> Any:
    return redacted(value) if name in SECRET_URLS and isinstance(value, str) else value
