"""What DeLVM's report says of prompting: measures by number of example pairs beside baselines, and the controls."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.grid.statistics import markdown_table, paired_difference, spread
from eval.studies.delvm import Delvm

FOLLOWING = 0.9
"""Share of answers that must belong to the prompt's task (spec delvm.md, 9.6)."""
MEASURES = {"psnr": ("PSNR, dB", 1, 2), "ssim": ("SSIM", 1, 3), "miou": ("mIoU, %", 100, 1), "f1": ("F1, %", 100, 1)}
"""Title, factor and digits of each measure."""
BY_SEED = Mapping[int, Mapping[str, Any]]


def prompting_section(grid: Delvm, vision: Mapping[str, Any], pictures: Path, folder: Path) -> list[str]:
    """Tables of the main variant, its controls, and the other variants beside it.

    Args:
        grid: the experiment.
        vision: content of vision.json, its models called VARIANT/seedK.
        pictures: folder of grid_SET.png.
        folder: where the report's pictures go.
    """
    models: dict[str, dict[int, Mapping[str, Any]]] = {}
    for name, found in vision["models"].items():
        variant, _, seed = name.rpartition("/seed")
        models.setdefault(variant, {})[int(seed)] = found
    prompted = grid.prompted
    if prompted is None or prompted.main not in models:
        return []
    main = models[prompted.main]
    sets = next(iter(main.values()))["sets"]
    copied = []
    for name in sets:
        if (pictures / f"grid_{name}.png").is_file():
            shutil.copyfile(pictures / f"grid_{name}.png", folder / f"grid_{name}.png")
            copied += [f"![{name}: example pairs, query, truth, answers]({folder.name}/grid_{name}.png)", ""]
    return [
        "## Visual prompting",
        "",
        f"Greedy answers of `{prompted.main}` ({len(main)} seeds) to held-out queries, after 0 to "
        f"{max(map(int, next(iter(sets.values()))['prompting']))} example pairs from the training images. The ceiling "
        "is the true target after the visual tokenizer's round trip; the mean answer is the mean target of the "
        "examples (for classes, the most frequent one of each pixel).",
        "",
        *answer_table(main, sets),
        "",
        *[f"- {line}" for line in answer_verdicts(main, sets)],
        "",
        "### What the visual tokenizer keeps",
        "",
        *tokenizer_table(sets),
        "",
        "### Losses on sentences of the same images",
        "",
        *loss_table(grid, models, sets),
        "",
        *control_lines(main, sets),
        *copied,
    ]


def _over_seeds(main: BY_SEED, name: str, part: str, place: str, measure: str) -> dict[int, float]:
    return {seed: found["sets"][name][part][place][measure] for seed, found in main.items()}


def _places(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(part, place) for part in ("prompting", "baselines") for place in entry[part]]


def answer_table(main: BY_SEED, sets: Mapping[str, Any]) -> list[str]:
    """One line per set and measure: by example pairs, then the baselines."""
    rows = []
    for name, entry in sets.items():
        for measure in entry["baselines"]["ceiling"]:
            title, factor, digits = MEASURES[measure]
            row = [name, title]
            for part, place in _places(entry):
                found = list(_over_seeds(main, name, part, place, measure).values())
                values = [factor * value for value in found]
                row.append(spread(values if part == "prompting" else values[:1], digits))
            rows.append(row)
    pairs = [f"{place} pairs" for place in next(iter(sets.values()))["prompting"]]
    return markdown_table(["set", "measure", *pairs, "copied input", "mean answer", "ceiling"], rows)


def answer_verdicts(main: BY_SEED, sets: Mapping[str, Any]) -> list[str]:
    """Is the first measure of each set above the trivial baselines, and do more pairs help?"""
    lines = []
    for name, entry in sets.items():
        measure = next(iter(entry["baselines"]["ceiling"]))
        title, factor, digits = MEASURES[measure]
        most, few = (
            max(entry["prompting"], key=int),
            min((p for p in entry["prompting"] if int(p)), key=int, default=None),
        )
        answers = _over_seeds(main, name, "prompting", most, measure)
        for baseline in ("copy_input", "mean_target"):
            level = entry["baselines"][baseline][measure]
            above = sum(value > level for value in answers.values())
            lines.append(
                f"{name}: {title} after {most} pairs is above {baseline.replace('_', ' ')} "
                f"({factor * level:.{digits}f}) in {above} of {len(answers)} seeds."
            )
        if few is not None and few != most:
            difference = paired_difference(answers, _over_seeds(main, name, "prompting", few, measure))
            clear = difference.seeds > 1 and abs(difference.mean) >= 2 * difference.standard_error
            kind = (
                ("more pairs help" if difference.mean > 0 else "more pairs hurt")
                if clear
                else "no effect of more pairs"
            )
            lines.append(
                f"{name}: {kind}: {title} {factor * difference.mean:+.{digits}f} ± "
                f"{factor * difference.standard_error:.{digits}f} from {few} to {most}."
            )
    return lines


def tokenizer_table(sets: Mapping[str, Any]) -> list[str]:
    """Round trips of the held-out images: no answer can be nearer to the truth than this."""
    rows = []
    for name, entry in sets.items():
        for side, kept in entry["tokenizer"].items():
            numbers = [f"{kept['psnr']:.2f}", f"{kept['ssim']:.3f}", f"{100 * kept['codes_used']:.0f}"]
            rows.append([f"{name}, {side}", *numbers, f"{kept['perplexity']:.0f}"])
    return markdown_table(["images", "PSNR, dB", "SSIM", "codes used, %", "perplexity of the codes"], rows)


def loss_table(grid: Delvm, models: Mapping[str, BY_SEED], sets: Mapping[str, Any]) -> list[str]:
    """The loss of a target after 0, 1, ... whole pairs, per variant, beside the frequencies of the codes."""
    rows = []
    for name, entry in sets.items():
        for variant, found in models.items():
            measured = [model["sets"][name]["sentences"]["model"] for model in found.values()]
            by_pairs = zip(*(sentence["loss_by_pairs"] for sentence in measured), strict=True)
            rows.append(
                [
                    name,
                    grid.titles[variant],
                    spread([sentence["loss"] for sentence in measured], 3),
                    *(spread(values, 3) for values in by_pairs),
                ]
            )
        unigram = entry["sentences"]["unigram"]
        levels = [unigram["loss"], *unigram["loss_by_pairs"]]
        rows.append([name, "frequencies of the codes", *(f"{level:.3f}" for level in levels)])
    count = len(next(iter(sets.values()))["sentences"]["unigram"]["loss_by_pairs"])
    return markdown_table(["set", "model", "all codes", *(f"target after {k} pairs" for k in range(count))], rows)


def control_lines(main: BY_SEED, sets: Mapping[str, Any]) -> list[str]:
    """Wrong-task prompts and permuted targets."""
    if any("control" not in found for found in main.values()):
        return []
    names, pairs = list(sets), next(iter(main.values()))["control"]["pairs"]
    rows, follows = [], []
    for shown in names:
        row = [shown]
        for asked in names:
            row.append(spread([100 * found["control"]["classes"][shown][asked][shown] for found in main.values()], 0))
        follows += [found["control"]["follows"][shown] for found in main.values()]
        row.append(spread([100 * found["control"]["true_targets"][shown][shown] for found in main.values()][:1], 0))
        rows.append(row)
    reached = sum(share >= FOLLOWING for share in follows)
    permuted = []
    for name, entry in sets.items():
        measure = next(iter(entry["baselines"]["ceiling"]))
        title, factor, digits = MEASURES[measure]
        right = _over_seeds(main, name, "prompting", str(pairs), measure)
        wrong = {seed: found["permuted_targets"][name][measure] for seed, found in main.items()}
        difference = paired_difference(right, wrong)
        text = f"{factor * difference.mean:+.{digits}f} ± {factor * difference.standard_error:.{digits}f}"
        columns = (spread([factor * value for value in values.values()], digits) for values in (right, wrong))
        permuted.append([name, title, *columns, text])
    return [
        "### Does the answer follow the prompt?",
        "",
        f"Share (%) of answers that look like the targets of the *prompt's* task ({pairs} pairs; nearest centroid of "
        f"code histograms), by the set of the query. With queries of another set it is {100 * FOLLOWING:.0f} % or more "
        f"for {reached} of {len(follows)} prompts and seeds.",
        "",
        *markdown_table(["pairs of", *(f"query of {name}" for name in names), "true targets"], rows),
        "",
        "Every example with the target of another one in the prompt:",
        "",
        *markdown_table(["set", "measure", "right targets", "permuted targets", "difference"], permuted),
        "",
    ]
