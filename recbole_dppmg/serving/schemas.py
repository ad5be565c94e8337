"""What goes over the wire."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from recbole_dppmg.serving.engine import EXCLUDE_MAX, HISTORY_MAX, K_MAX

Id = Annotated[str, Field(min_length=1, max_length=256)]
K = Annotated[int, Field(ge=1, le=K_MAX, description="how many")]
Seed = Annotated[int, Field(ge=0, lt=2**31, description="the same seed gives the same card")]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class RecommendationsWanted(_Asked):
    """Someone new, known by what they like."""

    history: list[Id] = Field(max_length=HISTORY_MAX, description="ids of items they like", examples=[["50", "181"]])
    k: K = 10
    exclude: list[Id] = Field([], max_length=EXCLUDE_MAX, description="ids of items not to recommend")


class CardWanted(_Asked):
    """An item, and for whom: one of `user`, `history` and `tokens`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"item": "50", "user": "1"}, {"item": "50", "history": ["181", "172"], "wait": 20}]
        }
    )
    item: Id
    user: Id | None = None
    history: list[Id] | None = Field(None, max_length=HISTORY_MAX)
    tokens: dict[Literal["text", "image"], Annotated[list[int], Field(max_length=64)]] | None = Field(
        None, description="codes per level; another user's, to see the item through their eyes"
    )
    seed: Seed = 0
    wait: float = Field(0, ge=0, le=60, description="seconds to wait for a new card; leaving gives its place up")

    @model_validator(mode="after")
    def _one_person(self) -> CardWanted:
        if sum(given is not None for given in (self.user, self.history, self.tokens)) != 1:
            raise ValueError("give exactly one of user, history and tokens")
        return self


class About(BaseModel):
    """The bundle that is served."""

    bundle: str = Field(description="its fingerprint")
    users: int
    items: int
    heads: dict[str, str] = Field(examples=[{"text": "causal_lm", "image": "diffusion"}])
    levels: dict[str, int] = Field(description="tokens of a user per modality")
    codes: dict[str, int] = Field(description="codes per level")
    notes: list[str] = Field(description="what a reader should know of the generated content")


class Item(BaseModel):
    """An item of the catalogue."""

    id: str = Field(examples=["50"])
    title: str = Field(examples=["Star Wars"])
    year: int | None = Field(None, examples=[1977])
    attributes: list[str] = Field(examples=[["Action", "Sci-Fi"]])
    image: str | None = Field(None, description="path of its catalogue image", examples=["/v1/items/50/image"])


class RecommendedItem(Item):
    """An item with the user's score of it."""

    score: float


class Token(BaseModel):
    """A preference token, with the words and items that set it apart."""

    name: str = Field(examples=["<text_0_17>"])
    level: int
    code: int
    words: list[str] = Field(examples=[["horror", "thriller"]])
    items: list[str] = Field(examples=[["Psycho", "Alien"]])


Tokens = dict[str, list[Token]]


class User(BaseModel):
    """A known user."""

    id: str
    history_size: int = Field(description="training items")
    history: list[Item] = Field(description="the latest of them, newest first")
    tokens: Tokens


class Recommendations(BaseModel):
    """Best first."""

    tokens: Tokens
    items: list[RecommendedItem]


class Card(BaseModel):
    """A recommendation made visible; parts are null until made."""

    id: str
    item: Item
    tokens: dict[str, list[str]]
    seed: int
    heads: dict[str, str]
    complete: bool
    text: str | None = None
    image: str | None = Field(None, description="path of the PNG; .webp instead of .png gives WebP")
    scores: dict[str, float] | None = Field(
        None, description="personalization, consistency and fidelity, in the space that was trained"
    )


class Job(BaseModel):
    """A card in the making."""

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    position: int | None = Field(None, description="jobs before it, while it is queued")
    error: str | None = None
    card: Card = Field(description="with the parts made so far")


class Health(BaseModel):
    """`degraded`: recommendations are served, but a generator failed at its last attempt."""

    status: Literal["ok", "ready", "degraded", "draining"]
    generators: dict[str, Literal["ok", "failing"]] = {}
    queued: int = 0
