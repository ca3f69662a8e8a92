"""Every knob of a server in one place: the argument of `deployments.app:build` and the `args` of a config YAML.

Only the wiring reads this; everything below gets plain arguments. Values come from the caller (YAML, command line),
then from `ENCORE_*` environment variables, then from the defaults here. Unknown keys are refused. Secrets come from
the environment alone, so they cannot end in a file that is committed or in Ray's control store.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

MIB = 2**20
DAY = 86_400
SECRETS = frozenset({"secret"})
UNSET_SECRET = "encore-without-a-secret"  # noqa: S105 - a placeholder; launcher and cluster.yaml set a real one


class Settings(BaseSettings):
    """Configuration of one Encore application; sizes in bytes, times in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="ENCORE_",
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
        None, description="L2 and job records: redis://, rediss://, unix:// or redis+cluster://; none: no L2"
    )
    redis_timeout_seconds: PositiveFloat = Field(0.5, description="longest wait for one answer of L2")
    l3_url: str | None = Field(None, description="object store: file:///folder or s3://bucket/prefix; none: no L3")
    s3_endpoint_url: str | None = Field(None, description="an S3-compatible store's address; none: AWS")
    s3_public_endpoint_url: str | None = Field(
        None, description="that store's address as clients reach it, for `s3_redirect`; none: `s3_endpoint_url`"
    )
    s3_redirect: bool = Field(
        False,
        description="a video that only S3 has is answered by 307 to a presigned URL; videos are stored there twice",
    )
    l3_timeout_seconds: PositiveFloat = Field(5.0, description="longest wait for one answer of an S3 store")
    l3_filter: Literal["auto", "on", "off"] = Field(
        "auto", description="Bloom bits in L2 spare looks into L3 for what it never had; auto: for S3, not for a folder"
    )
    secret: SecretStr = Field(
        SecretStr(UNSET_SECRET), description="names in shared tiers are HMACs under it; ENCORE_SECRET only"
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
    warm_up_renders: PositiveInt = Field(
        8, description="renders of warm-ups that a router waits for at a time; they give way to all others"
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
        given = SECRETS & set(init_settings())
        if given:
            raise ValueError(f"{', '.join(sorted(given))} may only come from the environment (ENCORE_SECRET)")
        return init_settings, env_settings

    def args(self) -> dict[str, Any]:
        """Return everything but the secrets, as plain JSON-able values: what travels to the replicas."""
        return self.model_dump(mode="json", exclude=set(SECRETS))

    @property
    def secret_bytes(self) -> bytes:
        """The key of every HMAC."""
        return self.secret.get_secret_value().encode()
