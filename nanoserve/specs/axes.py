"""The axis letters used in every array annotation and shape suffix, once.

| letter | axis | letter | axis |
|---|---|---|---|
| B | sequences (rows of a step) | K | KV heads |
| T | new tokens of a step | G | query heads per KV head (H = K G) |
| S | KV positions | h | head size |
| P | pages in the pool | D | model width |
| p | tokens per page | F | feed-forward width |
| N | pages in one row of a page table | E | experts |
| H | query heads | V | vocabulary |
| L | layers | R | prefill rows of a step |

Public array arguments are annotated with `jaxtyping` in these letters; dense maths may suffix locals (`q_BHh`).
"""
