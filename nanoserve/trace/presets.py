"""Published traces as specs: synthetic twins that need no file.

The constants of a preset are printed by `python -m experiments.trace_quantiles PATH` on the published trace. A twin
keeps the mean rate, the spread of the gaps, the quantiles of both lengths and their rank correlation; it does not keep
slower changes of the rate, nor what requests say.
"""

import dataclasses
from collections.abc import Mapping

from nanoserve.trace.arrivals import Gamma
from nanoserve.trace.lengths import Quantiles
from nanoserve.trace.synth import SynthSpec

# Percentiles, and more of both tails.
LEVELS = (0.0, 0.001, 0.005, *(percent / 100 for percent in range(1, 100)), 0.995, 0.999, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """What a twin keeps of a published trace.

    Attributes:
      requests: in the published trace. rate_rps: their mean rate. cv: standard deviation of the gaps over their mean.
      prompt, output: lengths. correlation: of the normals behind their ranks (see `synth`).
    """

    requests: int
    rate_rps: float
    cv: float
    prompt: Quantiles
    output: Quantiles
    correlation: float


# AzureLLMInferenceTrace_conv_2023.csv: 19,366 requests in 3,501.7 s. Source: https://github.com/Azure/AzurePublicDataset
# (CC-BY-4.0), described in Patel et al., Splitwise, ISCA 2024.
_AZURE_CONVERSATION_PROMPT_TOKENS = (
    2, 8, 17, 29, 91, 161, 181, 181, 191, 197, 201, 203, 207, 212, 222, 242, 317, 372, 375, 378, 381, 384,
    387, 390, 392, 394, 395, 396, 398, 399, 400, 402, 403, 405, 406, 408, 411, 414, 419, 424, 433, 456, 703,
    863, 903, 946, 972, 984, 994, 1002, 1009, 1014, 1020, 1025, 1031, 1036, 1041, 1045, 1050, 1055, 1060,
    1065, 1071, 1076, 1081, 1086, 1092, 1097, 1102, 1109, 1116, 1122, 1130, 1139, 1147, 1159, 1171, 1189,
    1214, 1249, 1311, 1314, 1315, 1321, 1368, 1508, 1689, 1876, 2032, 2221, 2401, 2584, 2734, 3291, 4073,
    4076, 4079, 4083, 4086, 4090, 4098, 4142, 4831, 6179, 14050,
)  # fmt: skip
_AZURE_CONVERSATION_OUTPUT_TOKENS = (
    7, 12, 14, 16, 24, 32, 38, 41, 44, 47, 49, 52, 54, 57, 59, 62, 64, 67, 69, 71, 73, 75, 77, 79, 81, 82, 84,
    85, 86, 87, 89, 90, 91, 92, 93, 94, 95, 96, 97, 99, 100, 101, 103, 105, 107, 108, 110, 113, 116, 118, 122,
    125, 129, 133, 137, 141, 145, 151, 156, 161, 163, 169, 177, 182, 190, 202, 216, 217, 237, 371, 375, 378,
    384, 387, 390, 393, 394, 395, 396, 396, 397, 398, 400, 402, 404, 407, 410, 411, 414, 415, 417, 420, 424,
    428, 429, 433, 442, 451, 468, 509, 540, 601, 643, 954, 1000,
)  # fmt: skip

PRESETS: Mapping[str, Preset] = {
    "azure_conversation": Preset(
        requests=19_366,
        rate_rps=5.5301,
        cv=1.0942,
        prompt=Quantiles(levels=LEVELS, tokens=_AZURE_CONVERSATION_PROMPT_TOKENS),
        output=Quantiles(levels=LEVELS, tokens=_AZURE_CONVERSATION_OUTPUT_TOKENS),
        correlation=0.0762,
    ),
}


def twin(name: str, *, requests: int | None = None) -> SynthSpec:
    """The spec of a preset's twin, with the published number of requests or another.

    Args:
      name: a key of `PRESETS`.
    """
    preset = PRESETS[name]
    return SynthSpec(
        name=name,
        requests=preset.requests if requests is None else requests,
        arrivals=Gamma(rate_rps=preset.rate_rps, cv=preset.cv),
        prompt=preset.prompt,
        output=preset.output,
        correlation=preset.correlation,
    )
