"""RecBole's dataset with the content of its items."""

from __future__ import annotations

import logging
from pathlib import Path

from recbole.data.dataset import Dataset
from torch import Tensor

from recbole_dppmg.data.content import read_items
from recbole_dppmg.data.features import item_features
from recbole_dppmg.data.given import given_features
from recbole_dppmg.data.images import ImageFault, locate_images
from recbole_dppmg.data.reviews import Reviews
from recbole_dppmg.settings import ContentSettings, group_of
from recbole_dppmg.types import Item

logger = logging.getLogger(__name__)


class DPPMGDataset(Dataset):
    """Interactions as RecBole reads, filters, renumbers and splits them; texts, images and their features by
    RecBole's internal item id, loaded when first asked for and shared by the parts of a split."""

    def __init__(self, config):
        self._content: dict[str, object] = {}
        super().__init__(config)

    @property
    def items(self) -> list[Item]:
        """One item per internal id; 0 is RecBole's padding and empty."""
        if "items" not in self._content:
            settings = group_of(ContentSettings, self.config)
            folder = Path(self.dataset_path)
            ids = [str(token) for token in self.field2id_token[self.iid_field]]
            items = read_items(folder / f"{self.dataset_name}.item", ids, settings, self.iid_field)
            items[0] = Item(id=ids[0], title="", text="")
            self._content["items"], faults = locate_images(items, folder, settings)
            self._content["faults"] = faults
            if bad := [fault for fault in faults if not fault.used]:
                told = "; ".join(f"{fault.file} of item '{fault.item}': {fault.reason}" for fault in bad[:3])
                logger.warning("images: %d left out, `encode` lists them all: %s", len(bad), told)
        return self._content["items"]

    @property
    def image_faults(self) -> list[ImageFault]:
        """Images that are left out, and those that are used after a conversion."""
        return self._content.get("faults", []) if self.items else []

    def item_features(self, modality: str) -> tuple[Tensor, Tensor]:
        """Frozen features float32 (n_items, D) and a bool mask (n_items,) of the items that have any."""
        if modality not in self._content:
            settings, folder = group_of(ContentSettings, self.config), Path(self.dataset_path)
            given = settings.text_features if modality == "text" else settings.image_features
            if given:
                index = folder / settings.feature_index if settings.feature_index else None
                ids = [str(token) for token in self.field2id_token[self.iid_field]]
                self._content[modality] = given_features(folder / given, index, ids)
            else:
                self._content[modality] = item_features(self.items, modality, settings)
        return self._content[modality]

    def reviews(self, pairs: Tensor) -> list[str | None] | None:
        """What each user wrote of the item, by (user, item) rows int64 (P, 2); None: the dataset has no
        `review_field`.

        Raises:
            ConfigError: the column is not in the file.
        """
        field = group_of(ContentSettings, self.config).review_field
        if field is None:
            return None
        if "reviews" not in self._content:
            parts = self.config["benchmark_filename"]
            names = [[self.dataset_name, part, "inter"] for part in parts] if parts else [[self.dataset_name, "inter"]]
            files = [Path(self.dataset_path) / ".".join(name) for name in names]
            users, items = ((name, self.field2token_id[name]) for name in (self.uid_field, self.iid_field))
            self._content["reviews"] = Reviews(files, field, users, items, self.config["field_separator"])
        return self._content["reviews"].of(pairs)
