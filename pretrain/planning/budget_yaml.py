"""A budget's run as YAML, and the reason of every choice, which stands beside it as a comment."""

from __future__ import annotations

from textwrap import wrap
from typing import Any

import yaml

from pretrain.planning.budget import KEPT, SEQUENCES_OF_A_BATCH, Budget, Run
from pretrain.planning.plan import Choice
from pretrain.planning.scaling_law import FITTED_FLOPS, FREE_PASSES
from pretrain.planning.shape_rules import LARGE_WIDTH, VOCABULARY_SHARE
from pretrain.rate_rules import BatchRule

COMMENT_WIDTH = 118
WARMUP, FINAL_RATIO = 0.03, 0.1
WORKERS = 4
"""Of the loader, for each rank on an accelerator."""
CHECKPOINTS, VALIDATIONS = 20, 20
"""Of a run, so that neither a kill nor a look costs more than a twentieth of it."""
FEWEST_STEPS = 50
"""Between two of them: in a run of minutes they would take longer than the steps."""


def reasons(budget: Budget, run: Run, choice: Choice | None, too_large: int | None) -> dict[str, str]:
    """Why each choice is what it is, by the YAML's section."""
    options, text = budget.options, budget.text
    share = run.model.vocab_size * run.model.hidden_size * (1 if run.model.tie_word_embeddings else 2) / run.parameters
    chosen = (
        f"the shape nearest to --parameters {options.parameters}"
        if options.parameters
        else "of all shapes the one with the lowest expected loss that time pays for (arXiv 2404.10102)"
    )
    memory = ""
    if too_large is not None:
        memory = f"; memory is the limit: the time would pay for {too_large:,} parameters, which no setting holds"
    vocabulary = (
        f"{run.model.vocab_size:,} pieces are the tokenizer's of the shards"
        if text.vocabulary
        else f"{run.model.vocab_size:,} pieces hold {share:.0%} of them (the rule: below {VOCABULARY_SHARE:.0%})"
    )
    crowded = f"; {options.ranks} ranks need at least that many sequences"
    square_root = BatchRule().anchor_lr * (run.batch * run.sequence / BatchRule().anchor_batch_tokens) ** 0.5
    found = {
        "model": f"{run.parameters:,} parameters: {chosen}{memory}. Depth {run.model.num_hidden_layers}, FFN "
        f"{run.model.intermediate_size} and heads follow the width by the tiny-model paper's shapes (arXiv "
        f"2402.02791); {vocabulary}" + (f"; tied below width {LARGE_WIDTH}" if run.model.tie_word_embeddings else ""),
        "steps": _tokens(budget, run),
        "batch": f"{run.batch * run.sequence:,} tokens; the law asks for {run.wanted_batch:,.0f} (0.292 C^0.327, arXiv "
        "2401.02954; never above 2 M, docs/methods/tiny_lm.md)"
        + crowded * (run.batch * run.sequence > 1.5 * run.wanted_batch)
        + f". Sequences of {run.sequence}: the longest of which a batch has {SEQUENCES_OF_A_BATCH}, at most 2,048",
        "optimizer": "0.3118 C^-0.125 (arXiv 2401.02954), for AdamW with this decay and clipping"
        + "; this run lies outside of what that was fitted to" * (not _fitted(run))
        + f". The tiny-model paper's square-root rule, made at 1 B parameters, gives {square_root:.2g}",
        "schedule": "cosine to a tenth after 3 % of warm-up (docs/methods/tiny_lm.md)",
        "rounds": "the time is enough for all text and a second round over its harder half (docs/methods/tiny_lm.md)"
        if run.rounds > 1
        else "one: the time ends before a second round over the same text would begin",
    }
    if choice is not None:
        found["engine"] = (
            f"ZeRO stage {choice.stage}, {'with' if choice.checkpointing else 'without'} recomputation: the least "
            f"exchange that fits, {choice.peak.total / 1e9:.3g} GB of {budget.device.memory / 1e9:.3g} GB a rank "
            "(python -m pretrain plan)"
        )
    return found


def _tokens(budget: Budget, run: Run) -> str:
    distinct, trained = budget.text.tokens, run.tokens
    said = (
        f"{trained:,.0f} tokens, {trained / run.parameters:.1f} a parameter: {budget.options.hours:g} hours at "
        f"{budget.options.mfu:.0%} of {budget.device.peak_tflops:.3g} TFLOP/s a rank"
    )
    if distinct is None:
        return f"{said}; so much text is needed"
    if trained <= distinct:
        return f"{said}; time is the limit: {trained / distinct:.0%} of the text is read"
    passes = trained / distinct
    if passes <= FREE_PASSES:
        return f"{said}; the text is read {passes:.2g} times, which costs next to nothing (arXiv 2305.16264)"
    return (
        f"{said}; text is the limit: it is read {passes:.2g} times, and from the fourth on that is worth less and less"
    )


def _fitted(run: Run) -> bool:
    return FITTED_FLOPS[0] <= run.flops <= FITTED_FLOPS[1]


def model_yaml(run: Run) -> str:
    """The model's shape, for `task.model`."""
    head = f"# {run.parameters:,} parameters, by the rules of pretrain/planning/shape_rules.py.\n"
    return head + yaml.safe_dump(run.fields, sort_keys=False)


def run_yaml(
    budget: Budget, run: Run, model: str, micro_size: int, choice: Choice | None = None, too_large: int | None = None
) -> str:
    """The run's configuration.

    Args:
        budget: what is at hand.
        run: what it pays for.
        model: path of the model's YAML.
        micro_size: sequences of a micro-batch.
        choice: the engine's setting; None leaves it to the defaults.
        too_large: parameters of a better run that memory does not hold.
    """
    options, why = budget.options, reasons(budget, run, choice, too_large)
    on_device = options.gpu != "cpu"
    every = max(FEWEST_STEPS, run.steps // VALIDATIONS)
    sections: list[tuple[str, dict[str, Any]]] = [
        ("model", {"task": {"class_path": "pretrain.tasks.LanguageModelTask", "init_args": {
            "model": model, "train": options.shards or ["shards/train"], "sequence_length": run.sequence}}}),
        ("", {"output": options.output}),
        ("steps", {"steps": run.steps}),
        ("batch", {"batch": {"size": run.batch, "micro_size": micro_size}}),
        ("optimizer", {"optimizer": {"name": "adamw", "lr": float(f"{run.rate:.3g}")}}),
        ("schedule", {"schedule": {"name": "cosine", "warmup_fraction": WARMUP, "final_ratio": FINAL_RATIO}}),
        ("rounds", {"rounds": {"count": run.rounds, "keep": KEPT}}),
        ("engine", {} if choice is None else {"engine": {
            "zero_stage": choice.stage, "activation_checkpointing": choice.checkpointing}}),
        ("", {"loader": {"workers": WORKERS}} if on_device else {}),
        ("", {"checkpoint": {"every": max(FEWEST_STEPS, run.steps // CHECKPOINTS)}, "validation": {"every": every}}),
    ]  # fmt: skip
    lines = [_comment(_head(budget))]
    for reason, content in sections:
        if content:
            lines += [_comment(why[reason])] if reason else []
            lines += [_entry(name, value) for name, value in content.items()]
    return "\n".join(lines) + "\n"


def _entry(name: str, value: Any) -> str:
    """One field of the run; the innermost mappings on one line."""
    style = None if isinstance(value, dict) else False
    return yaml.safe_dump({name: value}, sort_keys=False, default_flow_style=style, width=1000).rstrip()


def _head(budget: Budget) -> str:
    options = budget.options
    text = "" if budget.text.tokens is None else f", {budget.text.tokens:,.0f} tokens of text ({budget.text.source})"
    what = f"Written by python -m pretrain plan for {options.hours:g} hours of {options.ranks} x {options.gpu}{text}."
    if options.shards:
        return what
    return f"{what} Make the shards first, with a tokenizer of the model's vocabulary, or give --shards (docs/plan.md)."


def _comment(text: str) -> str:
    return "\n".join(f"# {line}" for line in wrap(text, COMMENT_WIDTH, break_long_words=False))
