"""A LoRA on a UNet's attention, trained beside the tokens where a run asks for it (peft's format on disk)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from recbole_dppmg.artifacts import load_tensors, save_tensors
from recbole_dppmg.errors import BundleError

_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
_FILE = "adapter_model.safetensors"


def add_lora(unet: Any, rank: int, seed: int) -> list[nn.Parameter]:
    """Put a LoRA that changes nothing yet on every attention; returns its parameters, float32."""
    from peft import LoraConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=_TARGETS))
    parameters = [p for name, p in unet.named_parameters() if "lora_" in name]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return parameters


def save_lora(unet: Any, directory: str | Path) -> None:
    """Write the LoRA as a peft adapter."""
    from peft import get_peft_model_state_dict

    save_tensors(Path(directory) / _FILE, get_peft_model_state_dict(unet))
    unet.peft_config["default"].save_pretrained(directory)


def load_lora(unet: Any, directory: str | Path) -> None:
    """Read what `save_lora` wrote into a UNet with a LoRA of the same rank.

    Raises:
        BundleError: the file is missing, damaged, or of another rank or UNet.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    path = Path(directory) / _FILE
    found = load_tensors(path)
    own = get_peft_model_state_dict(unet)
    for name in sorted(found.keys() | own.keys()):
        if name not in found or name not in own or found[name].shape != own[name].shape:
            raise BundleError(f"{path}: '{name}' does not fit the pipeline; copy the bundle again")
    set_peft_model_state_dict(unet, found)
