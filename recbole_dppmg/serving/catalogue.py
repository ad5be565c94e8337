"""Users, items, tokens and recommendations: all that needs no generator."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException

from recbole_dppmg.serving import schemas
from recbole_dppmg.serving.engine import EXCLUDE_MAX, Recommended, UnknownItem
from recbole_dppmg.serving.problems import IMAGES, documented
from recbole_dppmg.serving.schemas import Id, K
from recbole_dppmg.serving.service import Service, service_of

router = APIRouter(prefix="/v1", responses=documented(422))
_Service = Annotated[Service, Depends(service_of)]
_UserId = Annotated[str, Path(max_length=256, description="a user id of the dataset", examples=["1"])]
_ItemId = Annotated[str, Path(max_length=256, description="an item id of the dataset", examples=["50"])]
_Search = Annotated[str, Query(max_length=100)]
_Limit = Annotated[int, Query(ge=1, le=50)]


@router.get("/bundle", tags=["catalogue"], summary="What is served")
async def about(service: _Service) -> schemas.About:
    bundle = service.engine.bundle
    shapes = {m: codebook.shape for m, codebook in bundle.space.codebooks.items()}
    return schemas.About(
        bundle=service.engine.bundle_id, users=len(bundle.user_rows), items=len(bundle.item_rows),
        heads=service.engine.heads,
        levels={m: s[0] for m, s in shapes.items()}, codes={m: s[1] for m, s in shapes.items()},
        notes=["Texts and images of cards are generated and may be wrong."],
    )  # fmt: skip


@router.get("/users", tags=["catalogue"], summary="Find users by id")
def users(service: _Service, query: _Search = "", limit: _Limit = 10) -> list[str]:
    return service.engine.search_users(query, limit)


@router.get("/items", tags=["catalogue"], summary="Find items by title")
def items(service: _Service, query: _Search = "", limit: _Limit = 10) -> list[schemas.Item]:
    return [service.item(row) for row in service.engine.search_items(query, limit)]


@router.get(
    "/items/{item:path}/image", tags=["catalogue"], summary="An item's catalogue image", response_class=Response,
    responses=IMAGES | documented(404) | {304: {"description": "Not changed"}},
)  # fmt: skip
def item_image(service: _Service, item: _ItemId, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    try:
        found = service.engine.catalogue_image(service.engine.item_row(item))
    except UnknownItem as error:
        raise HTTPException(404, str(error)) from error
    if found is None:
        raise HTTPException(404, "the item has no image")
    path, checksum = found
    headers = {"etag": f'"{checksum[:32]}"', "cache-control": "private, max-age=3600"}
    if matches(if_none_match, headers["etag"]):
        return Response(status_code=304, headers=headers)
    return FileResponse(path, headers=headers)


@router.get("/users/{user:path}/recommendations", tags=["recommendations"], summary="For a known user",
            responses=documented(404))  # fmt: skip
def recommendations(
    service: _Service, user: _UserId, k: K = 10,
    exclude: Annotated[list[Id], Query(max_length=EXCLUDE_MAX, description="ids of items not to recommend")] = [],  # noqa: B006
) -> schemas.Recommendations:  # fmt: skip
    """The best items that the user has not met in training."""
    return _answer(service, service.engine.recommend_user(user, k, exclude))


@router.post("/recommendations", tags=["recommendations"], summary="For someone new, by items they like")
def fold_in(service: _Service, wanted: schemas.RecommendationsWanted) -> schemas.Recommendations:
    """Nothing is trained: the person's preference and tokens follow from the items at once."""
    return _answer(service, service.engine.recommend_history(wanted.history, wanted.k, wanted.exclude))


@router.get("/users/{user:path}/tokens", tags=["recommendations"], summary="A user's preference tokens",
            responses=documented(404))  # fmt: skip
def tokens(service: _Service, user: _UserId) -> schemas.Tokens:
    return service.engine.describe(service.engine.tokens_of_user(user))


@router.get("/users/{user:path}", tags=["catalogue"], summary="A user: history and tokens", responses=documented(404))
def one_user(service: _Service, user: _UserId) -> schemas.User:
    size, rows = service.engine.recent(user)
    return schemas.User(
        id=user, history_size=size, history=[service.item(row) for row in rows],
        tokens=service.engine.describe(service.engine.tokens_of_user(user)),
    )  # fmt: skip


def _answer(service: Service, found: Recommended) -> schemas.Recommendations:
    items = [
        schemas.RecommendedItem(**service.item_fields(row), score=round(score, 6))
        for row, score in zip(found.items, found.scores, strict=True)
    ]
    return schemas.Recommendations(tokens=service.engine.describe(found.tokens), items=items)


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether the client has it already (RFC 9110, section 13.1.2)."""
    given = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return etag in given or "*" in given
