"""Our tokenizer against transformers' on the same file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import groundingml
from groundingml.models.tokenizer import FastTokenizer

FILE = Path(groundingml.__file__).parent / "embedded" / "nano" / "tokenizer.json"
TEXTS = [
    "a cat . remote control .", "Ünïcode CAFÉ, naïve—dash", "", "   ", "[SEP] in words [CLS]", "🦄 unicorn?",
    "antidisestablishmentarianism U.S. flag", "数字 and 日本語", "tab\tand\nnewline", "x" * 150,
]  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    transformers = pytest.importorskip("transformers")
    names = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(FILE),
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in names.items()},
    )
    return theirs, FastTokenizer(FILE)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("padding", [True, False])
def test_encodes_as_transformers_does(pair, special, padding):
    theirs, ours = pair
    options = {"add_special_tokens": special, "padding": padding, "return_offsets_mapping": True}
    assert ours(TEXTS, **options) == dict(theirs(TEXTS, **options))
    for text in TEXTS:
        options["padding"] = False
        assert ours(text, **options) == dict(theirs(text, **options))


def test_tensors(pair):
    ours = pair[1]
    expected, found = (tokenizer(TEXTS[0], return_tensors="pt") for tokenizer in pair)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert ours(TEXTS, padding=True, return_tensors="pt")["input_ids"].shape[0] == len(TEXTS)


def test_ids_and_texts(pair):
    theirs, ours = pair
    for name in ("unk_token_id", "sep_token_id", "pad_token_id", "cls_token_id", "mask_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert set(ours.all_special_ids) == set(theirs.all_special_ids)
    assert ours.convert_tokens_to_ids(".") == theirs.convert_tokens_to_ids(".") == 1012
    assert ours.convert_tokens_to_ids("no such token") == ours.unk_token_id
    assert ours.get_vocab() == theirs.get_vocab()
    assert len(ours) == len(theirs)
    ids = ours("a remote control .")["input_ids"]
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)


def test_saved_and_read_by_both(pair, tmp_path):
    transformers = pytest.importorskip("transformers")
    _, ours = pair
    ours.save_pretrained(tmp_path)
    again = FastTokenizer(tmp_path / "tokenizer.json")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again(TEXTS)["input_ids"] == theirs(TEXTS)["input_ids"] == ours(TEXTS)["input_ids"]


def test_what_it_cannot_do_is_refused(pair):
    with pytest.raises(ValueError, match="does not truncate"):
        pair[1]("cat", truncation=True)
    with pytest.raises(ValueError, match="return_tensors"):
        pair[1]("cat", return_tensors="tf")


def test_loading_a_model_imports_no_transformers():
    code = (
        "import sys; from groundingml.models import load_model, load_tokenizer\n"
        "load_model('nano'); load_tokenizer('nano')('a cat .')\n"
        "heavy = {'transformers', 'sympy', 'torch._dynamo', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
