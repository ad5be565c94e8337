"""Folders that are no usable pipeline: one clear error each, nothing opened that could run code."""

import json
import shutil
import subprocess
import sys

import pytest
import tiny_pipelines
import torch

from recbole_dppmg.errors import AssetError
from recbole_dppmg.generators.loading import convert_command, load_backbone


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    return {"sd15": tiny_pipelines.save_sd(root / "sd15"), "compact": tiny_pipelines.save_compact(root / "compact")}


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved["sd15"], tmp_path / "pipeline")


@pytest.fixture
def compact(saved, tmp_path):
    return shutil.copytree(saved["compact"], tmp_path / "compact")


def edit(path, **changes):
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | changes))


def refused(folder, *words):
    with pytest.raises(AssetError) as caught:
        load_backbone(str(folder), torch.float32)
    message = str(caught.value)
    assert "\n" not in message
    for word in ("image_generator", *words):
        assert word in message, message
    return message


def test_unknown_class(folder):
    edit(folder / "model_index.json", _class_name="FluxPipeline")
    refused(folder, "FluxPipeline", "StableDiffusionXLPipeline")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer"])
def test_a_part_of_another_library_is_not_imported(folder, part, tmp_path):
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    edit(folder / "model_index.json", **{part: ["evil", "UNet2DConditionModel"]})
    refused(folder, part, "evil")
    assert not (tmp_path / "ran").exists()


def test_a_scheduler_that_is_none(folder):
    edit(folder / "model_index.json", scheduler=["diffusers", "AutoPipelineForText2Image"])
    refused(folder, "scheduler", "AutoPipelineForText2Image")


@pytest.mark.parametrize("text", ["", "[]", "{not json", '{"_class_name": ["StableDiffusionPipeline"]}'])
def test_a_broken_index(folder, text):
    (folder / "model_index.json").write_text(text)
    refused(folder, str(folder))


@pytest.mark.parametrize(
    "missing",
    [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae",
        "text_encoder/config.json",
        "tokenizer",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_missing_files(folder, missing):
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    refused(folder, missing.partition("/")[0])


def test_no_directory_at_all(tmp_path):
    with pytest.raises(AssetError, match="no such directory"):
        load_backbone(str(tmp_path / "nowhere"), torch.float32)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_damaged_weights(folder, part):
    weights = next((folder / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(folder, "download it again")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_lack_a_tensor_are_not_filled_at_random(folder, part):
    from safetensors.torch import load_file, save_file

    weights = next((folder / part).glob("*.safetensors"))
    tensors = load_file(weights)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, weights, metadata={"format": "pt"})
    refused(folder, part, name.rpartition(".")[0])


def test_pickled_weights_are_refused_and_the_command_converts_them(tmp_path):
    folder = tiny_pipelines.save_sd(tmp_path / "it's pickled", safe_serialization=False)
    message = refused(folder, ".bin is pickled", convert_command(folder))
    command = message.partition("with: ")[2].partition(" and give")[0]
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True, capture_output=True)
    assert load_backbone(f"{folder}-safetensors", torch.float32).size == 16


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_pickle_is_never_opened(folder, part, tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    weights = next((folder / part).glob("*.safetensors"))
    weights.unlink()
    weights.with_suffix(".bin").write_bytes(pickle.dumps(Bomb()))
    refused(folder, part, "pickled")
    assert not (tmp_path / "ran").exists()


def test_single_files_are_refused_with_the_command(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"x")
    refused(tmp_path / "model.ckpt", "single file", "from_single_file", "save_pretrained")


def test_half_precision_variants_are_found(tmp_path):
    folder = tiny_pipelines.save_sd(tmp_path / "half", variant="fp16")
    assert not (folder / "unet" / "diffusion_pytorch_model.safetensors").exists()
    assert load_backbone(str(folder), torch.float32).unet.dtype == torch.float32


def test_other_kinds_of_pipelines(folder):
    edit(folder / "unet" / "config.json", in_channels=9)
    refused(folder)  # an inpainting UNet: its weights do not fit what is declared, or its channels the autoencoder


@pytest.mark.parametrize(
    ("part", "changes", "word"),
    [
        ("unet", {"sample_size": 100_000}, "2048"),
        ("scheduler", {"prediction_type": "flow_prediction"}, "flow_prediction"),
        ("unet", {"cross_attention_dim": 48}, "download it again"),
    ],
)
def test_configs_that_make_no_sense(folder, part, changes, word):
    edit(folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json"), **changes)
    refused(folder, word)


def test_the_conditioning_of_a_pipeline_without_text_encoder(compact):
    path = compact / "conditioning.json"
    assert load_backbone(str(compact), torch.float32).encode_prompts(["a", ""]).states.shape == (2, 32, 384)
    for text in ('{"text_encoder": "all-MiniLM-L6-v2"}', '{"text_encoder": 3, "max_length": 32}', "{", "[]"):
        path.write_text(text)
        refused(compact, "conditioning.json")
    path.write_text('{"text_encoder": "no-such-encoder", "max_length": 32}')
    refused(compact, "no-such-encoder")
    path.unlink()
    refused(compact, "conditioning.json")
