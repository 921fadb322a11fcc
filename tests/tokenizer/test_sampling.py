"""The sample is the same for the same seed, fits its budget, is fair, and needs no more memory than it."""

import random
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer.inputs.sampling import sample_texts

texts = st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=40)


@settings(deadline=None)
@given(texts=texts, budget=st.integers(1, 400), seed=st.integers(-5, 5), shuffle=st.randoms(use_true_random=False))
def test_order_of_the_stream_does_not_matter(texts: list[str], budget: int, seed: int, shuffle: random.Random) -> None:
    sample = sample_texts(texts, budget, seed)
    shuffle.shuffle(texts)
    assert sample_texts(texts, budget, seed) == sample
    assert sample.bytes == sum(len(text.encode()) for text in sample.texts)
    assert sample.bytes <= budget or len(sample.texts) == 1
    assert sample.seen_documents == len(texts)


def test_a_budget_for_all_keeps_all() -> None:
    stream = [f"document {number}" for number in range(500)]
    assert sorted(sample_texts(stream, 10**6, 0).texts) == sorted(stream)


def test_every_document_is_equally_likely() -> None:
    stream = [f"document {number:03d}" for number in range(100)]
    chosen = dict.fromkeys(stream, 0)
    for seed in range(400):
        for text in sample_texts(stream, 25 * len(stream[0]), seed).texts:
            chosen[text] += 1
    assert sum(chosen.values()) == 400 * 25
    assert min(chosen.values()) > 55 and max(chosen.values()) < 145  # binomial(400, 1/4): 100 +- 5 sigma


def test_memory_stays_at_the_budget() -> None:
    rng = random.Random(0)
    stream = (rng.randbytes(1000).hex() for _ in range(10_000))  # 20 MB
    tracemalloc.start()
    sample = sample_texts(stream, 200_000, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sample.seen_bytes == 20_000_000
    assert peak < 1_000_000
