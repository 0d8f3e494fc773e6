"""Checkpoints and tokenizers: named tensors from any format that models are published in. Start at `open`."""
