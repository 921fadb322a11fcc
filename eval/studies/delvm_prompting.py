"""What DeLVM's report says of prompting: measures by number of example pairs beside baselines, and the controls."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.grid.statistics import paired_difference
from eval.studies.delvm import Delvm

FOLLOWING = 0.9
"""Share of answers that must belong to the prompt's task (docs/methods/delvm.md: prompting)."""
MEASURES = {"psnr": ("PSNR, dB", 1, 2), "ssim": ("SSIM", 1, 3), "miou": ("mIoU, %", 100, 1), "f1": ("F1, %", 100, 1)}
"""Title, factor and digits of each measure."""
BY_SEED = Mapping[int, Mapping[str, Any]]


def prompting(grid: Delvm, vision: Mapping[str, Any], pictures: Path, folder: Path) -> dict[str, Any] | None:
    """What the report's part on prompting needs: the main variant, its controls, and the other variants beside it.

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
    if grid.prompted is None or grid.prompted.main not in models:
        return None
    main = models[grid.prompted.main]
    sets = next(iter(main.values()))["sets"]
    copied = [name for name in sets if (pictures / f"grid_{name}.png").is_file()]
    for name in copied:
        shutil.copyfile(pictures / f"grid_{name}.png", folder / f"grid_{name}.png")
    answers = []
    for name, entry in sets.items():
        for measure in entry["baselines"]["ceiling"]:
            found = [list(_over_seeds(main, name, *place, measure).values()) for place in _places(entry)]
            count = len(entry["prompting"])
            answers.append((name, MEASURES[measure], [*found[:count], *(values[:1] for values in found[count:])]))
    losses = [
        (name, variant, [model["sets"][name]["sentences"]["model"] for model in found.values()])
        for name in sets
        for variant, found in models.items()
    ]
    return {
        "seeds": len(main),
        "sets": sets,
        "pairs": list(next(iter(sets.values()))["prompting"]),
        "answers": answers,
        "verdicts": answer_verdicts(main, sets),
        "losses": losses,
        "control": control(main, sets),
        "pictures": copied,
    }


def _over_seeds(main: BY_SEED, name: str, part: str, place: str, measure: str) -> dict[int, float]:
    return {seed: found["sets"][name][part][place][measure] for seed, found in main.items()}


def _places(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(part, place) for part in ("prompting", "baselines") for place in entry[part]]


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


def control(main: BY_SEED, sets: Mapping[str, Any]) -> dict[str, Any] | None:
    """Wrong-task prompts and permuted targets."""
    if any("control" not in found for found in main.values()):
        return None
    pairs = next(iter(main.values()))["control"]["pairs"]
    controls = [found["control"] for found in main.values()]
    shares = {
        shown: [[found["classes"][shown][asked][shown] for found in controls] for asked in sets]
        + [[controls[0]["true_targets"][shown][shown]]]
        for shown in sets
    }
    permuted = []
    for name, entry in sets.items():
        measure = next(iter(entry["baselines"]["ceiling"]))
        right = _over_seeds(main, name, "prompting", str(pairs), measure)
        wrong = {seed: found["permuted_targets"][name][measure] for seed, found in main.items()}
        permuted.append((name, MEASURES[measure], right, wrong, paired_difference(right, wrong)))
    follows = [found["follows"][shown] for shown in sets for found in controls]
    reached = sum(share >= FOLLOWING for share in follows)
    return {"pairs": pairs, "shares": shares, "prompts": len(follows), "reached": reached, "level": FOLLOWING,
            "permuted": permuted}  # fmt: skip
