"""What the rooms above ask of a checkpoint: tensors by name, read one at a time, and a tokenizer.

Names are Hugging Face's for llama-style models (`names` lists them) and matrices are [out, in]. A source is cheap to
open: it has read headers only. Next: `open`, which picks the source for a path by its content.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class TensorSource(Protocol):
    """A checkpoint as named tensors that are read only when asked for, so a large one is never in memory twice.

    Attributes:
      description: one line for logs: format and path.
    """

    description: str

    def names(self) -> frozenset[str]:
        """The names that `shape` and `read` accept."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of tensor `name`, from the header alone. Raises WeightsError for an unknown name."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Tensor `name` as a new host array; bfloat16 is `ml_dtypes.bfloat16`, quantised tensors come as float32.

        Raises:
          WeightsError: no such tensor, or the file has changed since it was opened.
        """
        ...

    def fingerprint(self) -> str:
        """Identifies the content in records: equal fingerprints mean equal weights (see `files` for large files)."""
        ...


class Tokenizer(Protocol):
    """Text to token ids and back.

    Attributes:
      vocab_size: number of ids, special tokens included.
      eos_ids: ids that end an answer.
      prefix_ids: what the model expects before a raw prompt (its BOS), or (); `encode` does not add it, because a chat
        template already contains it.
    """

    vocab_size: int
    eos_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens written out in the text become their ids.

        Raises:
          RequestError: the text is not valid Unicode.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens written out."""
        ...
