"""Milliseconds per decoded token, PanGu-pi beside LLaMA: `python benchmarks/latency.py`.

    LLaMA             the plain block, 32 layers
    PanGu-pi          the same depth with the series activation and one augmented shortcut: slower by a few per cent
    PanGu-pi, 29/32   the paper's cut in depth (7B: 29 layers instead of 32), where its gain in latency comes from

Greedy decoding of one sequence with a key/value cache, after a short prompt; float32 on a CPU and bfloat16 on a GPU.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from measure import finish, table, take_turns
from transformers import DynamicCache

from arch.pangu_pi import PanguPiConfig, PanguPiForCausalLM
from arch.pangu_pi.accounting import count_parameters

LAYERS, REDUCED = 32, 29
PROMPT = 32


def build(configs: Mapping[str, PanguPiConfig], device: torch.device) -> dict[str, PanguPiForCausalLM]:
    """The models, all on the first one's weights: what differs is only what PanGu-pi adds, and memory holds one."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    models: dict[str, PanguPiForCausalLM] = {}
    shared: dict[str, torch.Tensor] = {}
    for name, config in configs.items():
        models[name] = PanguPiForCausalLM(config).to(device, dtype).eval()
        shared = shared or models[name].state_dict()
        present = models[name].state_dict().keys() & shared.keys()
        models[name].load_state_dict({key: shared[key] for key in present}, strict=False, assign=True)
    return models


def decoder(model: PanguPiForCausalLM, tokens: int) -> Callable[[], float]:
    """A function that decodes `tokens` tokens and returns the milliseconds each took (the prompt is not timed)."""
    prompt_1S = torch.arange(PROMPT, device=model.device)[None]

    @torch.inference_mode()
    def run() -> float:
        cache = DynamicCache(config=model.config)
        token_11 = model(prompt_1S, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        for _ in range(tokens):
            token_11 = model(token_11, past_key_values=cache, use_cache=True).logits.argmax(-1)
        token_11.item()  # waits for a GPU
        return 1000 * (time.perf_counter() - start) / tokens

    return run


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024, help="hidden width; heads of 128, FFN by LLaMA's rule")
    parser.add_argument("--tokens", type=int, default=4, help="decoded per turn")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--threads", type=int, default=None, help="of the CPU; by default all")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = {
        "vocab_size": 8192,
        "hidden_size": options.width,
        "intermediate_size": -(-8 * options.width // 3 // 256) * 256,
        "num_attention_heads": max(1, options.width // 128),
    }
    configs = {
        "LLaMA": PanguPiConfig(**shape, num_hidden_layers=LAYERS, series_terms=1, shortcut_count=0),
        "PanGu-pi": PanguPiConfig(**shape, num_hidden_layers=LAYERS),
        "PanGu-pi, 29/32": PanguPiConfig(**shape, num_hidden_layers=REDUCED),
    }
    for name, config in configs.items():
        print(f"{name}: {count_parameters(config).total:,} parameters, {config.num_hidden_layers} layers")
    figures = take_turns(
        {name: decoder(model, options.tokens) for name, model in build(configs, device).items()}, options.repeats
    )
    result = table(f"Decoding on {device.type}, width {options.width}", "ms per token", figures, "PanGu-pi")
    ratios = {}
    print("\nTime relative to LLaMA, within a turn: median (lowest to highest)")
    for name in ("PanGu-pi", "PanGu-pi, 29/32"):
        turns = [ours / llama for ours, llama in zip(figures[name], figures["LLaMA"], strict=True)]
        print(f"{name}: {median(turns):.3f} ({min(turns):.3f} to {max(turns):.3f})")
        ratios[name] = {"median": median(turns), "lowest": min(turns), "highest": max(turns)}
    print(f"wanted: PanGu-pi at most 1.05, PanGu-pi, 29/32 near {REDUCED / LAYERS:.3f}")
    finish("latency", {"decoding": result, "ratios": ratios}, threads=torch.get_num_threads(), width=options.width)


if __name__ == "__main__":
    main()
