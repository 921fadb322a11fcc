"""`python -m eval generate`: sampled continuations of a few prompts, from an exported folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eval.commands import GenerateOptions
from eval.models import ModelLoadError, load_model

PROMPTS = ("In the beginning", "The king said to", "我觉得这本书", "中国政府")
"""Openings in the two languages of the built-in corpus, used when none are given."""


def generate(model: Any, tokenizer: Any, prompts: list[str], tokens: int, temperature: float, seed: int) -> list[str]:
    """One continuation per prompt (the prompt not repeated), at most `tokens` tokens each.

    Args:
        model: a causal LM with `generate`, in eval mode.
        tokenizer: its tokenizer.
        prompts: texts to continue.
        tokens: tokens to add at most; an end-of-sequence token ends earlier.
        temperature: 0 takes the likeliest token every time.
        seed: seeds the draws.
    """
    import torch

    torch.manual_seed(seed)
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_p": 0.95} if temperature > 0 else {"do_sample": False}
    )
    texts = []
    for prompt in prompts:
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        # A prompt begins a document, and the tokenizer of an export adds no bos of its own accord.
        begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        ids_1S = torch.tensor([[*begin, *ids]], device=model.device)
        output_1S = model.generate(
            input_ids=ids_1S,
            attention_mask=torch.ones_like(ids_1S),
            max_new_tokens=tokens,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            **sampling,
        )
        texts.append(tokenizer.decode(output_1S[0, ids_1S.shape[1] :], skip_special_tokens=True))
    return texts


def run(options: GenerateOptions) -> None:
    """Loads, generates, prints and writes the samples."""
    if not (Path(options.model) / "config.json").is_file():
        hint = "; export it first: python -m arch export" if (Path(options.model) / "checkpoints").is_dir() else ""
        raise ModelLoadError(f"model {options.model!r}: no exported folder (it has no config.json){hint}")
    loaded = load_model(options.model, "cpu", options.trust_remote_code)
    prompts = options.prompt or list(PROMPTS)
    texts = generate(loaded.model, loaded.tokenizer, prompts, options.tokens, options.temperature, options.seed)
    for prompt, text in zip(prompts, texts, strict=True):
        print(f"{prompt} | {text.strip()}\n")
    if options.output is not None:
        samples = [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]
        Path(options.output).write_text(json.dumps(samples, indent=1, ensure_ascii=False), encoding="utf-8")
