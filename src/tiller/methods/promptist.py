"""`promptist`: a language model trained to rewrite prompts for pictures that people like."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import torch
from safetensors import SafetensorError
from torch import Tensor

from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput
from tiller.core.paths import located
from tiller.core.search import Phase
from tiller.methods._rewrites import Rewrites
from tiller.methods.base import Task
from tiller.models.quiet import quietly

_ASKED = " Rephrase:"  # what the model was trained to continue


@dataclass(frozen=True)
class Promptist(Rewrites):
    """The rewrite of the user's prompt by Promptist, a GPT-2, beside the prompt itself.

    The model reads "PROMPT Rephrase:" and its best beams are the candidates. It was trained by
    supervised examples, then by reinforcement for aesthetics and similarity, and not for your
    reward: a baseline, and none that searches. Weights are read from safetensors alone.

    Attributes:
        rewriter: a hub id or a folder with the model (the paper's is microsoft/Promptist).
        tokenizer: where its tokenizer is read if `rewriter` has none (the authors' demo: gpt2).
        num_beams: of the beam search (the paper: 8).
        max_new_tokens: that a rewrite may have (the paper: 75).
        length_penalty: of the beam search; below 0 prefers short rewrites (the paper: -1).
        candidates: how many of the best beams are drawn (the paper: 1).
    """

    rewriter: str = "microsoft/Promptist"
    tokenizer: str = "gpt2"
    num_beams: int = 8
    max_new_tokens: int = 75
    length_penalty: float = -1.0
    candidates: int = 1

    paths: ClassVar[tuple[str, ...]] = ("rewriter", "tokenizer")
    citation: ClassVar[str] = "Hao et al., Optimizing prompts for text-to-image generation, 2023"
    default_budget: ClassVar[Budget] = Budget(steps=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.candidates <= self.num_beams:
            raise InvalidInput(
                f"expected 1 <= candidates <= num_beams, got candidates={self.candidates!r}, "
                f"num_beams={self.num_beams!r}"
            )
        if self.max_new_tokens < 1:
            raise InvalidInput(f"max_new_tokens must be at least 1, got {self.max_new_tokens!r}")

    def build(self, task: Task) -> list[Phase]:
        """The prompt, then its rewrites; the rewriter is loaded before anything is drawn."""
        rewriter = _load(self.rewriter, self.tokenizer)
        rewriter.check(task.prompt, self.max_new_tokens)
        return self.rewrites(task, lambda history, seed: rewriter(task.prompt, self))


class _Rewriter:
    """A causal language model with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def check(self, prompt: str, new: int) -> None:
        """Refuse what is longer than the model reads."""
        limit = int(self.model.config.max_position_embeddings)
        length = self._read(prompt).shape[1]
        if length + new > limit:
            raise InvalidInput(
                f"the rewriter reads {limit - new} tokens beside max_new_tokens={new}, the prompt "
                f"has {length}; shorten it"
            )

    @torch.no_grad()
    def __call__(self, prompt: str, settings: Promptist) -> list[str]:
        """The best beams' texts; the prompt itself where the model says nothing."""
        from transformers import GenerationConfig

        tokens = self._read(prompt)
        end = self.tokenizer.eos_token_id
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=settings.max_new_tokens,
            num_beams=settings.num_beams,
            num_return_sequences=settings.candidates,
            length_penalty=settings.length_penalty,
            eos_token_id=end,
            pad_token_id=end,
        )
        found = self.model.generate(
            tokens, attention_mask=torch.ones_like(tokens), generation_config=config
        )
        texts = self.tokenizer.batch_decode(found[:, tokens.shape[1] :], skip_special_tokens=True)
        plain = [" ".join(text.split()) for text in texts]
        return [text for text in dict.fromkeys(plain) if text] or [prompt]

    def _read(self, prompt: str) -> Tensor:
        text = " ".join(prompt.split()) + _ASKED
        tokens: Tensor = self.tokenizer(text, return_tensors="pt").input_ids
        return tokens


@lru_cache(maxsize=1)
def _load(name: str, tokenizer: str) -> _Rewriter:
    """The rewriter in a folder or on the hub, on the CPU; read once a process.

    Raises:
        InvalidInput: it is not there, not safetensors, or no causal language model.
    """
    from transformers import AutoModelForCausalLM

    folder = located(name)
    local = folder.is_dir()
    source = str(folder) if local else name
    with quietly():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                source, use_safetensors=True, local_files_only=local or None
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise InvalidInput(_remedy(name, local, error)) from error
        model.requires_grad_(False).eval()
        words = _tokenizer(source, local) or _tokenizer(tokenizer, Path(tokenizer).is_dir())
    if words is None:
        raise InvalidInput(
            f"the rewriter {name!r} has no tokenizer, and none can be read from {tokenizer!r} (a "
            "folder or a hub id) either; give a folder with GPT-2's: --set tokenizer=FOLDER"
        )
    if max(words(_ASKED).input_ids) >= model.config.vocab_size:
        raise InvalidInput(
            f"expected a tokenizer of at most {model.config.vocab_size} tokens for the rewriter "
            f"{name!r}, got one of {len(words)}; give its own: --set tokenizer=FOLDER"
        )
    return _Rewriter(model, words)


def _tokenizer(source: str, local: bool) -> Any:
    """The tokenizer in a folder or on the hub; None if there is none (Promptist's own has none)."""
    from transformers import AutoTokenizer

    try:
        words = AutoTokenizer.from_pretrained(source, local_files_only=local or None)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return words if words(_ASKED).input_ids else None  # transformers makes an empty one of nothing


def _remedy(name: str, local: bool, error: BaseException) -> str:
    if local:
        return (
            f"cannot load a rewriter from {name!r}: {_first_line(error)}; expected a causal "
            "language model in transformers' layout: config.json and model.safetensors"
        )
    other = "or give a folder: --set rewriter=FOLDER"
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return (
            f"the hub is offline (HF_HUB_OFFLINE=1) and the rewriter {name!r} is not in its cache "
            f"as safetensors: download it first, {other}"
        )
    return (
        f"cannot load the rewriter {name!r} from the hub: {_first_line(error)}; check the name and "
        f"the connection (pickled weights are never loaded: convert them to safetensors), {other}"
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".:;")
