"""Every key that recbole-dppmg adds to RecBole's, with its type, range, default and meaning.

RecBole's own keys (`learning_rate`, `epochs`, `train_batch_size`, `embedding_size`, ...) keep their
meaning and are not repeated here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

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
    image_field: str | None = Field("image", description="column of .item with an image path, if it exists")
    image_dir: str | None = Field(
        None, description="folder with {item_id}.jpg, .png or .webp; 'drawn' draws covers; empty: no images"
    )
    text_encoder: str = Field("all-MiniLM-L6-v2", description="embedded name, directory or hub id")
    image_encoder: str = Field("efficientnet-lite0", description="embedded name, directory or hub id")
    feature_cache: str | None = Field(None, description="folder of the feature store; empty: the user's cache")


class PreferenceSettings(_Group):
    """Stage 1: the modal-specific graph neural network and its quantizer."""

    n_layers: PositiveInt = Field(3, description="user-item propagation layers (LightGCN)")
    knn_k: PositiveInt = Field(10, description="neighbours in each modality's item-item graph (FREEDOM)")
    delta_dropout: Fraction = Field(0.0, description="share of users whose free id vector is dropped in a step")
    modality_delta_dropout: Fraction = Field(
        0.8, description="the same in text and image; high, so that tokens follow from the items liked"
    )
    softmax_cells: PositiveInt = Field(
        2**25, description="largest table of users x items in the ranking loss; beyond it, items are sampled"
    )
    negative_power: Fraction = Field(0.5, description="sampled negatives by popularity to this power; 0: uniform")
    tau: PositiveFloat = Field(0.15, description="temperature of the softmax ranking loss")
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

    text_generator: str = Field("SmolLM2-135M-Instruct", description="embedded name, directory or hub id of a causal LM")
    text_inject_steps: PositiveInt = Field(80, description="teaching steps of the token rows")
    text_inject_batch: PositiveInt = Field(8, description="texts per teaching step")
    text_learning_rate: PositiveFloat = Field(5e-3, description="Adam's rate for the token rows")
    text_max_new_tokens: int = Field(48, ge=4, le=256, description="cap on an explanation's length, in LM tokens")


class ImageSettings(_Group):
    """The image generator, its teaching and its sampling."""

    image_generator: str = Field("compact-diffusion", description="embedded name, directory or hub id of a pipeline")
    image_inject_steps: PositiveInt = Field(200, description="teaching steps of the token projector")
    image_inject_batch: PositiveInt = Field(16, description="images per teaching step")
    image_learning_rate: PositiveFloat = Field(1e-3, description="Adam's rate for the token projector")
    preference_dropout: Fraction = Field(0.1, description="share of teaching examples without preference")
    both_dropout: Fraction = Field(0.05, description="share without preference and without text")
    sampling_steps: PositiveInt = Field(20, description="denoising steps of a generated image")
    guidance_text: NonNegative = Field(5.0, description="guidance scale of the item's text")
    guidance_preference: NonNegative = Field(2.0, description="guidance scale of the preference tokens")


class RewardSettings(_Group):
    """The reward and its optimisation (stage 2b)."""

    reward_steps: PositiveInt = Field(24, description="reward steps; each is one card with its group")
    reward_group: int = Field(8, ge=2, description="texts and images per card (G)")
    reward_cards: PositiveInt = Field(2, description="cards per step")
    reward_personalization: NonNegative = Field(1.0, description="weight of p, closeness to this user over others")
    reward_consistency: NonNegative = Field(0.5, description="weight of c, text-image consistency")
    reward_fidelity: NonNegative = Field(0.3, description="weight of a, closeness to the item")
    reward_quality: NonNegative = Field(0.2, description="weight of y, fluency of the text")
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
        ["preference", "injection", "reward"], description="phases to run, in this order; later ones need the earlier"
    )
    output_dir: str = Field("outputs", description="folder of runs; each gets a folder of its own inside")
    baselines: list[str] = Field(["LightGCN"], description="RecBole models trained beside DPPMG for the report")
    report_users: PositiveInt = Field(6, description="users with cards in the report")
    report_cards: PositiveInt = Field(4, description="cards of each of them")
    threads: PositiveInt | None = Field(None, description="CPU threads; empty: OMP_NUM_THREADS, else the cores allowed")


class Settings(ContentSettings, PreferenceSettings, TextSettings, ImageSettings, RewardSettings, RunSettings):
    """All keys, flat as in YAML; each part of the package reads its own group."""


def group_of(group: type[G], config: Mapping[str, Any]) -> G:
    """The keys of one group as a RecBole config has them; keys that it lacks keep their defaults."""
    found = {name: config[name] for name in group.model_fields}
    return group(**{name: value for name, value in found.items() if value is not None})
