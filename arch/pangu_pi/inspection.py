"""The table of `python -m arch inspect`: where the parameters are, what a token costs, what each addition adds."""

from arch.pangu_pi import PanguPiConfig
from arch.pangu_pi.accounting import count_flops, count_parameters
from common.errors import DataError

GIB = 1024**3
TRAINING_BYTES = 16  # per parameter: float32 weight, gradient and Adam's two moments


def describe(config: PanguPiConfig, sequence_length: int) -> str:
    """Parameters and FLOPs of `config` by part, as text of a few dozen lines; nothing is allocated.

    Args:
        config: the model's shape.
        sequence_length: tokens per sequence, which attention scores depend on.
    """
    if sequence_length < 1:
        raise DataError(f"sequence_length must be at least 1, got {sequence_length}")
    parameters, flops = count_parameters(config), count_flops(config, sequence_length)
    tied = ", tied to the embedding" if config.tie_word_embeddings else ""
    series = f"series activation (n={config.series_terms}, {config.series_scope})"
    shortcut = f"augmented shortcut (T={config.shortcut_count}, 1/r=1/{config.shortcut_reduction})"
    lines = [
        f"{config.num_hidden_layers} layers, width {config.hidden_size}, FFN {config.intermediate_size}, "
        f"{config.num_attention_heads} heads ({config.num_key_value_heads} key/value), vocabulary {config.vocab_size}",
        "",
        *_table(
            "parameters",
            parameters.total,
            {
                "embedding": parameters.embedding,
                f"head{tied}": parameters.head,
                "attention": parameters.attention,
                "feed-forward": parameters.feed_forward,
                "norms": parameters.norms,
                series: parameters.series,
                shortcut: parameters.shortcut,
            },
        ),
        "",
        *_table(
            f"forward FLOPs per token at sequence length {sequence_length}",
            flops.forward_per_token,
            {
                "attention projections": flops.projections,
                "attention scores (causal mean)": flops.scores,
                "feed-forward": flops.feed_forward,
                "head": flops.head,
                series: flops.series,
                shortcut: flops.shortcut,
            },
        ),
        "",
        f"embedding and head hold         {parameters.embedding_and_head_share:8.2%} of all parameters",
        f"the two additions add           {parameters.total / parameters.base - 1:8.2%} parameters to the plain shape",
        f"the series activation adds      {flops.series / flops.linear:8.2%} of the blocks' linear FLOPs",
        f"the augmented shortcut adds     {flops.shortcut / flops.linear:8.2%} of the blocks' linear FLOPs",
        f"training (three forward passes) {_short(flops.train_per_token):>8} FLOPs per token",
        f"weights in bfloat16             {2 * parameters.total / GIB:8.2f} GiB",
        f"weights, gradient, Adam (fp32)  {TRAINING_BYTES * parameters.total / GIB:8.2f} GiB, without activations",
    ]
    return "\n".join(lines)


def _table(title: str, total: float, parts: dict[str, float]) -> list[str]:
    """Aligned rows of name, exact value and share, with a total."""
    rows = {**parts, "total": total}
    width = max(len(title), *(len(name) for name in rows))
    head = f"{title:<{width}}  {'value':>20}  {'short':>8}  {'share':>7}"
    body = [
        f"{name:<{width}}  {value:>20,.0f}  {_short(value):>8}  {value / total:>7.2%}" for name, value in rows.items()
    ]
    return [head, "-" * len(head), *body[:-1], "-" * len(head), body[-1]]


def _short(value: float) -> str:
    """Three significant digits with a unit: 6.73B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


__all__ = ["describe"]
