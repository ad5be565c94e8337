"""The bundle as an MLflow model: rows that name a user or a history go in, cards come out.

`mlflow models serve -m runs:/<run id>/bundle --env-manager local` serves it over HTTP where this package is
installed. MLflow loads it by `loader_module`, so that nothing in it is pickled.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch

from recbole_dppmg import __version__
from recbole_dppmg.bundle import Bundle
from recbole_dppmg.bundle_files import read_config
from recbole_dppmg.data.lists import ItemLists
from recbole_dppmg.errors import DataError
from recbole_dppmg.evaluation.cards import Choice, generate_cards

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

#: The model's name; a run's folder of this name is what it holds.
NAME = "bundle"
_CARDS = 4
_MOST = 100


class BundleModel:
    """What MLflow calls `predict` of; see `signature` for what goes in and comes out."""

    def __init__(self, bundle: Bundle):
        self._bundle, self._lock = bundle, Lock()  # a server asks from several threads

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """The cards of each row, one row after the other.

        Args:
            model_input: with the column `user`, an id of the training, or `history`, a list of item ids from the
                oldest to the latest; a row has one of the two, and a user's items in training are not recommended.
            params: `cards`, how many for each row, and `seed`, of texts and images.

        Returns:
            Cards as in `cards.jsonl`; `user` is null where there was a history, `image` is a PNG in base64, and
            `row` counts the input's rows from 0.

        Raises:
            MlflowException: a row has neither or both, an id is unknown, or a parameter is out of range.
        """
        from mlflow.exceptions import MlflowException

        params = {"cards": _CARDS, "seed": self._bundle.seed} | dict(params or {})
        try:
            number = params["cards"]
            if not 1 <= number <= _MOST:
                raise DataError(f"params: cards is {number}; give 1 to {_MOST}")
            chosen = [self._choose(n, row, number) for n, row in enumerate(model_input.to_dict("records"))]
        except DataError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        with self._lock:
            made = generate_cards(self._bundle, [choice for row in chosen for choice in row], int(params["seed"]))
        rows = [n for n, row in enumerate(chosen) for _ in row]
        return [
            {"row": row} | asdict(card) | {"user": card.user or None, "image": _png(image)}
            for row, (card, image) in zip(rows, made, strict=True)
        ]

    def _choose(self, n: int, row: Mapping[str, Any], number: int) -> list[Choice]:
        space = self._bundle.space
        user, history = row.get("user"), row.get("history")
        user = user if isinstance(user, str) else None
        listed = isinstance(history, Iterable) and not isinstance(history, str)
        if (user is not None) == listed or not (listed or history is None or history != history):  # NaN: none given
            raise DataError(f"row {n}: give either 'user', an id, or 'history', a list of item ids")
        if user is not None:
            known = self._bundle.row_of(user)
            found, tokens = space.recommend(torch.tensor([known]), number), space.user_tokens(known)
        else:
            items = [self._item(n, str(item)) for item in history]
            folded = space.fold_in([items])
            found = space.recommend(folded.fused, number, ItemLists.of([items]))
            tokens = {m: tuple(codes[0].tolist()) for m, codes in folded.codes.items()}
        best = zip(*(part[0].tolist() for part in found), strict=True)
        return [Choice(user or "", item, score, tokens) for item, score in best if score > -torch.inf]

    def _item(self, n: int, item: str) -> int:
        rows = self._bundle.item_rows
        if item not in rows:
            raise DataError(f"row {n}: item '{item}' is not among the {len(rows)} items of this bundle")
        return rows[item]


def _png(image: Any) -> str | None:
    if image is None:
        return None
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _load_pyfunc(path: str) -> BundleModel:
    """What MLflow calls to load the model; `path` is the bundle's folder."""
    return BundleModel(Bundle.from_pretrained(path))


def signature(seed: int):
    """The MLflow signature: columns that go in and come out, and parameters with their defaults."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, Map, ParamSchema, ParamSpec, Schema

    names = Map(Array("string"))
    # of an array MLflow would refuse the rows that have none where others do; `predict` looks at each itself
    given = [ColSpec("string", "user", required=False), ColSpec(AnyType(), "history", required=False)]
    made: Sequence[tuple[str, Any, bool]] = [
        ("row", "long", True), ("user", "string", False), ("item", "string", True), ("title", "string", True),
        ("score", "double", True), ("text", "string", True), ("image", "string", False), ("tokens", names, True),
        ("scores", Map("double"), True), ("error", "string", False),
    ]  # fmt: skip
    params = ParamSchema([ParamSpec("cards", "long", _CARDS), ParamSpec("seed", "long", seed)])
    return ModelSignature(Schema(given), Schema([ColSpec(kind, name, needed) for name, kind, needed in made]), params)


def log_bundle(client: MlflowClient, run_id: str, folder: Path) -> str:
    """Log the bundle in `folder` as the MLflow model that a run has made; returns the model's id.

    Raises:
        BundleError: there is no bundle.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    _, seed, _ = read_config(folder / "config.json")
    run = client.get_run(run_id)
    logged = client.create_logged_model(run.info.experiment_id, NAME, run_id, model_type="recbole-dppmg")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    described = Model(
        artifact_path=logged.artifact_location, model_uuid=logged.model_id, run_id=run_id, model_id=logged.model_id
    )
    with TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it wants an example beside the signature
        save_model(
            Path(scratch) / "model",
            loader_module=__name__,
            data_path=str(folder),
            mlflow_model=described,
            signature=signature(seed),
            pip_requirements=[f"recbole-dppmg=={__version__}"],
        )
        client.log_model_artifacts(logged.model_id, str(Path(scratch) / "model"))
    client.finalize_logged_model(logged.model_id, "READY")
    return logged.model_id
