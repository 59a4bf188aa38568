"""Loading: which config wins, what does not fit and why, digests, tokenizers, memory."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from groundingml.models import CheckpointError, checkpoint_digest, load_model, load_tokenizer
from groundingml.models.checkpoints.huggingface import config_to_huggingface


@pytest.fixture
def folder(tmp_path, small_model):
    small_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")


def edit_config(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def test_ready_for_inference(folder):
    model = load_model(str(folder))
    assert not model.training
    for tensor in (*model.parameters(), *model.buffers()):
        assert tensor.device.type == "cpu"
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())


def test_no_two_parameters_share_memory(folder):
    """An optimiser that changes one must not change another."""
    parameters = list(load_model(folder).parameters())
    spans = sorted((p.data_ptr(), p.data_ptr() + p.numel() * p.element_size()) for p in parameters)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@pytest.mark.parametrize("kind", ["dict", "dataclass"])
def test_a_given_config_wins(folder, small_model, kind):
    config = replace(small_model().config, default_threshold=0.11)
    edit_config(folder, model_type="something-else")
    given = config_to_huggingface(config) if kind == "dict" else config
    assert load_model(folder, given).config == config
    with pytest.raises(CheckpointError, match="something-else"):
        load_model(folder)


def test_older_uploads_hold_copies_and_buffers(folder, small_model):
    def add(weights):
        for name in [n for n in weights if n.startswith(("bbox_embed.", "class_embed."))]:
            weights[f"model.decoder.{name}"] = weights[name].clone()
        block = "model.backbone.conv_encoder.model.encoder.layers.0.blocks.0.attention.self"
        weights[f"{block}.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
        weights["model.text_backbone.embeddings.position_ids"] = torch.arange(256)[None]

    edit_weights(folder, add)
    expected = small_model().state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in load_model(folder).state_dict().items())


def test_missing_unexpected_and_misshaped_parameters_are_all_named(folder):
    def damage(weights):
        for name in [n for n in weights if n.startswith("model.decoder.layers.1.self_attn.")]:
            del weights[name]
        weights["model.adapter.weight"] = torch.zeros(3, 2)
        weights["model.text_projection.weight"] = torch.zeros(32, 5)

    edit_weights(folder, damage)
    with pytest.raises(CheckpointError) as error:
        load_model(folder)
    message = str(error.value)
    assert str(folder) in message
    assert "8 missing: model.decoder.layers.1.self_attn.query.weight (32, 32)" in message
    assert "1 unexpected: model.adapter.weight (3, 2)" in message
    assert "model.text_projection.weight: the file has (32, 5), the model needs (32, 24)" in message


def test_long_lists_are_cut_to_eight_and_a_count(folder):
    def damage(weights):
        for name in [n for n in weights if n.startswith("model.decoder.layers.")]:
            del weights[name]

    edit_weights(folder, damage)
    with pytest.raises(CheckpointError, match=r"108 missing: (\S+ \([\d, ]+\),? ){8}and 100 more"):
        load_model(folder)


def test_a_config_of_another_size_is_the_likely_cause(folder, small_model):
    config = small_model().config
    with pytest.raises(
        CheckpointError, match=r"another model: backbone\.embed_dim is 12 in the file, 24 in the config$"
    ):
        load_model(folder, replace(config, backbone=replace(config.backbone, embed_dim=24)))


def test_the_first_llmdet_conversions_are_refused_by_name(folder):
    """They say grounding-dino in config.json and have class biases."""
    edit_config(folder, model_type="grounding-dino")
    with pytest.raises(CheckpointError, match=r"fushh7/llmdet_swin.*use llmdet-tiny"):
        load_model(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not JSON"), ("[]", "not the config of a model"), ('{"model_type": "detr"}', "'detr'")],
)
def test_damaged_config(folder, text, said):
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        load_model(folder)


def test_file_without_config_needs_published_sizes(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="give its config"):
        load_model(folder)


def test_digest_is_of_the_content(folder):
    file = folder / "model.safetensors"
    expected = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    assert checkpoint_digest(folder) == checkpoint_digest(str(file)) == expected
    os.utime(file, (0, 0))
    assert checkpoint_digest(folder) == expected
    edit_weights(folder, lambda weights: weights["model.level_embed"][0, 0].add_(1.0))
    assert checkpoint_digest(folder) != expected


def test_digest_of_shards(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    place = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in sorted(set(place.values())):
        save_file({name: weights[name] for name in names if place[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    first = checkpoint_digest(folder)
    assert len(first) == 12
    assert load_model(folder).state_dict().keys()
    last = {name: weights[name] for name in names if place[name] == max(place.values())}
    last[max(last)] = last[max(last)] + 1
    save_file(last, folder / max(place.values()))
    assert checkpoint_digest(folder) != first


@pytest.mark.parametrize("source", ["folder", "file"])
def test_tokenizer_falls_back_to_berts(folder, source):
    tokenizer = load_tokenizer(folder if source == "folder" else folder / "model.safetensors")
    found = tokenizer(["Cat.", "remote control."], padding=True, return_offsets_mapping=True)
    assert found["input_ids"] == [[101, 4937, 1012, 102, 0], [101, 6556, 2491, 1012, 102]]
    assert found["offset_mapping"][1][:3] == [(0, 0), (0, 6), (7, 14)]
    assert found["token_type_ids"] == [[0] * 5, [0] * 5]


def test_tokenizer_of_the_folder_wins(folder):
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncat\n")
    assert load_tokenizer(folder)("Cat dog")["input_ids"] == [2, 5, 1, 3]


MEMORY = """
import pathlib, re, sys
from groundingml.models import load_model
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
load_model(sys.argv[1])  # imports, and what the first load allocates
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
before = peak()
model = load_model(sys.argv[2])
print(peak() - before)
"""


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_weights_are_never_in_memory_twice(tmp_path, folder, small_model, kind):
    bert = small_model().config.text_config | {"vocab_size": 200_000, "hidden_size": 96}
    small_model(text_config=bert).save_pretrained(tmp_path / "large")
    if kind == "pth":
        weights = load_file(tmp_path / "large" / "model.safetensors")
        torch.save(weights, tmp_path / "large" / "pytorch_model.bin")
        (tmp_path / "large" / "model.safetensors").unlink()
    size = sum(file.stat().st_size for file in (tmp_path / "large").iterdir())
    command = [sys.executable, "-c", MEMORY, str(folder), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert size > 70e6
    assert int(done.stdout) < 0.5 * size, "the file should be mapped, not read"
