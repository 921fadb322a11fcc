"""Losses with a vocabulary, never all logits at once.

chunked_cross_entropy.py  head and cross-entropy, chunk by chunk: loss_layout.py sizes them,
                          head_products.py multiplies, loss_kernel.py is the element-wise part (fused_loss.py)
token_distillation.py     the same with a teacher
visual_sentences.py       weights of visual sentences
"""
