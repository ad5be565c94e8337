"""A tiny dataset with images, and arguments for whole runs on it with tiny real models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tiny_encoders
import torch
from PIL import Image
from preference_data import ITEMS, write_dataset

TINTS = ((200, 30, 30), (240, 150, 180), (200, 170, 90), (60, 90, 220))


def write_images(folder: Path) -> Path:
    """`{item}.png`, 16 x 16: a colour for each kind, with noise."""
    folder.mkdir()
    generator = np.random.default_rng(5)
    for item in range(ITEMS):
        noise = generator.normal(0, 20, (16, 16, 3))
        Image.fromarray((np.array(TINTS[item % 4]) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{item}.png")
    return folder


def make_models(folder: Path) -> dict[str, str]:
    """Keys that name tiny encoders and generators."""
    from tiny_language_models import save_language_model
    from tiny_pipelines import save_sd

    return {
        "text_encoder": str(tiny_encoders.save_text_encoder(folder / "bert")),
        "image_encoder": str(tiny_encoders.save_image_encoder(folder / "vit")),
        "text_generator": str(save_language_model(folder / "lm")),
        "image_generator": str(save_sd(folder / "sd")),
    }


def make_keys(root: Path) -> dict[str, object]:
    """Everything that a quick run needs, the dataset and the models under `root`."""
    torch.manual_seed(0)
    write_dataset(root)
    return {
        "dataset": "tiny",
        "data_path": str(root),
        "image_dir": str(write_images(root / "covers")),
        "feature_cache": str(root / "features"),
        **make_models(root / "models"),
        "embedding_size": 16,
        "train_batch_size": 512,
        "learning_rate": 0.01,
        "epochs": 20,
        "quantizer_warmup": 5,
        "quantizer_codes": 8,
        "knn_k": 4,
        "baselines": [],
        "text_inject_steps": 30,
        "image_inject_steps": 30,
        "text_learning_rate": 0.02,
        "reward_steps": 30,
        "reward_text_learning_rate": 0.02,
        "reward_image_learning_rate": 0.003,
        "reward_group": 4,
        "sampling_steps": 4,
        "text_max_new_tokens": 12,
        "joint_epochs": 5,
        "threads": 1,
    }


def arguments(keys: dict[str, object], **more: object) -> list[str]:
    """`--key=value` arguments."""
    return [f"--{key}={'' if value is None else value}" for key, value in (keys | more).items()]
