"""What is written is whole, comes back bit for bit, and transformers loads it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from groundingml.models import CheckpointError, load_model, load_tokenizer
from groundingml.models.checkpoints.save import save_pretrained
from groundingml.models.grounding_dino.config import BERT_BASE

FAMILIES = [("grounding-dino", 4), ("mm-grounding-dino", 4), ("mm-grounding-dino", 5)]


def assert_equal(found, expected):
    expected = expected.state_dict()
    found = found.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("family", "levels"), FAMILIES)
def test_transformers_loads_it_with_equal_outputs(tmp_path, small_model, batch_of, family, levels):
    from transformers import AutoModelForZeroShotObjectDetection

    ours = small_model(family, levels, decoder_eps=1e-5, head_eps=1e-5)  # transformers' eps
    ours.save_pretrained(tmp_path / "x")
    theirs, info = AutoModelForZeroShotObjectDetection.from_pretrained(
        tmp_path / "x", output_loading_info=True
    )
    theirs.model.text_backbone.set_attn_implementation("sdpa")
    assert not any(
        info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    )
    batch = batch_of([(96, 117), (64, 70)], [[1, 2], [3]])
    inputs = {"pixel_values": batch.pixel_values, "input_ids": batch.input_ids}
    with torch.no_grad():
        expected = theirs.eval()(
            **inputs, pixel_mask=batch.pixel_mask.long(), attention_mask=batch.attention_mask
        )
        selected = expected.enc_outputs_class.amax(-1).topk(ours.config.num_queries, dim=1).indices
        found = ours(
            **inputs, pixel_mask=batch.pixel_mask, attention_mask=batch.attention_mask, topk_indices=selected
        )
    length = batch.input_ids.shape[1]
    torch.testing.assert_close(found.logits[..., :length], expected.logits[..., :length], atol=1e-4, rtol=0)
    torch.testing.assert_close(found.boxes_cxcywh, expected.pred_boxes, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "levels"), FAMILIES)
def test_round_trip(tmp_path, small_model, family, levels):
    changes = {
        "score_aggregation": "mean",
        "default_threshold": 0.21,
        "image_size": (320, 512),
        "head_eps": 0.01,
    }
    model = small_model(family, levels, **changes)
    model.save_pretrained(tmp_path / "new" / "x")
    loaded = load_model(tmp_path / "new" / "x")
    assert_equal(loaded, model)
    assert loaded.config == model.config


def test_half_precision_is_kept_in_the_file(tmp_path, small_model):
    model = small_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "x")
    loaded = load_model(tmp_path / "x")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert_equal(loaded.to(torch.bfloat16), model)


def test_processor_and_tokenizer_lie_beside_the_weights(tmp_path, small_model):
    from transformers import AutoProcessor

    text = "a cat. remote-control."
    small_model(
        text_config=BERT_BASE | {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    ).save_pretrained(tmp_path / "x")
    processor = AutoProcessor.from_pretrained(tmp_path / "x")
    assert processor.image_processor.size == {"shortest_edge": 800, "longest_edge": 1333}
    expected = [101, 1037, 4937, 1012, 6556, 1011, 2491, 1012, 102]  # of bert-base-uncased
    assert processor.tokenizer(text)["input_ids"] == expected
    assert load_tokenizer(tmp_path / "x")(text)["input_ids"] == expected


def test_a_vocabulary_that_the_model_lacks_is_not_written(tmp_path, small_model):
    small_model().save_pretrained(tmp_path / "x")  # 1,200 words
    assert not (tmp_path / "x" / "tokenizer.json").exists()


def test_the_callers_tokenizer_is_written(tmp_path, small_model):
    tokenizer = load_tokenizer(make_folder_with_vocabulary(tmp_path / "words"))
    save_pretrained(small_model(), tmp_path / "x", tokenizer)
    assert load_tokenizer(tmp_path / "x")("cat dog")["input_ids"] == [2, 5, 1, 3]


def make_folder_with_vocabulary(folder):
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncat\n")
    return folder


def test_saving_over_the_folder_that_was_loaded(tmp_path, small_model):
    folder = tmp_path / "x"
    small_model(seed=1).save_pretrained(folder)
    (folder / "README.md").write_text("mine")
    model = load_model(folder)
    expected = {name: tensor.clone() + 1 for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    model.save_pretrained(folder)
    assert all(torch.equal(t, expected[name]) for name, t in load_model(folder).state_dict().items())
    assert (folder / "README.md").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]


def test_files_can_be_read_by_whom_the_folder_allows(tmp_path, small_model):
    small_model().save_pretrained(tmp_path / "x")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "x").iterdir()}
    assert len(set(modes.values())) == 1, modes


FULL_DISK = """
import resource, sys, torch
from groundingml.models import CheckpointError, load_model
model = load_model(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # no file may grow beyond 50 kB
for parameter in model.parameters():
    parameter.data.zero_()
for target in sys.argv[2:]:
    try:
        model.save_pretrained(target)
    except CheckpointError as error:
        print(error)
"""


def test_a_full_disk_is_an_error_and_leaves_what_was_there(tmp_path, small_model):
    model = small_model()
    model.save_pretrained(tmp_path / "kept")
    command = [sys.executable, "-c", FULL_DISK, *(str(tmp_path / name) for name in ("kept", "kept", "new"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    lines = done.stdout.strip().splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"could not write the model to {tmp_path / 'kept'}",
        f"could not write the model to {tmp_path / 'new'}",
    ]
    assert_equal(load_model(tmp_path / "kept"), model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]


def test_a_folder_that_cannot_be_made(tmp_path, small_model):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"could not write the model to .*file/x"):
        small_model().save_pretrained(tmp_path / "file" / "x")


def test_what_transformers_has_no_class_for_is_refused_before_anything_is_written(tmp_path, small_model):
    model = small_model()
    model.config = replace(model.config, group_norm_groups=16)
    with pytest.raises(ValueError, match="group_norm_groups=16"):
        model.save_pretrained(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_config_json_is_readable_by_people(tmp_path, small_model):
    small_model("mm-grounding-dino").save_pretrained(tmp_path / "x")
    values = json.loads((tmp_path / "x" / "config.json").read_text())
    assert values["model_type"] == "mm-grounding-dino"
    assert values["architectures"] == ["MMGroundingDinoForObjectDetection"]
