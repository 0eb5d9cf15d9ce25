"""The tokenizer: byte-level BPE in CLIP's form, one token for every word of the captions.

Trained on the captions' words, their rarer synonyms and `words.txt`, the most frequent single words
of WordNet 3.0's sense-tagged texts with words about pictures. Anything else falls back to pieces,
in the end to bytes.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from .captions import BACKGROUNDS, COLOURS, JOINS, PLAIN, SUBJECTS, WITH_BACKGROUND

MAX_LENGTH = 40  # tokens, with the start and the end token; the longest caption has 18
MERGES = 3400
START, END = "<|startoftext|>", "<|endoftext|>"


def caption_words() -> list[str]:
    """Every word that a caption can hold, each once."""
    templates = " ".join((*PLAIN, *WITH_BACKGROUND, *JOINS)).replace("{s}", "").replace("{b}", "")
    tables = [*SUBJECTS, *COLOURS, *BACKGROUNDS, "a", "an", *templates.split()]
    rarer = [w for _, rare in SUBJECTS.values() for w in rare]
    rarer += [w for rare in COLOURS.values() for w in rare]
    return list(dict.fromkeys(tables + rarer))


def ordinary_words() -> list[str]:
    """The word list that lies beside this file."""
    return Path(__file__).with_name("words.txt").read_text().split()


def learn() -> tuple[dict[str, int], list[str]]:
    """Learn the vocabulary (token -> id) and the merges ("left right"), as CLIP orders them."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + MERGES,
        initial_alphabet=alphabet,
        # named so that they get their numbers first: ties between merges go by number, and would
        # otherwise follow the order of a randomly seeded hash table
        special_tokens=alphabet + [c + "</w>" for c in alphabet],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    # The captions' words come often, so that their merges are learned first.
    words = caption_words() * 100 + ordinary_words() * 2
    bpe.train_from_iterator(words, trainer)
    merges = [
        " ".join(pair) if isinstance(pair, list) else pair
        for pair in json.loads(bpe.to_str())["model"]["merges"]
    ]
    tokens = alphabet + [c + "</w>" for c in alphabet]
    tokens += ["".join(merge.split(" ")) for merge in merges]
    return {t: i for i, t in enumerate(dict.fromkeys([*tokens, START, END]))}, merges


def write(folder: Path) -> CLIPTokenizer:
    """Learn the tokenizer, write it to `folder` and read it back."""
    vocab, merges = learn()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_LENGTH,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "add_prefix_space": False,
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    specials = {k: v for k, v in settings.items() if str(k).endswith("_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(specials, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(str(folder))
