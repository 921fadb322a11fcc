"""Feature collapse by layer: diversity, effective dimension, isotropy (PanGu-pi, arXiv 2312.17276, sections 3, 5.2).

    Z_l  hidden states after block l (l = 0: embeddings), first position of every sequence dropped as an outlier
    d_M(Z) = ||(I - e e^T) Z||_F, e = 1/sqrt(N): the distance to "all tokens identical"; per sequence, over ||Z||_F
    d(eps) = how many principal components of all tokens explain a share eps of the variance

Moments are accumulated in FP64 token block by token block, so memory is one D x D matrix per layer whatever the number
of tokens. Shape suffixes: N tokens, D hidden width, B sequences, S positions.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.errors import InputError
from eval.commands import CollapseOptions
from eval.language.text_files import read_texts
from eval.models import LoadedModel, load_model
from tokenizer.inputs.broken_text import BrokenText

FREQUENT_TOKENS = 5
SHORTEST_SEQUENCE = 16


class CollapseError(InputError, ValueError):
    """The text is too short, or the model has no decoder layers that can be found."""


def token_distance(z_ND: Tensor) -> Tensor:
    """d_M(Z): Frobenius norm of Z [N, D] after its mean token is taken away; 0 means that all tokens are equal."""
    return (z_ND - z_ND.mean(dim=0)).norm()


def relative_diversity(z_ND: Tensor) -> float:
    """d_M(Z) / ||Z||_F in [0, 1]; scale-free. 0 for Z = 0."""
    z_ND = z_ND.double()
    norm = z_ND.norm()
    return float(token_distance(z_ND) / norm) if norm > 0 else 0.0


def effective_dimension(eigenvalues_D: Tensor, threshold: float) -> int:
    """d(threshold): the smallest number of largest eigenvalues whose share of the sum reaches ``threshold``."""
    descending_D = eigenvalues_D.clamp(min=0).sort(descending=True).values
    total = descending_D.sum()
    if total == 0:
        return 0
    reached_D = descending_D.cumsum(0) >= threshold * total * (1 - 1e-12)  # the last sum may round below the total
    return int(reached_D.int().argmax()) + 1


@dataclass
class Moments:
    """Mean and scatter of a stream of token blocks, exact in FP64 (Chan's pairwise update)."""

    width: int
    count: int = 0
    mean_D: Tensor = field(init=False)
    scatter_DD: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.mean_D = torch.zeros(self.width, dtype=torch.float64)
        self.scatter_DD = torch.zeros(self.width, self.width, dtype=torch.float64)

    def add(self, z_ND: Tensor) -> None:
        """Adds a block of tokens [N, D] of any floating dtype."""
        z_ND = z_ND.to("cpu", torch.float64)
        added, mean_D = z_ND.shape[0], z_ND.mean(dim=0)
        centred_ND, shift_D = z_ND - mean_D, mean_D - self.mean_D
        total = self.count + added
        self.scatter_DD += centred_ND.T @ centred_ND + torch.outer(shift_D, shift_D) * (self.count * added / total)
        self.mean_D += shift_D * (added / total)
        self.count = total

    def covariance_DD(self) -> Tensor:
        """Population covariance [D, D]."""
        return self.scatter_DD / max(self.count, 1)


@dataclass(frozen=True)
class LayerCollapse:
    """What is measured after one block."""

    layer: int
    """0 is the embedding output, l the output of block l."""
    diversity: float
    """d_M(Z)/||Z||_F, mean over sequences."""
    log_diversity: float
    """Its natural logarithm, mean over sequences; -inf is written as null."""
    effective_dimension: int
    """d(threshold) of all tokens."""
    variance_top3: float
    """Total variance of the first three principal components."""
    share_top3: float
    """That over the total variance: 1 means that the features lie in three dimensions."""
    isotropy_top3: float
    """Third over first eigenvalue: 1 is a ball, 0 a line."""


def summarise(layer: int, diversities: Sequence[float], moments: Moments, threshold: float) -> LayerCollapse:
    """The numbers of one layer from its per-sequence diversities and its moments."""
    eigenvalues_D = torch.linalg.eigvalsh(moments.covariance_DD()).flip(0).clamp(min=0)
    top, total = eigenvalues_D[:3], float(eigenvalues_D.sum())
    logs = [math.log(value) if value > 0 else -math.inf for value in diversities]
    return LayerCollapse(
        layer=layer,
        diversity=sum(diversities) / len(diversities),
        log_diversity=sum(logs) / len(logs),
        effective_dimension=effective_dimension(eigenvalues_D, threshold),
        variance_top3=float(top.sum()),
        share_top3=float(top.sum()) / total if total else 0.0,
        isotropy_top3=float(top[-1] / top[0]) if top[0] > 0 else 0.0,
    )


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The stack of blocks. Raises `CollapseError` for a model without one."""
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise CollapseError(f"{type(model).__name__}: no list of {depth} decoder layers found")


@contextmanager
def recorded_states(layers: nn.ModuleList) -> Iterator[dict[int, Tensor]]:
    """While open, every forward pass leaves Z_0 ... Z_L [B, S, D] in the dictionary, before any final norm."""
    states: dict[int, Tensor] = {}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states[0] = args[0] if args else kwargs["hidden_states"]

    def after(index: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            states[index] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [layer.register_forward_hook(after(number)) for number, layer in enumerate(layers, start=1)]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def sequences(texts: Iterable[str], tokenizer: Any, length: int, tokens: int) -> list[list[int]]:
    """Token sequences of at most ``length`` with ``tokens`` positions in all, first positions not counted.

    First the beginnings of all documents, then their continuations; every sequence starts with the beginning-of-text
    token, or without one with eos, as documents do in training (tokenizer/document_tokens.py).

    Raises `CollapseError` when the text is too short.
    """
    opening = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    start = [] if opening is None else [opening]
    body = length - len(start)
    documents: list[list[int]] = []
    chosen: list[list[int]] = []
    pieces = _encoded(texts, tokenizer, documents)
    missing, offset, found = tokens, 0, False
    while True:
        for ids in pieces:
            piece = start + ids[offset : offset + body]
            if len(piece) >= SHORTEST_SEQUENCE:
                found = True
                chosen.append(piece[: missing + 1])
                missing -= len(chosen[-1]) - 1
            if missing <= 0:
                return chosen
        if not found:
            raise CollapseError(f"the text has {tokens - missing} usable tokens, {tokens} are wanted; give more text")
        pieces, offset, found = iter(documents), offset + body, False


def _encoded(texts: Iterable[str], tokenizer: Any, documents: list[list[int]]) -> Iterator[list[int]]:
    """Encodes document by document and remembers them for the next window."""
    for text in texts:
        documents.append(tokenizer.encode(text, add_special_tokens=False))
        yield documents[-1]


def batches(chosen: Sequence[list[int]], batch_size: int) -> Iterator[list[list[int]]]:
    """Sequences of equal length together, so that nothing is padded; long ones first."""
    batch: list[list[int]] = []
    for ids in sorted(chosen, key=len, reverse=True):
        if batch and (len(batch) == batch_size or len(batch[0]) != len(ids)):
            yield batch
            batch = []
        batch.append(ids)
    yield batch


@torch.no_grad()
def measure_collapse(
    model: Any, chosen: Sequence[list[int]], threshold: float = 0.8, batch_size: int = 4
) -> list[LayerCollapse]:
    """The measurements of every layer of a causal LM in memory, embeddings first.

    Args:
        model: transformers-style model in eval mode.
        chosen: token sequences, from `sequences`.
    """
    layers = decoder_layers(model)
    moments: list[Moments] = []
    diversities: list[list[float]] = [[] for _ in range(len(layers) + 1)]
    with recorded_states(layers) as states, tqdm(total=len(chosen), desc="hidden states", unit="seq") as bar:
        for batch in batches(chosen, batch_size):
            model.base_model(input_ids=torch.tensor(batch, device=model.device), use_cache=False)
            moments = moments or [Moments(states[number].shape[-1]) for number in range(len(layers) + 1)]
            for number, z_BSD in sorted(states.items()):
                kept_BND = z_BSD[:, 1:]
                moments[number].add(kept_BND.flatten(0, 1))
                diversities[number] += [relative_diversity(z_ND) for z_ND in kept_BND]
            bar.update(len(batch))
    return [summarise(n, diversities[n], layer, threshold) for n, layer in enumerate(moments)]


@torch.no_grad()
def frequent_token_scatter(
    model: Any, chosen: Sequence[list[int]], layers: Sequence[int], batch_size: int
) -> dict[int, dict[int, list[list[float]]]]:
    """{layer: {token id: [[x, y, z], ...]}}: the most frequent tokens in the first three principal components.

    Two passes: the components first, then the projections of those tokens only.
    """
    stack = decoder_layers(model)
    if wrong := [number for number in layers if not 0 <= number <= len(stack)]:
        raise CollapseError(f"--scatter_layers {wrong[0]}: the model has layers 0 to {len(stack)}")
    frequent = [token for token, _ in Counter(i for ids in chosen for i in ids[1:]).most_common(FREQUENT_TOKENS)]
    moments: dict[int, Moments] = {}
    points: dict[int, dict[int, list[list[float]]]] = {layer: {token: [] for token in frequent} for layer in layers}
    axes_D3: dict[int, Tensor] = {}
    with recorded_states(stack) as states:
        for second_pass in (False, True):
            for batch in batches(chosen, batch_size):
                ids_BS = torch.tensor(batch, device=model.device)
                model.base_model(input_ids=ids_BS, use_cache=False)
                for layer in layers:
                    z_ND = states[layer][:, 1:].flatten(0, 1).to("cpu", torch.float64)
                    if not second_pass:
                        moments.setdefault(layer, Moments(z_ND.shape[1])).add(z_ND)
                        continue
                    projected_N3 = (z_ND - moments[layer].mean_D) @ axes_D3[layer]
                    tokens_N = ids_BS[:, 1:].flatten().cpu()
                    for token in frequent:
                        points[layer][token] += projected_N3[tokens_N == token].tolist()
            if not second_pass:
                for layer, moment in moments.items():
                    axes_D3[layer] = torch.linalg.eigh(moment.covariance_DD()).eigenvectors[:, -3:].flip(1)
    return points


def measure(loaded: LoadedModel, texts: Sequence[Path], options: CollapseOptions) -> dict[str, Any]:
    """One model's entry of collapse.json."""
    chosen = sequences(
        interleaved(texts, options.broken_text), loaded.tokenizer, options.sequence_length, options.tokens
    )
    layers = measure_collapse(loaded.model, chosen, options.threshold, options.batch_size)
    return {
        "model": loaded.source,
        "tokens": sum(len(ids) - 1 for ids in chosen),
        "sequences": len(chosen),
        "threshold": options.threshold,
        "hidden_size": loaded.model.config.hidden_size,
        "layers": [
            {name: value if math.isfinite(value) else None for name, value in asdict(layer).items()} for layer in layers
        ],
    }


def interleaved(paths: Sequence[Path], broken_text: BrokenText = "skip") -> Iterator[str]:
    """Documents of several files in turn, so that every file (language) has its share."""
    for texts in zip_longest(*(read_texts(path, broken_text) for path in paths)):
        yield from (text for text in texts if text is not None)


def named_models(arguments: Sequence[str], option: str = "model") -> dict[str, str]:
    """{name: path} from ``NAME=PATH`` or ``PATH``, which is named by its last part. Raises on a name given twice."""
    models: dict[str, str] = {}
    for argument in arguments:
        name, separator, path = argument.rpartition("=")
        name = name if separator else Path(argument).resolve().name
        if name in models:
            raise CollapseError(f"--{option}: two {option}s are called {name!r}; give one another name with NAME=PATH")
        models[name] = path
    return models


def run(options: CollapseOptions) -> None:
    """``python -m eval collapse``."""
    from eval.probes.collapse_plots import save_collapse_plot, save_scatter_plot

    output, texts = Path(options.output), [Path(path) for path in options.text]
    for text in texts:
        next(read_texts(text), None)  # a mistyped file should not first wait for the model
    output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for name, path in named_models(options.model).items():
        loaded = load_model(path, options.device)
        results[name] = measure(loaded, texts, options)
        if options.scatter_layers:
            chosen = sequences(
                interleaved(texts, options.broken_text), loaded.tokenizer, options.sequence_length, options.tokens
            )
            points = frequent_token_scatter(loaded.model, chosen, options.scatter_layers, options.batch_size)
            save_scatter_plot(points, results[name]["layers"], loaded.tokenizer, output / f"scatter_{name}.png")
        print(table(name, results[name]))
    (output / "collapse.json").write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
    save_collapse_plot(results, output / "collapse.png")
    print(f"written: {output / 'collapse.json'}")


def table(name: str, result: dict[str, Any]) -> str:
    """One model's layers as text."""
    head = f"{name}: {result['tokens']} tokens in {result['sequences']} sequences, hidden size {result['hidden_size']}"
    title = f"{'layer':>5} {'d_M/|Z|':>9} {'d(' + str(result['threshold']) + ')':>7} {'top-3 var':>10} {'share':>6}"
    rows = [
        f"{row['layer']:>5} {row['diversity']:>9.4f} {row['effective_dimension']:>7} "
        f"{row['variance_top3']:>10.4g} {row['share_top3']:>6.1%}"
        for row in result["layers"]
    ]
    return "\n".join([head, title, *rows])
