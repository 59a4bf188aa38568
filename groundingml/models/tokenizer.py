"""BERT's tokenizer, called as transformers' fast tokenizers are.

Both run the same library (`tokenizers`) on the same file; importing transformers for it takes as long as
reading a model's weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

_SPECIAL = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}


class FastTokenizer:
    """The tokenizer of a `tokenizer.json` with BERT's special tokens.

    Args:
        file: the `tokenizer.json`; padding and truncation that it asks for are left out.
        model_max_length: written to the config of `save_pretrained`.
    """

    def __init__(self, file: str | Path, model_max_length: int = 512) -> None:
        # Imported here: models can be loaded and run without it.
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.model_max_length = model_max_length
        ids = {name: self._tokenizer.token_to_id(token) for name, token in _SPECIAL.items()}
        self.unk_token_id: int | None = ids["unk"]
        self.sep_token_id: int | None = ids["sep"]
        self.pad_token_id: int | None = ids["pad"]
        self.cls_token_id: int | None = ids["cls"]
        self.mask_token_id: int | None = ids["mask"]
        self.all_special_ids: list[int] = [number for number in ids.values() if number is not None]

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool = False,
        truncation: bool = False,
        return_offsets_mapping: bool = False,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> dict[str, Any]:
        """Encode one text or several.

        Args:
            text: a string, or a sequence of them.
            add_special_tokens: put [CLS] in front and [SEP] behind.
            padding: fill up to the longest text with [PAD].
            truncation: not supported; prompts are split instead.
            return_offsets_mapping: also the (first, past the last) character of each token.
            return_tensors: "pt" for tensors (texts, tokens); None for lists, not nested for a single text.
            verbose: of no effect, since there is nothing to warn about.

        Returns:
            `input_ids`, `token_type_ids`, `attention_mask` and, if asked for, `offset_mapping`.
        """
        if truncation:
            raise ValueError("this tokenizer does not truncate; split the text over several prompts")
        if return_tensors not in (None, "pt"):
            raise ValueError(f"return_tensors must be None or 'pt', got {return_tensors!r}")
        texts = [text] if isinstance(text, str) else list(text)
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        if padding:
            longest = max((len(encoding) for encoding in encodings), default=0)
            for encoding in encodings:
                encoding.pad(longest, pad_id=self.pad_token_id or 0)
        columns: dict[str, Any] = {
            "input_ids": [encoding.ids for encoding in encodings],
            "token_type_ids": [encoding.type_ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
        }
        if return_offsets_mapping:
            columns["offset_mapping"] = [encoding.offsets for encoding in encodings]
        if return_tensors == "pt":
            return {name: torch.tensor(rows) for name, rows in columns.items()}
        return {name: rows[0] for name, rows in columns.items()} if isinstance(text, str) else columns

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of a token, that of [UNK] for what is none."""
        number = self._tokenizer.token_to_id(token)
        return self.unk_token_id if number is None else number

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        return str(
            self._tokenizer.decode([int(number) for number in ids], skip_special_tokens=skip_special_tokens)
        )

    def get_vocab(self) -> dict[str, int]:
        """All tokens and their ids."""
        return dict(self._tokenizer.get_vocab())

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and the config beside it, which transformers reads too."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": self.model_max_length}
        config |= {f"{name}_token": token for name, token in _SPECIAL.items()}
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
