"""Questions for `experiments/distil.py`: every form with every subject, none of them among the shipped prompts."""

from collections.abc import Iterator

SUBJECTS = (
    "rivers", "volcanoes", "bridges", "the heart", "trains", "coffee", "glaciers", "the moon", "chess", "bread",
    "whales", "batteries", "the printing press", "earthquakes", "magnets", "forests", "clocks", "vaccines", "deserts",
    "the ear", "satellites", "salt", "dreams", "paper", "bicycles", "mushrooms", "coral reefs", "compilers",
    "the stock market", "soap", "telescopes", "honey", "languages", "rainbows", "steel", "the roman empire", "sleep",
    "maps", "electric cars", "soil", "music", "windmills", "penguins", "taxes", "glass", "the brain", "tides", "cheese",
    "databases", "democracy", "ants", "lightning", "concrete", "poetry", "fractions", "the immune system", "tea",
    "airplanes", "gravity", "cities", "fire", "sharks", "money", "weather",
)  # fmt: skip
FORMS = (
    "Explain how {} work, or came to be, to a child.",
    "Give me five facts about {}.",
    "Write a short story in which {} play a part.",
    "What should a beginner know about {}?",
)
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def prompts(count: int) -> Iterator[str]:
    """The first `count` questions, as the model's chat template writes them; neighbours differ in form and subject."""
    for number in range(min(count, len(SUBJECTS) * len(FORMS))):
        turn, place = divmod(number, len(SUBJECTS))
        yield CHAT.format(FORMS[(place + turn) % len(FORMS)].format(SUBJECTS[place]))
