"""Networks of the visual system: the language model's factorised input embedding, and the visual tokenizer's parts."""
