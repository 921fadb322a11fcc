"""Peak memory and time of the loss over a large vocabulary: `python benchmarks/loss_memory.py`.

    chunked        pretrain.losses.chunked_cross_entropy.linear_cross_entropy: forward and both gradients, one chunk of
    logits at a time, as
                   large as the CPU's rule says (pretrain/losses/loss_layout.py) or --chunk_elements
    materialised   logits of all tokens in float32, then torch's cross-entropy, as transformers does it

Every measurement runs in a process of its own, because an allocator that has once been full hides the next peak. The
peak counts from the moment before the loss to the end of backward, the gradients of hidden states and head included.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from measure import finish, table, take_turns
from torch.nn import functional as F

from pretrain.losses.chunked_cross_entropy import linear_cross_entropy

MIB = 2**20


def inputs(tokens: int, width: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, head and labels, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, tokens, width, generator=generator, requires_grad=True)
    weight = (torch.randn(vocabulary, width, generator=generator) * 0.02).requires_grad_()
    return hidden, weight, torch.randint(0, vocabulary, (1, tokens), generator=generator)


def mean_loss(
    way: str, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, chunk_elements: int | None = None
) -> torch.Tensor:
    """The mean loss, computed one way or the other."""
    if way == "chunked":
        return linear_cross_entropy(hidden, weight, labels, chunk_elements=chunk_elements)[0] / labels.numel()
    return F.cross_entropy((hidden @ weight.T).float().flatten(0, 1), labels.flatten())


def resident_peak() -> int:
    """Peak resident bytes of this process since `reset_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def reset_peak() -> None:
    """Makes the present resident size the peak."""
    Path("/proc/self/clear_refs").write_text("5")


def measure_here(way: str, tokens: int, width: int, vocabulary: int, chunk_elements: int | None) -> dict[str, float]:
    """Peak MiB above the start and seconds of one forward and backward pass, in this process."""
    hidden, weight, labels = inputs(tokens, width, vocabulary)
    mean_loss(way, *inputs(8, width, 64)).backward()  # libraries allocate their own memory at first use
    reset_peak()
    before, started = resident_peak(), time.perf_counter()
    mean_loss(way, hidden, weight, labels, chunk_elements).backward()
    seconds = time.perf_counter() - started
    return {"mib": (resident_peak() - before) / MIB, "seconds": seconds}


def measure(way: str, sizes: list[str], figure: str) -> float:
    """`measure_here` in a new process."""
    command = [sys.executable, __file__, "--way", way, *sizes]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)[figure]


def largest_difference(tokens: int, width: int, vocabulary: int) -> float:
    """Largest difference of any gradient between the two ways, relative to the largest gradient."""
    gradients = []
    for way in ("chunked", "materialised"):
        hidden, weight, labels = inputs(tokens, width, vocabulary)
        gradients.append(torch.autograd.grad(mean_loss(way, hidden, weight, labels), (hidden, weight)))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*gradients, strict=True))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=100_883, help="PanGu-pi's own")
    parser.add_argument(
        "--chunk_elements", type=int, help="logits at a time; by default as many as the CPU's rule says"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=["chunked", "materialised"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = (options.tokens, options.width, options.vocabulary)
    if options.way:
        print(json.dumps(measure_here(options.way, *shape, options.chunk_elements)))
        return
    sizes = [f"--{name}={value}" for name, value in zip(("tokens", "width", "vocabulary"), shape, strict=True)]
    if options.chunk_elements is not None:
        sizes.append(f"--chunk_elements={options.chunk_elements}")
    tables = {}
    for figure, unit in (("mib", "MiB"), ("seconds", "s")):
        contenders = {way: lambda way=way: measure(way, sizes, figure) for way in ("chunked", "materialised")}  # noqa: B023
        tables[figure] = table(
            f"Loss over {shape[2]:,} pieces, {shape[0]:,} tokens",
            unit,
            take_turns(contenders, options.repeats),
            "chunked",
        )
    logits = options.tokens * options.vocabulary * 4 / MIB
    peak, difference = tables["mib"]["rows"]["chunked"]["median"], largest_difference(256, *shape[1:])
    print(f"\none copy of the logits would be {logits:,.0f} MiB; the chunked peak is {peak / logits:.1%} of that")
    print(f"largest relative difference of a gradient: {difference:.1e}")
    finish("loss_memory", tables, tokens=options.tokens, width=options.width, vocabulary=options.vocabulary,
           logits_mib=logits, gradient_difference=difference)  # fmt: skip


if __name__ == "__main__":
    main()
