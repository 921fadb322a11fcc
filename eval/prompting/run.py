"""Visual language models on held-out image pairs: loss per task, visual prompting, and whether the prompt is followed.

    sets.yaml --> pairs --> codes --> sentences of pairs --> loss, accuracy              sentence_losses.py
                                  --> k pairs + query --> n codes --> image              prompts.py
                                                          --> the task's own measure     metrics.py
                                  --> pairs of another task + query --> which task?      control.py

Beside every number stand the baselines: copying the input, the mean answer of the examples, the tokenizer's ceiling
(the true target, encoded and decoded), and for the loss the frequencies of the codes alone
(docs/methods/delvm.md: prompting).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.permutation import derive_key
from eval.commands import VisionOptions, read_definitions
from eval.grid.preparation import read_defined
from eval.probes.collapse import named_models
from eval.prompting.control import task_of_answers
from eval.prompting.encoded_pairs import EncodedSet, VisualModel, decode, draw_sentences, encode_set
from eval.prompting.metrics import mean_answer, measure
from eval.prompting.picture import GridRow, save_grid
from eval.prompting.prompts import examples_of, generate_images, prompts_of
from eval.prompting.sentence_losses import sentence_losses, summarise, unigram_losses
from eval.prompting.sets import VisionSet, parse_sets
from eval.report.pictures import write_caption
from tokenizer.visual.base import VisualTokenizer
from tokenizer.visual.reconstruction import measure_reconstruction

GRID_ROWS = 8


def run(options: VisionOptions) -> dict[str, Any]:
    """``python -m eval vision``; returns what vision.json holds."""
    sets = parse_sets(read_defined(Path(options.sets), read_definitions(options.define)), options.sets)
    return measure_models(named_models(options.model), sets, options)


def measure_models(models: Mapping[str, str], sets: Sequence[VisionSet], options: VisionOptions) -> dict[str, Any]:
    """Measures every model on every set; prints a table, writes vision.json, vision.txt and grid_SET.png.

    Models may have different tokenizers; then each is asked and answers in its own codes.
    """
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    encoded: dict[str, list[EncodedSet]] = {}
    found: dict[str, Any] = {}
    drawn: dict[str, dict[str, np.ndarray]] = {}
    for name, path in models.items():
        model = VisualModel.open(path, options.device)
        if model.tokenizer.hash not in encoded:
            encoded[model.tokenizer.hash] = [
                encode_set(definition, number, model.tokenizer, options.queries, options.examples, options.batch_size)
                for number, definition in enumerate(sets)
            ]
        found[name] = measure_model(model, encoded[model.tokenizer.hash], options, name)
        for key, images in found[name].pop("drawn").items():
            drawn.setdefault(key, {})[name] = images
    content = {
        "results": {
            f"{name} {key}" if len(models) > 1 else key: flat(entry)
            for name, model_found in found.items()
            for key, entry in model_found["sets"].items()
        },
        "models": found,
        "seed": options.seed,
        "limit": options.queries,
    }
    for shown in next(iter(encoded.values())):
        picture = folder / f"grid_{shown.name}.png"
        save_grid(grid_rows(shown, drawn[shown.name], options), shown.name, picture)
        write_caption(picture, f"{shown.name}: a line per held-out image, what was shown, what was asked, what came.")
    (folder / "vision.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (folder / "vision.txt").write_text(to_text(content) + "\n", encoding="utf-8")
    print(f"{to_text(content)}\nwritten to {folder}")
    return content


def measure_model(model: VisualModel, sets: Sequence[EncodedSet], options: VisionOptions, name: str) -> dict[str, Any]:
    """One model on every set: ``sets``, ``control`` if asked for, and ``drawn``, the first answers as images."""
    most = max(options.pairs_in_prompt)

    def answer(prompts_NP: np.ndarray, title: str) -> np.ndarray:
        n = model.tokenizer.tokens_per_image
        return generate_images(model.lm, prompts_NP, n, options.batch_size, f"{name}: {title}")

    def scored(encoded: EncodedSet, codes_Pn: np.ndarray) -> dict[str, float]:
        images = decode(model.tokenizer, codes_Pn, options.batch_size)
        return measure(encoded.task, images, encoded.held_out.targets_PSS3)

    measured: dict[str, Any] = {}
    answers: dict[str, np.ndarray] = {}
    for encoded in sets:
        prompting: dict[str, Any] = {}
        for pairs in options.pairs_in_prompt:
            codes_Pn = answer(prompts_of(encoded, encoded, pairs, options.seed), f"{encoded.name}, {pairs} pairs")
            prompting[str(pairs)] = scored(encoded, codes_Pn)
            if pairs == most:
                answers[encoded.name] = codes_Pn
        measured[encoded.name] = {
            "task": encoded.task,
            "queries": len(encoded.held_out),
            "sentences": sentence_measures(model, encoded, options),
            "prompting": prompting,
            "baselines": baselines(encoded, model.tokenizer, options.batch_size),
            "tokenizer": tokenizer_measures(encoded, model.tokenizer),
        }
    found: dict[str, Any] = {"source": model.source, "tokenizer": model.tokenizer.hash, "sets": measured}
    found["drawn"] = {key: model.tokenizer.decode(codes_Pn[:GRID_ROWS]) for key, codes_Pn in answers.items()}
    if options.control:
        found["permuted_targets"] = {}
        for encoded in sets:
            prompts_NP = prompts_of(encoded, encoded, most, options.seed, permuted_targets=True)
            found["permuted_targets"][encoded.name] = scored(encoded, answer(prompts_NP, f"{encoded.name}, permuted"))
        vocab_size = model.tokenizer.vocab_size
        found["control"] = task_of_answers(sets, answers, answer, vocab_size, most, options.seed)
    return found


def sentence_measures(model: VisualModel, encoded: EncodedSet, options: VisionOptions) -> dict[str, Any]:
    """Loss, accuracy and perplexity of the model, and of the frequencies of the codes in the examples."""
    seed = derive_key(options.seed, encoded.number) >> 1
    sentences_NT = draw_sentences(encoded.held_out_P2n, options.sentence_pairs, options.passes, seed)
    counts_V = np.bincount(encoded.examples_E2n.reshape(-1), minlength=model.tokenizer.vocab_size)
    n = model.tokenizer.tokens_per_image
    return {
        "model": summarise(sentence_losses(model.lm, sentences_NT, options.batch_size), n),
        "unigram": summarise(unigram_losses(sentences_NT, counts_V), n),
    }


def baselines(encoded: EncodedSet, tokenizer: VisualTokenizer, batch: int) -> dict[str, dict[str, float]]:
    """The task's measures of a copied input, of the mean answer, and of the true target after a round trip."""
    truths_PSS3 = encoded.held_out.targets_PSS3
    mean_SS3 = mean_answer(encoded.task, encoded.examples.targets_PSS3)
    answers = {
        "copy_input": encoded.held_out.inputs_PSS3,
        "mean_target": np.broadcast_to(mean_SS3, truths_PSS3.shape),
        "ceiling": decode(tokenizer, encoded.held_out_P2n[:, 1], batch),
    }
    return {name: measure(encoded.task, images, truths_PSS3) for name, images in answers.items()}


def tokenizer_measures(encoded: EncodedSet, tokenizer: VisualTokenizer) -> dict[str, dict[str, float]]:
    """What a round trip keeps of the set's inputs and targets, and how many codes they use."""
    sides = {"input": encoded.held_out.inputs_PSS3, "target": encoded.held_out.targets_PSS3}
    return {side: asdict(measure_reconstruction(tokenizer, images_PSS3)) for side, images_PSS3 in sides.items()}


def flat(entry: Mapping[str, Any]) -> dict[str, float]:
    """A set's numbers under names of one level, such as ``psnr@3`` for three example pairs."""
    sentences = entry["sentences"]["model"]
    names = ("loss", "accuracy", "perplexity", "target_loss", "last_target_loss")
    numbers = {name: sentences[name] for name in names}
    numbers["unigram_loss"] = entry["sentences"]["unigram"]["loss"]
    for place, measures in {**entry["prompting"], **entry["baselines"]}.items():
        numbers |= {f"{name}@{place}": value for name, value in measures.items()}
    return numbers


def to_text(content: Mapping[str, Any]) -> str:
    """The tables: losses, then every measure by number of example pairs, beside its baselines."""
    lines = [
        f"{'model':<18}{'set':<12}{'loss':>8}{'unigram':>9}{'acc %':>8}{'ppl':>9}{'targets':>9}{'last':>8}"
        "   loss of a target after 0, 1, ... pairs"
    ]
    for name, found in content["models"].items():
        for key, entry in found["sets"].items():
            of, unigram = entry["sentences"]["model"], entry["sentences"]["unigram"]
            lines.append(
                f"{name:<18}{key:<12}{of['loss']:>8.3f}{unigram['loss']:>9.3f}{100 * of['accuracy']:>8.1f}"
                f"{of['perplexity']:>9.1f}{of['target_loss']:>9.3f}{of['last_target_loss']:>8.3f}   "
                + " ".join(f"{value:.3f}" for value in of["loss_by_pairs"])
            )
    first = next(iter(next(iter(content["models"].values()))["sets"].values()))
    columns = [*(f"{pairs} pairs" for pairs in first["prompting"]), "copy", "mean", "ceiling"]
    lines += ["", f"{'model':<18}{'set':<12}{'measure':<10}" + "".join(f"{column:>9}" for column in columns)]
    for name, found in content["models"].items():
        for key, entry in found["sets"].items():
            for measure_name in entry["baselines"]["ceiling"]:
                places = [*entry["prompting"].values(), *entry["baselines"].values()]
                values = "".join(f"{place[measure_name]:>9.3f}" for place in places)
                lines.append(f"{name:<18}{key:<12}{measure_name:<10}{values}")
    for name, found in content["models"].items():
        if "control" in found:
            lines += ["", f"{name}: answers that resemble the targets of the prompt's task, queries of the other sets:"]
            lines += [f"  {key:<12}{100 * share:.0f} %" for key, share in found["control"]["follows"].items()]
    return "\n".join(lines)


def grid_rows(encoded: EncodedSet, drawn: Mapping[str, np.ndarray], options: VisionOptions) -> list[GridRow]:
    """The first queries with their example pairs, the truth, and every model's answer."""
    rows_PK = examples_of(encoded, encoded, max(options.pairs_in_prompt), options.seed)
    shown, asked = encoded.examples, encoded.held_out
    return [
        GridRow(
            [(shown.inputs_PSS3[i], shown.targets_PSS3[i]) for i in rows_PK[query]],
            asked.inputs_PSS3[query],
            asked.targets_PSS3[query],
            {name: images[query] for name, images in drawn.items()},
        )
        for query in range(min(GRID_ROWS, len(asked)))
    ]
