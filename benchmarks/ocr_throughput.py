"""Images per second of training PARSeq, and how long training waits for words: `python benchmarks/ocr_throughput.py`.

    ours        the K orderings of a step share encoder, image keys and context; one pass of the decoder
    reference   the published architecture written plainly: nn.MultiheadAttention, one pass per ordering
    released    the same as the released code calls it: attention weights are returned, and thrown away

All with the same weights, images, labels and orderings, dropout on, fused AdamW; equal losses are checked first.

Then a step with the stem of convolutions beside one with patches; and training on an LMDB of drawn words with
augmentation, through our loader, with and without workers: how many images a second, and which share of the time the
step waits for its batch. The first batch, for which the workers start, has a table of its own.
"""

import argparse
import io
import math
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from measure import finish, table, take_turns
from torch import Tensor, nn
from torch.nn import functional as F

from arch.parseq.model import Parseq
from arch.parseq.orderings import attention_masks
from data_pipeline.loader import Batch, Loader
from data_pipeline.order import Order
from data_pipeline.words.stores import LmdbWriter
from data_pipeline.words.synthetic import SynthConfig, WordPainter
from pretrain.monitoring.throughput import Throughput
from pretrain.tasks import WordRecognitionTask
from tokenizer.characters import CHARSETS

WORKERS = (1, 2, 0)
SHAPES = Path(__file__).resolve().parents[1] / "configs" / "parseq" / "models"
WORDS = "house river mountain 2024 quick brown station exit market bakery north 15 cafe theatre street open closed"


class ReferenceLayer(nn.Module):
    """Two streams through the same weights (docs/methods/ocr.md: decoder)."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, weights: bool) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm_q, self.norm_c = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout, self.weights = nn.Dropout(dropout), weights

    def forward(self, query: Tensor, content: Tensor, memory: Tensor, mask: Tensor, padding: Tensor) -> Tensor:
        known = self.norm_c(content)
        found, _ = self.self_attn(
            self.norm_q(query), known, known, key_padding_mask=padding, need_weights=self.weights, attn_mask=mask
        )
        query = query + self.dropout(found)
        found, _ = self.cross_attn(self.norm1(query), memory, memory, need_weights=self.weights)
        query = query + self.dropout(found)
        return query + self.dropout(self.linear2(self.dropout(F.gelu(self.linear1(self.norm2(query))))))


class Reference(nn.Module):
    """PARSeq with one decoder layer, whose content stream is never computed; parameters are named as ours."""

    def __init__(self, model: Parseq, weights: bool) -> None:
        super().__init__()
        config = model.config
        assert config.decoder_layers == 1, "the plain transcription has one layer"
        self.config = config
        self.encoder = Parseq(config).encoder
        hidden = config.decoder_mlp_ratio * config.width
        layer = ReferenceLayer(config.width, config.decoder_heads, hidden, config.dropout, weights)
        self.decoder = nn.ModuleDict({"layers": nn.ModuleList([layer]), "norm": nn.LayerNorm(config.width)})
        self.head = nn.Linear(config.width, config.classes)
        self.text_embed = nn.ModuleDict({"embedding": nn.Embedding(config.pad + 1, config.width)})
        self.pos_queries = nn.Parameter(torch.empty(1, config.max_length + 1, config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.load_state_dict(model.state_dict())

    def decode(self, ids: Tensor, memory: Tensor, mask: Tensor, padding: Tensor) -> Tensor:
        """Logits under one ordering."""
        embedded = math.sqrt(self.config.width) * self.text_embed["embedding"](ids)
        content = torch.cat([embedded[:, :1], self.pos_queries[:, : ids.shape[1] - 1] + embedded[:, 1:]], dim=1)
        query = self.pos_queries[:, : ids.shape[1]].expand(len(ids), -1, -1)
        layer = self.decoder["layers"][0]  # type: ignore[index]
        hidden = layer(self.dropout(query), self.dropout(content), memory, mask, padding)
        return self.head(self.decoder["norm"](hidden))

    def loss(self, images: Tensor, ids: Tensor, orderings: Tensor) -> Tensor:
        """Mean over counted tokens, ordering by ordering (docs/methods/ocr.md: loss)."""
        memory, inputs, targets = self.encoder(images), ids[:, :-1], ids[:, 1:]
        padding = (inputs == self.config.pad) | (inputs == self.config.eos)
        _, masks = attention_masks(orderings)
        total, counted = torch.zeros((), device=ids.device), 0
        for number, mask in enumerate(masks):
            if number == 2:
                targets = torch.where(targets == self.config.eos, self.config.pad, targets)
            count = int((targets != self.config.pad).sum())
            logits = self.decode(inputs, memory, mask, padding).flatten(0, 1).float()
            total = total + count * F.cross_entropy(logits, targets.flatten(), ignore_index=self.config.pad)
            counted += count
        return total / counted


def random_batch(task: WordRecognitionTask, size: int, device: torch.device) -> Batch:
    """Noise with labels of 2 to 12 characters, one of them of 12."""
    random = torch.Generator().manual_seed(0)
    config, lengths = task.model_config, torch.randint(2, 13, (size,), generator=random)
    lengths[0] = 12
    ids = torch.full((size, 14), config.pad)
    for row, length in enumerate(lengths.tolist()):
        ids[row, 0], ids[row, length + 1] = config.bos, config.eos
        ids[row, 1 : length + 1] = torch.randint(1, config.characters + 1, (length,), generator=random)
    images = torch.randint(0, 256, (size, 3, *config.image_shape), dtype=torch.uint8, generator=random)
    return {"image": images.to(device), "ids": ids.to(device), "step": torch.tensor(0)}


def timed(model: nn.Module, loss: Callable[[], Tensor], images: int) -> Callable[[], float]:
    """Images per second of one step of fused AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run() -> float:
        start = time.perf_counter()
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return images / (time.perf_counter() - start)

    return run


def measure_step(name: str, arguments: argparse.Namespace) -> dict:
    """Images per second of each contender at one shape, and ratios within a turn."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = WordRecognitionTask(str(SHAPES / f"{name}.yaml"), train=["none"], charset="36")
    model = task.build_model(0).to(device)
    assert isinstance(model, Parseq)
    batch = random_batch(task, arguments.batch_size, device)
    images = task.model_config.normalise(batch["image"])
    plain = {
        "reference": Reference(model, weights=False).to(device),
        "released": Reference(model, weights=True).to(device),
    }
    models = {"ours": model, **plain}

    def loss(name: str) -> Tensor:
        if name == "ours":
            return _mean_loss(task, model, batch)
        # As the task draws them: those of the step in training, the same ones always in evaluation.
        orderings = task._orderings(batch["ids"].shape[1] - 2, 0 if plain[name].training else -1)
        return plain[name].loss(images, batch["ids"], orderings.to(device))

    values = {name: (contender.eval(), loss(name).item())[1] for name, contender in models.items()}
    print(f"\nloss of {name}: " + ", ".join(f"{contender} {value:.6f}" for contender, value in values.items()))
    assert max(values.values()) - min(values.values()) < 1e-4, "the contenders do not compute the same loss"
    figures = take_turns(
        {
            name: timed(contender.train(), partial(loss, name), arguments.batch_size)
            for name, contender in models.items()
        },
        arguments.repeats,
    )
    title = f"Training step, {name}: batch {arguments.batch_size}, {task.orderings} orderings, {device.type}, float32"
    result = table(title, "images/s", figures, "ours")
    for contender in plain:
        ratios = [ours / theirs for ours, theirs in zip(figures["ours"], figures[contender], strict=True)]
        print(f"ours / {contender} within a turn: {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
        result["rows"][contender]["ratio_within_a_turn"] = median(ratios)
    return result


def measure_stem(name: str, arguments: argparse.Namespace) -> dict:
    """Images per second of a training step with each kind of stem."""
    steps = {}
    for stem in ("patch", "convolution"):
        shape = str(SHAPES / f"{name}.yaml")
        task = WordRecognitionTask(shape, train=["none"], charset="36", model_overrides={"stem": stem})
        model = task.build_model(0).train()
        batch = random_batch(task, arguments.batch_size, torch.device("cpu"))
        steps[stem] = timed(model, partial(_mean_loss, task, model, batch), arguments.batch_size)
    return table(f"Training step by stem, {name}", "images/s", take_turns(steps, arguments.repeats), "patch")


def _mean_loss(task: WordRecognitionTask, model: nn.Module, batch: Batch) -> Tensor:
    return task.loss(model, batch).total / task.weight(batch)


def draw_words(folder: Path, count: int) -> Path:
    """An LMDB of drawn words."""
    (folder / "words.txt").write_text("\n".join(WORDS.split()))
    painter = WordPainter(SynthConfig([str(folder / "words.txt")], count), CHARSETS["36"])
    with LmdbWriter(folder / "lmdb") as writer:
        for number in range(count):
            text, image = painter.draw(number)
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            writer.add(buffer.getvalue(), text)
    return folder / "lmdb"


def measure_waiting(name: str, arguments: argparse.Namespace) -> dict:
    """Images per second and share of the time spent waiting, by number of workers."""
    with tempfile.TemporaryDirectory() as folder:
        store = draw_words(Path(folder), arguments.words)
        task = WordRecognitionTask(str(SHAPES / f"{name}.yaml"), train=[str(store)], charset="36", copies=1000)
        (source,), _ = task.training_sources()
        model = task.build_model(0).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        starts: dict[str, list[float]] = {_workers(count): [] for count in WORKERS}
        waits: dict[str, list[float]] = {_workers(count): [] for count in WORKERS}

        def train(workers: int) -> float:
            loader = Loader(
                source,
                Order([len(source)], arguments.batch_size, seed=0),
                task.collate,
                rank=0,
                world_size=1,
                micro_batch_size=arguments.batch_size,
                start_step=0,
                stop_step=arguments.steps,
                num_workers=workers,
            )
            watch = Throughput(1, task.flops_per_sample(), 1.0, 1)
            began, first = time.perf_counter(), True
            for [batch] in watch.awaiting(loader):
                if first:
                    starts[_workers(workers)].append(time.perf_counter() - began)
                    watch.read("images")
                    began, first = time.perf_counter(), False
                watch.start()
                _mean_loss(task, model, batch).backward()
                optimizer.step()
                optimizer.zero_grad()
                watch.stop(arguments.batch_size)
            seconds = time.perf_counter() - began
            waits[_workers(workers)].append(100 * watch.read("images")["data_wait"])
            return arguments.steps * arguments.batch_size / seconds

        figures = take_turns({_workers(count): partial(train, count) for count in WORKERS}, arguments.repeats)
    starts, waits = ({name: values[1:] for name, values in kept.items()} for kept in (starts, waits))  # as take_turns
    title = f"{name} on augmented words from an LMDB: {arguments.steps} steps of {arguments.batch_size} images"
    return {
        "images_per_second": table(title, "images/s, waiting included", figures, _workers(1)),
        "start": table("The first batch", "seconds", starts, _workers(1)),
        "waiting": table("Waiting for each batch after the first", "% of the time", waits, _workers(1)),
    }


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count != 1 else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["cpu_s", "ti"], help="files of configs/parseq")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--words", type=int, default=2000, help="drawn for the input pipeline")
    parser.add_argument("--steps", type=int, default=40, help="of each turn of the input pipeline")
    parser.add_argument("--threads", type=int, default=None, help="of the CPU; by default all")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    tables = {name: measure_step(name, arguments) for name in arguments.shapes}
    tables["stem"] = measure_stem(arguments.shapes[0], arguments)
    tables["input"] = measure_waiting(arguments.shapes[0], arguments)
    finish("ocr_throughput", tables, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
