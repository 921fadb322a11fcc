"""`inherit`: a small model out of a larger one, and what every stage cost (docs/methods/tiny_lm.md: inheritance).

    donor -> layers -> heads -> ffn -> shortcut -> hidden -> vocabulary -> target

The vocabulary is cut first when the calibration text is in the new token ids already; the rest is then cheaper. Layers
are chosen on the donor, everything else on the layer-selected donor. Nothing is trained but the gates of the learned
criterion, and those are thrown away.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from arch.device import choose_device
from arch.pangu_pi import PanguPiConfig, PanguPiForCausalLM
from arch.pangu_pi.accounting import count_parameters
from arch.pangu_pi.export import check_tokenizer, check_writable, export_model
from arch.pangu_pi.load_config import load_model_config
from arch.pangu_pi.load_weights import load_causal_lm
from arch.surgery.bypass import bypass_curve
from arch.surgery.calibration import Shards, draw_rows, open_shards
from arch.surgery.compatibility import check_target
from arch.surgery.criteria import choose_units, position_scores, taylor_scores, weight_scores
from arch.surgery.cut import Cut, sizes_of
from arch.surgery.errors import CalibrationError
from arch.surgery.groups import Kind, Scores
from arch.surgery.inherit_report import InheritReport
from arch.surgery.layers import choose_layers
from arch.surgery.mask_training import MaskTraining, train_masks
from arch.surgery.options import InheritConfig
from arch.surgery.vocabulary import KeptRows, read_kept_rows
from common.find_model import find_tokenizer, resolve_model


def inherit(config: InheritConfig) -> InheritReport:
    """Cut, write and report.

    Returns:
        The report, which lies as `inherit.json` beside the weights.

    Raises:
        SurgeryError: the target is not a part of the donor, or the vocabulary map is not the donor's.
        ShardError, VocabularyMapError: the shards or the map cannot be read.
        CalibrationError: the shards are too short, or are of another tokenizer.
        FileNotFoundError, FileExistsError, ModelConfigError, WeightsError, ExportError: as their names say.
    """
    begin = time.perf_counter()
    check_writable(Path(config.out), config.overwrite)
    target = load_model_config(config.config)
    vocabulary = read_kept_rows(config.vocabulary) if config.vocabulary else None
    shards = open_shards(config.calibration)
    source = resolve_model(config.donor)
    donor = load_donor(source, config.device, config.dtype)
    donor_config = donor.config
    check_target(donor_config, target, vocabulary)
    rows = draw_calibration(config, shards, donor_config, vocabulary)
    tokenizer = _tokenizer(config, source, shards, rows.new_ids)
    if tokenizer is not None:
        check_tokenizer(tokenizer)

    loss_rows_NS = vocabulary.kept[rows.loss_NS] if vocabulary and rows.new_ids else rows.loss_NS
    cut = Cut(donor, loss_rows_NS, config.batch, seconds=time.perf_counter() - begin)
    del donor  # what is cut away can now be freed
    if vocabulary and rows.new_ids:
        cut.vocabulary(vocabulary, rows.loss_NS)
    curve = None
    if config.layers.measured:
        curve = bypass_curve(cut.model, rows.choice_NS[: config.layers.rows], batch=config.batch)
    kept, removed = choose_layers(
        cut.model, target.num_hidden_layers, rows.choice_NS, config.layers, config.batch
    )  # fmt: skip
    cut.layers(kept)
    sizes = sizes_of(cut.model, target)
    scores, masks = score_units(cut.model, sizes, rows, config)
    selection = choose_units(scores, sizes)
    for kind in ("heads", "ffn", "shortcut"):
        if kind in selection:
            cut.units(kind, selection[kind])
    cut.hidden(selection["hidden"][0], rows.choice_NS if config.rescale_norm else None)
    if vocabulary and not rows.new_ids:
        cut.vocabulary(vocabulary)
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(target, role, getattr(cut.model.config, role))
    cut.into(target, config.seed)

    report = InheritReport(
        config=config,
        shape=target.to_diff_dict(),
        donor_parameters=count_parameters(donor_config).total,
        parameters=count_parameters(target).total,
        tied=(donor_config.tie_word_embeddings, target.tie_word_embeddings),
        stages=cut.stages,
        layers=kept,
        removed=removed,
        selection={kind: [indices.tolist() for indices in sets] for kind, sets in selection.items()},
        curve=curve,
        masks=masks,
        seconds=time.perf_counter() - begin,
    )
    tolerance = 1e-5 if config.dtype == "float32" else 1e-2
    export_model(cut.model, config.out, tokenizer, tolerance, config.overwrite, attach=report.write)
    return report


def load_donor(source: Path, device: str | None, dtype: str) -> PanguPiForCausalLM:
    """The donor on its device, in evaluation mode."""
    model = load_causal_lm(source, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    return model.to(choose_device(device)).eval()


@dataclass(frozen=True)
class CalibrationRows:
    """Disjoint rows for every purpose, int64 [N, S] each, in the ids of the shards."""

    new_ids: bool
    """Whether the ids are those of the new vocabulary."""
    loss_NS: torch.Tensor
    """Measures the stages; nothing is chosen by it."""
    choice_NS: torch.Tensor
    """Chooses layers, and units by the taylor criterion."""
    masks_NS: torch.Tensor
    """Trains the gates; the same as `choice_NS` where no more rows are left."""


def draw_calibration(
    config: InheritConfig, shards: Shards, donor: PanguPiConfig, vocabulary: KeptRows | None
) -> CalibrationRows:
    """Draw the rows and make sure that their ids are the donor's, or the vocabulary map's new ones.

    Raises:
        CalibrationError: they are neither, or there are too few tokens.
    """
    new_ids = vocabulary is not None and vocabulary.uses_new_ids(shards.tokenizer_hash)
    size = len(vocabulary.kept) if vocabulary is not None and new_ids else donor.vocab_size
    if shards.vocab_size > size:
        raise CalibrationError(
            f"{shards.directories[0]}: its tokenizer has {shards.vocab_size} pieces, the embedding {size} rows; "
            "prepare the shards with the donor's tokenizer"
        )
    wanted = config.masks.steps * config.masks.batch if config.criterion == "learned" else 0
    first = [config.loss_rows, max(config.rows, config.layers.rows)]
    left = shards.rows(config.sequence_length) - sum(first)
    loss_NS, choice_NS, masks_NS = draw_rows(
        shards, [*first, max(0, min(wanted, left))], config.sequence_length, config.seed
    )
    return CalibrationRows(new_ids, loss_NS, choice_NS, masks_NS if len(masks_NS) else choice_NS)


def score_units(
    model: PanguPiForCausalLM, sizes: dict[Kind, int], rows: CalibrationRows, config: InheritConfig
) -> tuple[Scores, MaskTraining | None]:
    """The scores of the asked criterion, and how the gates fared where it is the learned one."""
    match config.criterion:
        case "l1" | "l2":
            return weight_scores(model, 1 if config.criterion == "l1" else 2), None
        case "taylor":
            return taylor_scores(model, rows.choice_NS[: config.rows], config.taylor, config.batch), None
        case "learned":
            masks = train_masks(model, rows.masks_NS, sizes, config.masks, config.seed)
            return masks.scores, masks
        case position:
            return position_scores(model, position, sizes, config.seed), None


def _tokenizer(config: InheritConfig, source: Path, shards: Shards, new_ids: bool) -> Path | None:
    """The tokenizer of the small model's ids, wherever there is one."""
    if config.tokenizer is not None:
        if (found := find_tokenizer(config.tokenizer)) is None:
            raise FileNotFoundError(
                f"{config.tokenizer}: there is no tokenizer (tokenizer.json, a SentencePiece .model)"
            )
        return found
    if config.vocabulary is None:
        return find_tokenizer(source) or find_tokenizer(shards.directories[0])
    return find_tokenizer(config.vocabulary) or (find_tokenizer(shards.directories[0]) if new_ids else None)


__all__ = ["CalibrationRows", "draw_calibration", "inherit", "load_donor", "score_units"]
