"""Whether a target can be cut out of a donor, and if not, which line of the target's YAML to change to what."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..pangu_pi import PanguPiConfig
from .errors import SurgeryError
from .groups import Kind
from .vocabulary import KeptRows

# What defines the function that the donor's weights were trained for.
SAME = ("head_dim", "hidden_act", "rms_norm_eps", "attention_bias", "mlp_bias", "qk_norm", "final_logit_softcapping")
SERIES = ("series_terms", "series_scope", "series_learn_first", "series_activation_names")
SHORTCUT = ("shortcut_input", "shortcut_activation")
SMALLER = ("num_hidden_layers", "hidden_size", "intermediate_size")


def shortcut_units(config: PanguPiConfig) -> int:
    """T * D / r, the bottleneck units of a layer."""
    return config.shortcut_count * (config.hidden_size // config.shortcut_reduction)


def unit_counts(config: PanguPiConfig) -> dict[Kind, int]:
    """How many units of every kind a set of this shape has; heads are counted as key/value heads."""
    return {
        "heads": config.num_key_value_heads,
        "ffn": config.intermediate_size,
        "shortcut": shortcut_units(config),
        "hidden": config.hidden_size,
    }


def check_target(donor: PanguPiConfig, target: PanguPiConfig, vocabulary: KeptRows | None = None) -> None:
    """Refuse a target that is not a part of the donor.

    Args:
        donor: the larger model's configuration.
        target: the smaller model's.
        vocabulary: the rows to keep; None keeps all.

    Raises:
        SurgeryError: names every field that does not fit, and what to write; or the map is another model's.
    """
    if vocabulary is not None and int(vocabulary.kept[-1]) >= donor.vocab_size:
        raise SurgeryError(
            f"{vocabulary.path} keeps id {int(vocabulary.kept[-1])}, the donor has {donor.vocab_size} rows: "
            "it is the map of another model's tokenizer"
        )
    if problems := [*_problems(donor, target), *_vocabulary_problems(donor, target, vocabulary)]:
        raise SurgeryError(f"the target is not a part of the donor; in its configuration {'; '.join(problems)}")


def _problems(donor: PanguPiConfig, target: PanguPiConfig) -> Iterator[str]:
    for name in SMALLER:
        have, want = getattr(donor, name), getattr(target, name)
        if want > have:
            yield f"{name} is {want}, write {have} or less"
    # Additions that the donor lacks start at identity; those that it has cannot be taken away.
    same = SAME + (SERIES if donor.series_terms > 1 else ()) + (SHORTCUT if donor.shortcut_count else ())
    for name in same:
        have, want = getattr(donor, name), getattr(target, name)
        if not _equal(have, want):
            field = "series_activations" if name == "series_activation_names" else name
            yield f"write {field}: {have!r} (found {want!r})"
    yield from _rope_problems(donor, target)
    yield from _head_problems(donor, target)
    if donor.shortcut_count and not 1 <= shortcut_units(target) <= shortcut_units(donor):
        yield (
            f"the shortcuts have {shortcut_units(target)} bottleneck units, the donor's {shortcut_units(donor)}; "
            "choose shortcut_count and shortcut_reduction for at least 1 and no more than that"
        )


def _equal(have: object, want: object) -> bool:
    """Equality, but 9.999999747378752e-06, which GGUF makes of 1e-5, is 1e-5."""
    if isinstance(have, float) and isinstance(want, float):
        return math.isclose(have, want, rel_tol=1e-6)
    return have == want


def _rope_problems(donor: PanguPiConfig, target: PanguPiConfig) -> Iterator[str]:
    have, want = dict(donor.rope_parameters), dict(target.rope_parameters)
    if have == want:
        return
    theta, found = have.pop("rope_theta", None), want.pop("rope_theta", None)
    if not _equal(theta, found):
        yield f"write rope_theta: {theta!r} (found {found!r})"
    if have != want:
        yield f"write rope_scaling: {have} (found {want})"


def _head_problems(donor: PanguPiConfig, target: PanguPiConfig) -> Iterator[str]:
    """Query heads that share a key/value head stay together."""
    group = donor.num_attention_heads // donor.num_key_value_heads
    heads, shared = target.num_attention_heads, target.num_key_value_heads
    if heads == group * shared and shared <= donor.num_key_value_heads:
        return
    counts = [f"{group * number}/{number}" for number in range(1, donor.num_key_value_heads + 1)]
    listed = ", ".join(counts if len(counts) <= 8 else [*counts[:4], "...", *counts[-3:]])
    yield (
        f"num_attention_heads/num_key_value_heads are {heads}/{shared}, but groups of {group} query heads stay "
        f"together: write one of {listed}"
    )


def _vocabulary_problems(donor: PanguPiConfig, target: PanguPiConfig, vocabulary: KeptRows | None) -> Iterator[str]:
    if vocabulary is None:
        if target.vocab_size != donor.vocab_size:
            yield (
                f"write vocab_size: {donor.vocab_size} (found {target.vocab_size}), "
                "or give the map of a compressed tokenizer (--vocabulary)"
            )
        return
    if target.vocab_size != len(vocabulary.kept):
        yield f"write vocab_size: {len(vocabulary.kept)}, what {vocabulary.path} keeps (found {target.vocab_size})"


__all__ = ["check_target", "unit_counts"]
