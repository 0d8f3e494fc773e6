"""The strict loader: what it builds, and the message for every mistake it refuses."""

import dataclasses
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nanoserve.specs.config import Loaded, load, resolve
from nanoserve.specs.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oven:
    watts: int = 800
    timer_s: float | None = None
    grill: bool = False

    def __post_init__(self):
        if self.watts < 1:
            raise ConfigError(f"Baking.watts = {self.watts}: must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dough:
    flour: Literal["rye", "wheat"] | None = "wheat"
    grams: dict[str, int] = dataclasses.field(default_factory=lambda: {"flour": 500, "water": 325})
    folds_s: tuple[float, ...] = ()
    shape: tuple[str, int] = ("round", 1)
    notes: Sequence[str] = ()
    nutrients: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bread:
    name: str
    size: int | float = 1
    oven: Oven = Oven(watts=1200)
    dough: Dough = Dough()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sauce:
    """Registered, and no part of a bread."""

    chillies: int = 0


REGISTRY = {"Bread": Bread, "Baking": Oven, "Dough": Dough, "Sauce": Sauce}
NAMED = "Bread.name = 'loaf'\n"


def bake(text: str, *overrides: str) -> Loaded:
    return load(NAMED + text, REGISTRY, "Bread", overrides)


def refusal(text: str, *overrides: str) -> str:
    """The message for `text`, which follows one good line: its first line is line 2."""
    with pytest.raises(ConfigError) as caught:
        bake(text, *overrides)
    return str(caught.value)


def write_files(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.gin").write_text(text)
    return folder / "main.gin"


# What it builds.


def test_lines_set_fields_and_the_rest_keep_the_default_of_the_class_they_are_part_of():
    loaded = bake("Baking.timer_s = 60.5\nDough:\n  flour = 'rye'\n  folds_s = (1.5,)\n")
    assert loaded.value == Bread(
        name="loaf", oven=Oven(watts=1200, timer_s=60.5), dough=Dough(flour="rye", folds_s=(1.5,))
    )
    assert loaded.as_written.endswith("folds_s = (1.5,)\n")


def test_the_operative_config_says_every_field_in_sorted_lines():
    lines = bake("").operative.splitlines()
    assert lines == sorted(lines)
    assert "Baking.watts = 1200" in lines
    assert len(lines) == 2 + 3 + 6  # own fields of Bread, Baking, Dough


def test_an_int_becomes_a_float_where_a_float_is_wanted():
    value = bake("Baking.timer_s = 60\nDough.folds_s = (1, 2)").value
    assert [type(v) for v in (value.oven.timer_s, *value.dough.folds_s)] == [float, float, float]


def test_an_int_stays_an_int_where_both_are_allowed():
    assert type(bake("Bread.size = 2").value.size) is int


def test_macros_are_replaced_inside_containers_and_by_other_macros():
    value = bake("A = %B\nB = 7\nDough.grams = {'flour': %A}\nDough.notes = ['x', %C]\nC = 'y'").value
    assert value.dough.grams == {"flour": 7}
    assert value.dough.notes == ["x", "y"]


def test_overrides_come_last_and_take_a_bare_word_as_a_string():
    value = bake("Baking.watts = 5", "Baking.watts=6", "Bread.name=llama-3.1-8b", "Dough.grams={'flour': 1}").value
    assert (value.oven.watts, value.name, value.dough.grams) == (6, "llama-3.1-8b", {"flour": 1})


def test_an_override_may_replace_the_only_use_of_a_macro():
    assert bake("A = 5\nBaking.watts = %A", "Baking.watts=6").value.oven.watts == 6


def test_a_files_own_lines_win_over_those_of_its_includes(tmp_path: Path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/oven.gin").write_text("include '../base.gin'\nBaking.watts = 2\n")
    main = write_files(
        tmp_path,
        base="Baking.watts = 1\nBaking.grill = True\nBread.name = 'base'\n",
        main="include 'base.gin'\ninclude 'parts/oven.gin'\nBread.name = 'main'\n",
    )
    value = load(main, REGISTRY, "Bread").value
    assert (value.name, value.oven.watts, value.oven.grill) == ("main", 2, True)


literals = {
    "Bread.name": st.text(),
    "Bread.size": st.integers() | st.floats(allow_nan=False),
    "Baking.watts": st.integers(min_value=1),
    "Baking.timer_s": st.none() | st.floats(allow_nan=False),
    "Baking.grill": st.booleans(),
    "Dough.flour": st.sampled_from(["rye", "wheat", None]),
    "Dough.grams": st.dictionaries(st.text(), st.integers()),
    "Dough.folds_s": st.lists(st.floats(allow_nan=False)).map(tuple),
    "Dough.shape": st.tuples(st.text(), st.integers()),
    "Dough.notes": st.lists(st.text()) | st.lists(st.text()).map(tuple),
    "Dough.nutrients": st.dictionaries(st.text(), st.floats(allow_nan=False)),
}


@st.composite
def breads(draw: Any) -> Bread:
    values = {key: draw(strategy) for key, strategy in literals.items()}

    def fields(name: str) -> dict[str, Any]:
        return {key.split(".")[1]: value for key, value in values.items() if key.startswith(f"{name}.")}

    return Bread(**fields("Bread"), oven=Oven(**fields("Baking")), dough=Dough(**fields("Dough")))


@given(breads())
@example(Bread(name="inf", oven=Oven(timer_s=float("-inf")), dough=Dough(folds_s=(float("inf"),))))
def test_the_operative_config_loads_to_the_same_value(bread: Bread):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Baked(Bread):  # its defaults are the drawn values, so that the operative config has to spell them out
        name: str = bread.name
        size: int | float = bread.size
        oven: Oven = bread.oven
        dough: Dough = bread.dough

    operative = load("", {**REGISTRY, "Bread": Baked}, "Bread").operative
    again = load(operative, REGISTRY, "Bread")
    assert again.value == bread
    assert again.operative == operative


LINES = [
    "Baking.watts = 5",
    "A = 1",
    "Dough.grams = {'a': %A}",
    "Dough:",
    "  flour = 'rye'",
    "include 'x'",
    "import os",
]


@given(st.text() | st.lists(st.sampled_from(LINES) | st.text("%@=.{}[]()'\"\\\n\t 1aB:,-#", max_size=9)).map("\n".join))
@example("Dough.grams = {[1]: 1}")
@example("Dough.grams = " + "[" * 999)
@example("\0")
def test_any_text_loads_or_is_refused_with_a_place(text: str):
    try:
        bake(text)
    except ConfigError as error:
        assert str(error).startswith("<text>:")


@given(st.text())
def test_any_flag_is_taken_or_refused_by_name(text: str):
    for flag in (text, f"Baking.watts={text}"):
        try:
            bake("", flag)
        except ConfigError as error:
            assert str(error).startswith("--set ")


# What it refuses: (text or flag, parts of the message).

REFUSED_TEXT = {
    "unknown class": ("Bakin.watts = 1", ["<text>:2: there is no class 'Bakin'.", "Did you mean 'Baking'?"]),
    "unknown field": ("\nBaking.wats = 1", ["<text>:3: Baking has no field 'wats'.", "Did you mean 'watts'?"]),
    "field of another class": ("Baking.flour = 1", ["<text>:2: Baking has no field 'flour'.", "mean 'Dough.flour'?"]),
    "no class": ("watts = 1", ["<text>:2: watts is defined and never used. Did you mean 'Baking.watts'?"]),
    "no field": ("Baking = 1", ["<text>:2: Baking is defined and never used. Did you mean 'Baking.watts'?"]),
    "unused class": ("Sauce.chillies = 1", ["<text>:2: Sauce.chillies is never used: Bread has no Sauce. Remove"]),
    "unused macro": ("A = 1", ["<text>:2: A is defined and never used. Use it as %A, or remove the line"]),
    "undefined macro": ("A = 1\nBaking.watts = %AA", ["<text>:3: %AA is not defined. Did you mean 'A'?", "AA = value"]),
    "circular macro": ("A = [%B]\nB = %A\nDough.notes = %B", ["<text>:2: %B is defined by itself"]),
    "text without quotes": ("Dough.flour = rye", ["<text>:2: 'rye' is not a value. Put text in quotes"]),
    "open bracket": ("Dough.grams = {'a': 1", ["<text>:", "syntax error", "Close the bracket"]),
    "open quote": ("Dough.flour = 'rye", ["<text>:2: syntax error", "Close the bracket or the quote"]),
    "two values": ("Baking.watts = 1 2", ["<text>:2: syntax error: Expected newline"]),
    "unhashable key": ("\nDough.grams = {[1]: 2}", ["<text>:3: syntax error: unhashable", "keys of a dict"]),
    "bound twice": ("Baking.watts = 1\n\nBaking.watts = 2", ["<text>:4: Baking.watts is already set at <text>:2."]),
    "import": ("import os.path", ["<text>:2: 'import os.path': a config holds values, not code. Remove"]),
    "scope": ("a/Baking.watts = 1", ["<text>:2: 'a/Baking': scopes are not used. Write Class.field = value"]),
    "reference": ("Dough.notes = [@Baking()]", ["<text>:2: '@Baking': references are not used. Set Baking.field ="]),
    "a class as a field": ("Bread.oven = 1", ["<text>:2: Bread.oven is made of fields. Set those, as in Baking.watts"]),
    "include below a binding": ("include 'x.gin'", ["<text>:2: include 'x.gin' after a binding. Move it to the top"]),
    "refused by the class": ("\nBaking.watts = 0", ["<text>:3: Baking.watts = 0: must be at least 1"]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "parts"), REFUSED_TEXT.values(), ids=REFUSED_TEXT)
def test_a_mistake_is_refused_with_place_name_and_advice(text: str, parts: list[str]):
    message = refusal(text)
    assert [part for part in parts if part not in message] == [], message


WRONG_TYPES = {
    "Baking.watts = '1'": "<text>:2: Baking.watts = '1': wanted int. Write 1 without quotes",
    "Baking.watts = True": "<text>:2: Baking.watts = True: wanted int.",
    "Baking.watts = 1.0": "<text>:2: Baking.watts = 1.0: wanted int.",
    "Baking.watts = None": "<text>:2: Baking.watts = None: wanted int.",
    "Baking.timer_s = True": "<text>:2: Baking.timer_s = True: wanted float or None.",
    "Baking.timer_s = 'none'": "<text>:2: Baking.timer_s = 'none': wanted float or None. Write None without quotes",
    "Baking.grill = 1": "<text>:2: Baking.grill = 1: wanted True or False.",
    "Dough.flour = 'weat'": "<text>:2: Dough.flour = 'weat': wanted 'rye' or 'wheat' or None. Did you mean 'wheat'?",
    "Dough.grams = {'a': 1, 'b': 'c'}": "<text>:2: Dough.grams = {'a': 1, 'b': 'c'}: wanted dict[str, int].",
    "Dough.grams = {'a': 1, 'b': True}": "<text>:2: Dough.grams = {'a': 1, 'b': True}: wanted dict[str, int].",
    "Dough.folds_s = [1.0]": "<text>:2: Dough.folds_s = [1.0]: wanted tuple[float, ...].",
    "Dough.shape = ('a', 1, 2)": "<text>:2: Dough.shape = ('a', 1, 2): wanted tuple[str, int].",
    "Dough.notes = 'ab'": "<text>:2: Dough.notes = 'ab': wanted Sequence[str].",
    "Dough.notes = ['a', 'b', 'c', 1]": "<text>:2: Dough.notes = ['a', 'b', 'c', 1]: wanted Sequence[str].",
    f"Baking.timer_s = 1{'0' * 400}": "wanted float or None.",
}


@pytest.mark.parametrize(("text", "message"), WRONG_TYPES.items(), ids=[text[:32] for text in WRONG_TYPES])
def test_a_value_of_the_wrong_type_is_refused(text: str, message: str):
    assert message in refusal(text)


REFUSED_FLAGS = {
    "Baking.wats=1": "--set Baking.wats=1: Baking has no field 'wats'. Did you mean 'watts'?",
    "Baking.watts=many": "--set Baking.watts=many: Baking.watts = 'many': wanted int.",
    "Baking.watts": "--set Baking.watts: wanted Class.field=value",
    "watts=1": "--set watts=1: wanted Class.field=value",
    "Dough.notes=['a'": "--set Dough.notes=['a': '['a'' is not a value.",
    "Baking.watts=": "--set Baking.watts=: '' is not a value.",
    "Baking.grill=true": "wanted True or False. Write True without quotes",
    "Baking.watts=-1": "--set Baking.watts=-1: Baking.watts = -1: must be at least 1",
    "Bread.name=7": "--set Bread.name=7: Bread.name = 7: wanted str. Put it in quotes",
}


@pytest.mark.parametrize(("flag", "message"), REFUSED_FLAGS.items(), ids=REFUSED_FLAGS)
def test_a_wrong_override_is_refused_by_its_flag(flag: str, message: str):
    assert message in refusal("", flag)


def test_a_field_without_default_has_to_be_set():
    with pytest.raises(ConfigError, match=r"Bread\.name is not set and has no default. Add a line: Bread\.name = "):
        load("", REGISTRY, "Bread")


def test_a_missing_include_is_refused_with_the_nearest_file(tmp_path: Path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/oven.gin").write_text("")
    main = write_files(tmp_path, main="\ninclude 'parts/ofen.gin'\n")
    with pytest.raises(ConfigError) as caught:
        load(main, REGISTRY, "Bread")
    assert f"{main}:2: include 'parts/ofen.gin': there is no file" in str(caught.value)
    assert "Did you mean 'parts/oven.gin'?" in str(caught.value)


def test_includes_in_a_circle_are_refused(tmp_path: Path):
    main = write_files(tmp_path, main="include 'a.gin'", a="# first\ninclude 'b.gin'", b="include 'a.gin'")
    with pytest.raises(ConfigError) as caught:
        load(main, REGISTRY, "Bread")
    assert f"{tmp_path}/b.gin:1: includes go in a circle" in str(caught.value)


def test_a_mistake_in_an_include_is_placed_there(tmp_path: Path):
    main = write_files(tmp_path, main=f"include 'a.gin'\n{NAMED}", a="\nBaking.wats = 1")
    with pytest.raises(ConfigError, match=r"a\.gin:2: Baking has no field 'wats'"):
        load(main, REGISTRY, "Bread")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None], ids=["not text", "a folder"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None):
    path = tmp_path / "main.gin"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"main\.gin: cannot be read as a config"):
        load(path, REGISTRY, "Bread")


def test_resolve_finds_a_name_or_a_path_and_suggests_the_nearest_name(tmp_path: Path):
    path = write_files(tmp_path, main="", llama70b_h100="")
    assert resolve("main", tmp_path) == path
    assert resolve(str(path), "elsewhere") == path
    with pytest.raises(ConfigError, match=r"--config=llama70b_h10: no such file.*Did you mean 'llama70b_h100'\?"):
        resolve("llama70b_h10", tmp_path)


def test_a_wrong_config_is_reported_before_anything_heavy_is_imported():
    program = (
        "import sys; from nanoserve.experiment import CONFIG_CLASSES; from nanoserve.specs.config import load\n"
        "try: load('Engine.max_seq = 1', CONFIG_CLASSES, 'Experiment')\n"
        "except Exception as e: print(e)\n"
        "print(sorted({'jax', 'polars', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert "Did you mean 'max_seqs'?" in done.stdout
    assert done.stdout.endswith("[]\n")
