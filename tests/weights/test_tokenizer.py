"""Tokenizers: the GGUF and JSON forms of a vocabulary agree, text survives the round trip, bad files are refused."""

import json

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from nanoserve.specs.errors import RequestError, WeightsError
from nanoserve.weights.tokenizer import open_tokenizer
from tests.weights.factories import (
    MERGES,
    SPECIAL_TOKENS,
    TOKENS,
    mutate,
    only_weights_errors,
    tokenizer_metadata,
    write_gguf,
)

PRES = ["default", "smollm", "qwen2", "llama-bpe"]
START, END = 0, 1


def gguf_tokenizer(folder, pre: str = "smollm", **changes):
    return open_tokenizer(write_gguf(folder / f"{pre}.gguf", "llama", tokenizer_metadata(pre) | changes, {}))


def json_library() -> tokenizers.Tokenizer:
    """The `smollm` vocabulary of the factories as a Hugging Face tokenizer that starts every text with a token."""
    vocab = {token: i for i, token in enumerate(TOKENS)}
    library = tokenizers.Tokenizer(models.BPE(vocab, [(left, right) for left, right in map(str.split, MERGES)]))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
    library.post_processor = processors.TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", START)])
    return library


def json_folder(folder, **beside: dict):
    (folder / "tokenizer.json").write_text(json_library().to_str())
    for name, content in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {pre: gguf_tokenizer(folder, pre) for pre in PRES} | {"json": open_tokenizer(json_folder(folder))}


@settings(max_examples=100, derandomize=True)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@example(text="the cat, the 1234\r\n  <|end|> straße 日本 \U0001f600")
def test_text_survives_the_round_trip(opened, text):
    for pre, tokenizer in opened.items():
        if pre == "qwen2":
            continue  # it normalises to NFC
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text, pre
        assert all(0 <= i < tokenizer.vocab_size for i in ids)


@settings(max_examples=100, derandomize=True)
@given(text=st.text(st.one_of(st.sampled_from("the 1<|end|>"), st.characters(exclude_categories=["Cs"]))))
def test_gguf_and_json_forms_of_a_vocabulary_agree(opened, text):
    assert opened["smollm"].encode(text) == opened["json"].encode(text)


def pieces(tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


def test_merges_and_special_tokens_are_used(opened):
    assert pieces(opened["smollm"], "x the<|end|>he") == ["x", " the", "<|end|>", "he"]
    assert opened["smollm"].encode("<|start|><|end|>") == [START, END]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("default", ["12", "3", "4"]),
        ("smollm", ["1", "2", "3", "4"]),
        ("qwen2", ["1", "2", "3", "4"]),
        ("llama-bpe", ["12", "3", "4"]),
    ],
)
def test_digits_are_cut_as_each_model_does(tmp_path, pre, expected):
    # With the merges '1 2' and '3 4', what stays apart was cut before merging; Llama 3 cuts after three digits.
    more = {"tokenizer.ggml.tokens": [*TOKENS, "12", "34"], "tokenizer.ggml.merges": [*MERGES, "1 2", "3 4"]}
    if pre == "default":
        expected = ["12", "34"]
    assert pieces(gguf_tokenizer(tmp_path, pre, **more), "1234") == expected


def test_llama_3_takes_a_whole_word_that_merges_do_not_reach(tmp_path):
    more = {"tokenizer.ggml.tokens": [*TOKENS, "xyz"]}
    assert pieces(gguf_tokenizer(tmp_path, "llama-bpe", **more), "xyz") == ["xyz"]
    assert pieces(gguf_tokenizer(tmp_path, "default", **more), "xyz") == ["x", "y", "z"]


def test_qwen2_composes_characters_first(opened):
    assert opened["qwen2"].encode("e\u0301") == opened["qwen2"].encode("\u00e9")
    assert opened["smollm"].encode("e\u0301") != opened["smollm"].encode("\u00e9")


def test_ends_and_prefix_are_read_from_gguf(tmp_path):
    tokenizer = gguf_tokenizer(tmp_path)
    assert (tokenizer.eos_ids, tokenizer.prefix_ids, tokenizer.vocab_size) == ((END,), (), len(TOKENS))
    more = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.eot_token_id": 7}
    tokenizer = gguf_tokenizer(tmp_path, **more)
    assert (tokenizer.eos_ids, tokenizer.prefix_ids) == ((END, 7), (START,))


def test_encoding_adds_no_prefix_but_names_it(tmp_path):
    tokenizer = open_tokenizer(json_folder(tmp_path))
    assert tokenizer.prefix_ids == (START,)
    assert START not in tokenizer.encode("the cat")


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({}, ()),
        ({"config": {"eos_token_id": 1}}, (1,)),
        ({"generation_config": {"eos_token_id": [1, 5]}, "config": {"eos_token_id": 3}}, (1, 5)),
        ({"generation_config": {}, "config": {"eos_token_id": 3}}, (3,)),
        ({"tokenizer_config": {"eos_token": "<|end|>"}}, (1,)),
        ({"tokenizer_config": {"eos_token": {"content": "<|end|>"}}}, (1,)),
    ],
)
def test_ends_are_read_from_the_files_beside_the_json(tmp_path, beside, expected):
    assert open_tokenizer(json_folder(tmp_path, **beside)).eos_ids == expected


def test_truncation_and_padding_of_the_json_are_not_used(tmp_path):
    library = json_library()
    library.enable_truncation(4)
    library.enable_padding(length=8)
    (tmp_path / "tokenizer.json").write_text(library.to_str())
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("0123456789")) == "0123456789"
    assert len(tokenizer.encode("a")) == 1


def test_half_a_surrogate_pair_is_the_request_at_fault(opened):
    with pytest.raises(RequestError, match="surrogate"):
        opened["smollm"].encode("a\ud800b")


BAD_METADATA = {
    "sentencepiece": ({"tokenizer.ggml.model": "llama"}, "tokenizer.json"),
    "unknown cut": ({"tokenizer.ggml.pre": "qwen3"}, "Did you mean 'qwen2'"),
    "tokens not strings": ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens"),
    "token twice": ({"tokenizer.ggml.tokens": ["a", "a"]}, "twice"),
    "merge outside the vocabulary": ({"tokenizer.ggml.merges": ["x yz"]}, "merges cannot be used"),
    "merge of one part": ({"tokenizer.ggml.merges": ["he"]}, "merges cannot be used"),
    "end outside the vocabulary": ({"tokenizer.ggml.eos_token_id": 1 << 20}, "eos_token_id"),
    "types not a list": ({"tokenizer.ggml.token_type": 3}, "token_type"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_METADATA.values(), ids=BAD_METADATA)
def test_metadata_that_makes_no_tokenizer_is_refused(tmp_path, changes, message):
    with pytest.raises(WeightsError, match=message):
        gguf_tokenizer(tmp_path, **changes)


def test_a_gguf_file_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"tokenizer\.ggml\.model' is missing"):
        open_tokenizer(write_gguf(tmp_path / "m.gguf", "llama", {}, {}))


@pytest.mark.parametrize("beside", [[], {"eos_token_id": 1 << 40}, {"eos_token_id": "1.5"}, {"eos_token_id": [True]}])
def test_ends_that_make_no_sense_are_refused_or_absent(tmp_path, beside):
    folder = json_folder(tmp_path, config=beside)
    if beside == {"eos_token_id": "1.5"}:
        assert open_tokenizer(folder).eos_ids == ()
    else:
        with pytest.raises(WeightsError, match=r"config\.json"):
            open_tokenizer(folder)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"holds no tokenizer\.json"):
        open_tokenizer(tmp_path)


def test_a_template_whose_token_is_missing_is_refused(tmp_path):
    content = json.loads(json_library().to_str())
    content["post_processor"]["special_tokens"] = {}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="is not a tokenizer"):
        open_tokenizer(tmp_path)


@settings(max_examples=100, derandomize=True)
@given(
    edits=st.lists(st.tuples(st.integers(0, 1 << 14), st.integers(0, 255)), max_size=3),
    keep=st.one_of(st.just(1 << 30), st.integers(0, 1 << 12)),
)
def test_a_damaged_json_raises_nothing_but_weights_error(tmp_path_factory, edits, keep):
    path = tmp_path_factory.getbasetemp() / "tokenizer.json"
    path.write_bytes(mutate(json_library().to_str().encode(), edits, keep))
    only_weights_errors(lambda path: open_tokenizer(path).encode("the 12"), path)
