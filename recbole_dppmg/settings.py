"""Every key that recbole-dppmg adds to RecBole's, with its type, range, default and meaning.

RecBole's own keys (`learning_rate`, `epochs`, `train_batch_size`, `embedding_size`, ...) keep their
meaning and are not repeated here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
)

from recbole_dppmg.errors import ConfigError

Phase = Literal["preference", "injection", "reward"]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


G = TypeVar("G", bound=_Group)


class ContentSettings(_Group):
    """Where item texts and images come from, and the frozen encoders."""

    title_field: str | None = Field(None, description="column of .item with an item's name; empty: title, name, ...")
    text_fields: list[str] | None = Field(
        None, description="columns of .item that tell what an item is; empty: every token_seq column"
    )
    attribute_field: str | None = Field(None, description="column of .item with attributes; empty: genres, class, ...")
    year_field: str | None = Field(None, description="column of .item with the year; empty: release_year, year")
    review_field: str | None = Field(
        None, description="column of .inter with what a user wrote of an item; empty: none"
    )
    image_field: str | None = Field("image", description="column of .item with an image path, if it exists")
    image_dir: str | None = Field(
        None, description="folder with {item_id}.jpg, .png or .webp; 'drawn' draws covers; empty: no images"
    )
    text_encoder: str = Field("all-MiniLM-L6-v2", description="embedded name, directory or hub id")
    image_encoder: str = Field("efficientnet-lite0", description="embedded name, directory or hub id")
    text_features: str | None = Field(
        None,
        description="file in the dataset's folder with given text features, .npy or .parquet; empty: encode",
    )
    image_features: str | None = Field(None, description="the same for images")
    feature_index: str | None = Field(None, description="CSV item_id,row that names the rows of a .npy")
    feature_cache: str | None = Field(None, description="folder of the feature store; empty: the user's cache")


class PreferenceSettings(_Group):
    """Stage 1: the modal-specific graph neural network and its quantizer."""

    n_layers: PositiveInt = Field(3, description="user-item propagation layers (LightGCN)")
    modalities: list[Literal["text", "image"]] = Field(
        ["text", "image"], description="contents of items that preferences are learned in, beside the interactions"
    )
    recency: NonNegative = Field(
        5.0, description="later items after which a liked one counts e times less, in splits by time; 0: never"
    )
    knn_k: int = Field(10, ge=0, description="neighbours in each modality's item-item graph (FREEDOM); 0: no graph")
    delta_dropout: Fraction = Field(0.0, description="share of users whose free id vector is dropped in a step")
    modality_delta_dropout: Fraction = Field(
        0.8, description="the same in text and image; high, so that tokens follow from the items liked"
    )
    softmax_cells: PositiveInt = Field(
        2**23, description="largest table of users x items in the ranking loss; beyond it, items are sampled"
    )
    negative_power: Fraction = Field(0.5, description="sampled negatives by popularity to this power; 0: uniform")
    tau: PositiveFloat = Field(0.2, description="temperature of the softmax ranking loss")
    modality_tau: PositiveFloat = Field(0.2, description="the same within text and within image")
    align_weight: NonNegative = Field(0.01, description="weight of InfoNCE between an item's text and image")
    commit_weight: NonNegative = Field(0.1, description="weight of the quantizer's commitment loss")
    quantized_weight: NonNegative = Field(0.5, description="weight of the ranking loss with quantized users")
    l2_weight: NonNegative = Field(3e-3, description="weight of the L2 penalty on the batch's embeddings")
    quantizer_levels: PositiveInt = Field(4, description="preference tokens per user and modality")
    quantizer_codes: PositiveInt | None = Field(
        None, description="codes per level; empty: 2^floor(log2(users / 30)) within 16..256"
    )
    quantizer_warmup: int = Field(20, ge=0, description="epochs before the quantizer starts from k-means")
    quantizer_decay: float = Field(0.97, gt=0, lt=1, description="EMA decay of the codebooks")


class TextSettings(_Group):
    """The text generator, its teaching and its decoding."""

    text_head: str = Field("causal_lm", description="name of a text generator, or pkg.mod:Class")
    text_generator: str = Field(
        "SmolLM2-135M-Instruct", description="embedded name, directory or hub id of a causal LM"
    )
    text_inject_steps: PositiveInt = Field(120, description="teaching steps of the token rows")
    text_inject_batch: PositiveInt = Field(8, description="texts per teaching step")
    text_learning_rate: PositiveFloat = Field(0.02, description="Adam's rate for the token rows")
    text_max_new_tokens: int = Field(48, ge=4, le=256, description="cap on an explanation's length, in LM tokens")
    text_temperature: NonNegative = Field(0.3, description="of the draws among the LM's likeliest tokens; 0: none")
    text_dtype: Literal["bfloat16", "float32", "float16"] = Field(
        "bfloat16", description="number format of the LM; what is trained stays float32"
    )
    text_lora_rank: int = Field(0, ge=0, le=256, description="rank of a LoRA trained beside the token rows; 0: none")
    text_4bit: bool = Field(False, description="load the LM in 4 bit (needs bitsandbytes)")
    openai_base_url: str = Field("http://127.0.0.1:8000/v1", description="endpoint of text_head openai")
    openai_key_variable: str = Field("OPENAI_API_KEY", description="environment variable with the endpoint's key")
    openai_timeout: PositiveFloat = Field(60.0, description="seconds to wait for an answer")
    openai_retries: int = Field(4, ge=0, le=20, description="further tries after 429, 5xx, a hang or a broken answer")
    openai_backoff: PositiveFloat = Field(0.5, description="seconds before the second try; doubled for each further")
    openai_concurrency: int = Field(4, ge=1, le=64, description="requests at a time")
    openai_per_minute: PositiveInt | None = Field(None, description="cap on requests a minute; empty: none")


class ImageSettings(_Group):
    """The image generator, its teaching and its sampling."""

    image_head: str = Field("diffusion", description="name of an image generator, or pkg.mod:Class")
    image_generator: str = Field("compact-diffusion", description="embedded name, directory or hub id of a pipeline")
    image_inject_steps: PositiveInt = Field(300, description="teaching steps of the token projector")
    image_inject_batch: PositiveInt = Field(16, description="images per teaching step")
    image_learning_rate: PositiveFloat = Field(2e-3, description="Adam's rate for what maps tokens to the pipeline")
    preference_dropout: Fraction = Field(0.1, description="share of teaching examples without preference")
    both_dropout: Fraction = Field(0.05, description="share without preference and without text")
    text_dropout: Fraction = Field(
        0.8, description="share of teaching examples without text, whose images show what the tokens mean"
    )
    sampling_steps: PositiveInt = Field(20, description="denoising steps of a generated image")
    guidance_text: NonNegative = Field(3.0, description="guidance scale of the item's text")
    guidance_preference: NonNegative = Field(6.0, description="guidance scale of the preference tokens")
    image_injection: Literal["concat", "decoupled"] = Field(
        "decoupled", description="tokens beside the prompt's states, or with keys and values of their own"
    )
    preference_scale: NonNegative = Field(1.0, description="weight of decoupled tokens; 0 is the pipeline without them")
    image_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="number format of the pipeline; what is trained stays float32"
    )
    image_lora_rank: int = Field(0, ge=0, le=256, description="rank of a LoRA trained beside the tokens; 0: none")
    attention_slicing: bool = Field(False, description="attend head by head: less memory, slower")
    cpu_offload: bool = Field(False, description="keep on the GPU only the part that is working, when generating")


class RewardSettings(_Group):
    """The reward and its optimisation (stage 2b)."""

    reward_steps: PositiveInt = Field(24, description="reward steps")
    reward_group: int = Field(8, ge=2, description="texts and images per card (G)")
    reward_cards: PositiveInt = Field(2, description="cards per step")
    reward_personalization: NonNegative = Field(1.0, description="weight of p, closeness to this user over others")
    reward_consistency: NonNegative = Field(0.5, description="weight of c, text-image consistency")
    reward_fidelity: NonNegative = Field(0.3, description="weight of a, closeness to the item")
    reward_quality: NonNegative = Field(0.2, description="weight of y, fluency of the text")
    reward_function: str | None = Field(
        None, description="pkg.mod:function of yours that rewards texts and images too; empty: none"
    )
    reward_function_weight: NonNegative = Field(1.0, description="weight of that function's rewards")
    image_reward: Literal["refl", "ddpo"] = Field(
        "refl", description="images learn through the reward's gradient, or by ddpo, which needs none and is slower"
    )
    reward_users: PositiveInt = Field(64, description="random users that p is measured against")
    reward_kl: NonNegative = Field(0.01, description="weight of the KL to the injected LM")
    reward_drift: NonNegative = Field(0.1, description="weight of ||eps(p) - eps(0)||^2")
    reward_replay: NonNegative = Field(0.1, description="weight of the teaching loss replayed against drift")
    reward_text_learning_rate: PositiveFloat = Field(1e-3, description="Adam's rate for the token rows")
    reward_image_learning_rate: PositiveFloat = Field(3e-4, description="Adam's rate for the token projector")
    joint_epochs: PositiveInt = Field(60, description="epochs of the joint text-image space")


class RunSettings(_Group):
    """One run: its phases, outputs and report."""

    train_phases: list[Phase] = Field(
        ["preference", "injection", "reward"],
        description="phases to run, in this order; later ones need the earlier",
    )
    output_dir: str = Field("outputs", description="folder of runs; each gets a folder of its own inside")
    baselines: list[str] = Field(["LightGCN"], description="RecBole models trained beside DPPMG for the report")
    report_users: PositiveInt = Field(6, description="users with cards in the report")
    report_cards: PositiveInt = Field(4, description="cards of each of them")
    checkpoint_seconds: NonNegative = Field(20.0, description="work between two checkpoints, in seconds; 0: every step")
    threads: PositiveInt | None = Field(None, description="CPU threads; empty: OMP_NUM_THREADS, else the cores allowed")

    @field_validator("train_phases")
    @classmethod
    def _in_order(cls, phases: list[str]) -> list[str]:
        known = list(get_args(Phase))
        if not phases or phases != known[: len(phases)]:
            raise ValueError(f"expected the first of {', '.join(known)}, in this order")
        return phases


class Settings(ContentSettings, PreferenceSettings, TextSettings, ImageSettings, RewardSettings, RunSettings):
    """All keys, flat as in YAML; each part of the package reads its own group."""


def group_of(group: type[G], config: Mapping[str, Any]) -> G:
    """The keys of one group as a RecBole config or another mapping has them; keys that it lacks keep their defaults.

    Raises:
        ConfigError: a value is of the wrong type or out of range.
    """
    return checked(group, {name: config[name] for name in group.model_fields if name in config})


def checked(group: type[G], values: Mapping[str, Any]) -> G:
    """A group from values by key.

    Raises:
        ConfigError: naming the first key that is unknown, of the wrong type or out of range, and what it may be.
    """
    try:
        return group(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if key not in group.model_fields:
            raise ConfigError(f"unknown key '{key}'; known: {', '.join(group.model_fields)}") from error
        meaning = group.model_fields[key].description
        meaning = f" ({meaning})" if meaning else ""
        reason = str(first["ctx"]["error"]) if first["type"] == "value_error" else f"it is not {allowed(group, key)}"
        raise ConfigError(f"key '{key}': {values[key]!r}: {reason}{meaning}") from error


_TYPES = {
    "string": "text",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "empty",
}
_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


def allowed(group: type[BaseModel], key: str) -> str:
    """What the value of a key may be, in words: "a number > 0", "one of user, none", ..."""
    return _words(group.model_json_schema()["properties"][key])


def _words(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_words(choice) for choice in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum") or [schema["const"]]
        return f"one of {', '.join(map(str, values))}" if len(values) > 1 else f"'{values[0]}'"
    if schema.get("type") == "array":
        return f"a list, each {_words(schema['items'])}" if schema.get("items") else "a list"
    if schema.get("type") == "object":
        names = schema.get("propertyNames", {}).get("enum")
        return f"a mapping with the keys {', '.join(names)}" if names else "a mapping"
    bounds = [f"{sign} {schema[name]}" for name, sign in _BOUNDS.items() if name in schema]
    return " ".join([_TYPES[schema["type"]], " and ".join(bounds)]).strip() if "type" in schema else "allowed"
