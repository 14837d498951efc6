"""`hf:`: small random models of four kinds, saved as published, against the library's own, one by one."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    EsmConfig,
    EsmForMaskedLM,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
)

from encoders.contract import EncoderContract
from encoders.tiny import ESM2_CONFIG
from isoformer.embeddings.key import encoder_key
from isoformer.encoders.huggingface_tokenizer import LibraryTokenizer
from isoformer.encoders.registry import EncoderChoice, get_spec, load_encoder, load_tokenizer, weights_digest
from isoformer.encoders.resolution import reduce
from isoformer.encoders.spec import pack
from isoformer.errors import ConfigError, EncoderError
from isoformer.schema import Modality

RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO"
ESM_VOCABULARY = ["<cls>", "<pad>", "<eos>", "<unk>", *RESIDUES, ".", "-", "<null_1>", "<mask>"]
BERT_VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *RESIDUES[:21]]
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
PROTEINS = ["MKV", "MKVLAAGIVGLS", "ACDEFGHIKLMN", "M", "W" * 60]


def esm_folder(folder: Path) -> Path:
    """As published: `vocab.txt`, no `tokenizer.json`."""
    save(EsmForMaskedLM(EsmConfig(**{**ESM2_CONFIG, "max_position_embeddings": 258})), folder)
    (folder / "vocab.txt").write_text("\n".join(ESM_VOCABULARY))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "EsmTokenizer", "model_max_length": 256})
    return folder


def bert_folder(folder: Path) -> Path:
    """As ProtBert: one residue a word, no rare residues but X."""
    save(BertForMaskedLM(BertConfig(vocab_size=26, max_position_embeddings=256, **SMALL)), folder)
    ids = {token: place for place, token in enumerate(BERT_VOCABULARY)}
    BertTokenizer(vocab=ids, do_lower_case=False).save_pretrained(folder)
    return folder


def old_bert_folder(folder: Path) -> Path:
    bert_folder(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(BERT_VOCABULARY))
    write_json(folder / "tokenizer_config.json", {"do_lower_case": False})
    return folder


def t5_folder(folder: Path) -> Path:
    """As ProtT5: pieces that begin a word, an end token and no first one, relative positions."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    save(T5EncoderModel(T5Config(vocab_size=40, n_positions=256, **sizes)), folder)
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((f"▁{letter}", -2.0) for letter in RESIDUES[:21]),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "model_max_length": 256}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


def roberta_folder(folder: Path, letters: str = "ACGT") -> Path:
    """As DNA models with byte pairs: several letters a token, no token for N."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list(letters), size=200)) for _ in range(20)]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=60, special_tokens=special))
    frame = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer.post_processor = frame
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    save(
        RobertaModel(RobertaConfig(vocab_size=60, pad_token_id=1, max_position_embeddings=130, **SMALL)),
        folder,
    )
    return folder


FOLDERS: dict[str, tuple[Callable[[Path], Path], Modality]] = {
    "esm": (esm_folder, "protein"),
    "bert": (bert_folder, "protein"),
    "old-bert": (old_bert_folder, "protein"),
    "t5": (t5_folder, "protein"),
    "roberta": (roberta_folder, "dna"),
}


def save(model: Any, folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # norms and biases that count
        parameter.data.normal_(0, 0.3, generator=generator)
    model.save_pretrained(folder)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))


def edit_json(path: Path, **changes: Any) -> None:
    write_json(path, {**json.loads(path.read_text()), **changes})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hf")
    return {kind: make(root / kind) for kind, (make, _) in FOLDERS.items()}


def named(folder: Path, modality: Modality | None = "protein", **options: Any) -> EncoderChoice:
    return EncoderChoice(name=f"hf:{folder}", modality=modality, **options)


class TestEsm(EncoderContract):
    @pytest.fixture
    def choice(self, folders: dict[str, Path]) -> EncoderChoice:
        return named(folders["esm"])


class TestBertOfAnInnerLayer(EncoderContract):
    @pytest.fixture
    def choice(self, folders: dict[str, Path]) -> EncoderChoice:
        return named(folders["bert"], layer=-2, average_layers=2)


class TestT5(EncoderContract):
    @pytest.fixture
    def choice(self, folders: dict[str, Path]) -> EncoderChoice:
        return named(folders["t5"])


class TestRandom(EncoderContract):
    @pytest.fixture
    def choice(self, folders: dict[str, Path]) -> EncoderChoice:
        return named(folders["esm"], random_seed=3)


@pytest.mark.parametrize("kind", FOLDERS)
def test_parity_with_the_library_one_by_one(folders: dict[str, Path], kind: str) -> None:
    folder, modality = folders[kind], FOLDERS[kind][1]
    choice = named(folder, modality)
    sequences = PROTEINS if modality == "protein" else ["ACGTACGTAA", "TTGACCA" * 9, "C", "GGATTACAGG" * 7]
    tokens = [load_tokenizer(choice)(sequence) for sequence in sequences]
    encoded = load_encoder(choice).encode(pack(tokens))
    library_tokenizer = AutoTokenizer.from_pretrained(folder)
    library = library_model(folder)
    for place, sequence in enumerate(sequences):
        spaced = kind in ("bert", "old-bert", "t5")
        ids = library_tokenizer(" ".join(sequence) if spaced else sequence)["input_ids"]
        assert tokens[place].token_ids.tolist() == ids
        with torch.no_grad():
            expected = library(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).last_hidden_state[
                0
            ]
        got = encoded.hidden_PD[encoded.offsets[place] : encoded.offsets[place + 1]]
        first = 0 if kind == "t5" else 1
        torch.testing.assert_close(got, expected[first:-1], rtol=1e-5, atol=1e-5)
        if kind != "t5":
            assert encoded.cls_BD is not None
            torch.testing.assert_close(encoded.cls_BD[place], expected[0], rtol=1e-5, atol=1e-5)


def library_model(folder: Path) -> Any:
    kinds = {"esm": EsmForMaskedLM, "bert": BertForMaskedLM, "t5": T5EncoderModel, "roberta": RobertaModel}
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    model = kinds[model_type].from_pretrained(folder, dtype=torch.float32).eval()
    return model.base_model if model_type in ("esm", "bert") else model


@pytest.mark.parametrize(("layer", "average_layers"), [(0, 1), (1, 1), (2, 1), (-1, 1), (-1, 3), (-2, 2)])
def test_layers_are_numbered_as_the_library_numbers_them(
    folders: dict[str, Path], layer: int, average_layers: int
) -> None:
    choice = named(folders["bert"], layer=layer, average_layers=average_layers)
    tokens = load_tokenizer(choice)("MKVLA")
    with torch.no_grad():
        ids = torch.from_numpy(tokens.token_ids.astype(np.int64))[None]
        states = library_model(folders["bert"])(ids, output_hidden_states=True).hidden_states
    last = layer % len(states)
    expected = torch.stack(states[last + 1 - average_layers : last + 1]).mean(dim=0)[0, 1:-1]
    got = load_encoder(choice).encode(pack([tokens])).hidden_PD
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"layer": 3}, {"layer": -4}, {"average_layers": 4}, {"layer": 0, "average_layers": 2}]
)
def test_a_layer_that_is_not_there_is_named(folders: dict[str, Path], options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"is not there; it has 3 hidden states"):
        get_spec(named(folders["bert"], **options))


def test_the_encoder_half_of_an_encoder_decoder(folders: dict[str, Path], tmp_path: Path) -> None:
    sizes = {f"{half}_{size}": 2 for half in ("encoder", "decoder") for size in ("layers", "attention_heads")}
    config = BartConfig(
        vocab_size=26, d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=64, **sizes
    )
    save(BartForConditionalGeneration(config), tmp_path)
    BertTokenizer(
        vocab=dict(zip(BERT_VOCABULARY, range(26), strict=True)), do_lower_case=False
    ).save_pretrained(tmp_path)
    choice = named(tmp_path)
    tokens = load_tokenizer(choice)("MKVLA")
    model = BartForConditionalGeneration.from_pretrained(tmp_path).eval().get_encoder()
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens.token_ids.astype(np.int64))[None]).last_hidden_state[0, 1:-1]
    got = load_encoder(choice).encode(pack([tokens])).hidden_PD
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_letters_are_written_as_the_vocabulary_knows_them(folders: dict[str, Path], tmp_path: Path) -> None:
    assert tokenizer_of(named(folders["esm"])).writing("MKT") == "MKT"
    assert tokenizer_of(named(folders["bert"])).writing("MKT") == "M K T"
    assert tokenizer_of(named(folders["t5"])).writing("MKT") == "M K T"
    assert tokenizer_of(named(folders["roberta"], "rna")).writing("GATT") == "GATT"
    assert tokenizer_of(named(roberta_folder(tmp_path, "ACGU"), "rna")).writing("GATT") == "GAUU"


def test_the_tokenizer_travels_to_other_processes(folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(named(folders["t5"]))
    copied = copy.deepcopy(tokenizer)  # by the same protocol as a pickle
    assert np.array_equal(copied("MKVLA").token_ids, tokenizer("MKVLA").token_ids)


def tokenizer_of(choice: EncoderChoice) -> LibraryTokenizer:
    tokenizer = load_tokenizer(choice)
    assert isinstance(tokenizer, LibraryTokenizer)
    return tokenizer


def test_what_the_vocabulary_does_not_know_is_counted_or_refused(folders: dict[str, Path]) -> None:
    esm, bert = load_tokenizer(named(folders["esm"])), load_tokenizer(named(folders["bert"]))
    assert esm("MKUJ").counts == {"masked_residues": 1}
    assert bert("MKUJ").counts == {"masked_residues": 2}
    dna = load_tokenizer(named(folders["roberta"], "dna"))
    tokens = dna("NNACGTACGTNN")
    assert tokens.counts["ambiguous_bases"] == 4
    assert tokens.counts["unknown_tokens"] == tokens.token_ids.tolist().count(3) > 0
    with pytest.raises(EncoderError, match=r"does not know A, C, G, T of dna; is that right\?"):
        load_tokenizer(named(dna_of_none(folders), "dna"))


def dna_of_none(folders: dict[str, Path]) -> Path:
    """A protein vocabulary that lacks the nucleotides' letters."""
    folder = folders["esm"].with_name("no-nucleotides")
    shutil.copytree(folders["esm"], folder, dirs_exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", "L", "V"]))
    return folder


def test_a_sequence_of_unknown_tokens_alone_is_refused(folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(named(folders["roberta"], "dna", max_tokens=8, long_sequences="left"))
    with pytest.raises(EncoderError, match="no valid letter: all 6 tokens are <unk>"):
        tokenizer("A" + "N" * 40)


@pytest.mark.parametrize("policy", ["left", "right", "center"])
@pytest.mark.parametrize("kind", ["esm", "bert", "roberta"])
def test_cropping_keeps_what_was_asked_for(folders: dict[str, Path], kind: str, policy: str) -> None:
    modality = FOLDERS[kind][1]
    whole = load_tokenizer(named(folders[kind], modality))
    tokenizer = load_tokenizer(named(folders[kind], modality, max_tokens=22, long_sequences=policy))
    rng = np.random.default_rng(4)
    sequence = "".join(rng.choice(list("ACGT" if modality == "dna" else RESIDUES[:20]), size=61))
    every, kept = whole(sequence).token_ids, tokenizer(sequence)
    assert len(kept) == 22 and (kept.token_ids[[0, -1]] == every[[0, -1]]).all()
    windows = np.lib.stride_tricks.sliding_window_view(every[1:-1], 20)
    (start,) = np.flatnonzero((windows == kept.token_ids[1:-1]).all(axis=1))
    dropped = len(every) - 22
    assert start == {"left": dropped, "right": 0}.get(policy, start)
    if kind != "roberta":
        assert start == {"left": dropped, "right": 0, "center": 61 // 2 - 20 // 2}[policy]
        assert kept.counts == {"cropped_residues": 41}
    else:
        assert 0 < kept.counts["cropped_bases"] < 61


def test_limits_come_from_config_and_tokenizer(folders: dict[str, Path]) -> None:
    assert [get_spec(named(folders[kind], FOLDERS[kind][1])).max_tokens for kind in FOLDERS] == [
        256, 256, 256, 256, 128,
    ]  # fmt: skip
    assert get_spec(named(folders["t5"], max_tokens=4000)).max_tokens == 4000
    with pytest.raises(ConfigError, match="max_tokens 257 is over the model's 256"):
        get_spec(named(folders["bert"], max_tokens=257))


def test_half_precision_is_near(folders: dict[str, Path]) -> None:
    exact, rough = (named(folders["esm"], precision=precision) for precision in ("f32", "bf16"))
    tokens = [load_tokenizer(exact)(protein) for protein in PROTEINS]
    expected, got = (reduce(load_encoder(choice).encode(pack(tokens)), "pooled") for choice in (exact, rough))
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == np.float32
        assert np.abs(one - other).max() < 0.1 * np.abs(other).max()


def test_whatever_changes_a_value_changes_the_key(folders: dict[str, Path], tmp_path: Path) -> None:
    changed = tmp_path / "bert"
    shutil.copytree(folders["bert"], changed)
    edit_json(changed / "tokenizer_config.json", extra="setting")
    elsewhere = tmp_path / "other" / "bert"
    shutil.copytree(folders["bert"], elsewhere)
    choices = [
        named(folders["bert"]),
        named(elsewhere),
        named(changed),
        named(folders["bert"], layer=1),
        named(folders["bert"], precision="bf16"),
        named(folders["bert"], long_sequences="left"),
        named(folders["bert"], max_tokens=100),
    ]
    first, same, *others = [encoder_key(get_spec(c), weights_digest(c), "pooled") for c in choices]
    assert first == same and first.startswith("hf-bert.")
    assert len({first, *others}) == 1 + len(others)


def test_weights_may_be_named_apart_from_the_repository(folders: dict[str, Path]) -> None:
    choice = EncoderChoice(name="hf:someone/a-bert", modality="protein", weights=str(folders["bert"]))
    spec = get_spec(choice)
    assert (spec.name, spec.hub, spec.width, spec.layers) == ("hf-a-bert", "someone/a-bert", 16, 2)
    assert (spec.source, spec.revision) == (str(folders["bert"]), None)
    assert weights_digest(choice) == weights_digest(named(folders["bert"]))
    with pytest.raises(EncoderError, match="isoformer weights pull hf:someone/a-bert"):
        get_spec(EncoderChoice(name="hf:someone/a-bert", modality="protein"))


def test_spec_and_tokenizer_need_no_torch(folders: dict[str, Path]) -> None:
    proteins = [str(folder) for kind, folder in folders.items() if FOLDERS[kind][1] == "protein"]
    code = (
        "import sys; from isoformer.encoders.registry import *; "
        f"choices = [EncoderChoice(name=f'hf:{{name}}', modality='protein') for name in {proteins}]; "
        "[(get_spec(choice), load_tokenizer(choice)('MKV')) for choice in choices]; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_that_it_cannot_honour_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="give its modality: dna, rna or protein"):
        get_spec(named(folders["bert"], None))
    with pytest.raises(ConfigError, match="long_sequences may be left, right or center, not windows"):
        load_tokenizer(named(folders["bert"], long_sequences="windows"))
    with pytest.raises(ConfigError, match="overlap_tokens"):
        get_spec(named(folders["bert"], overlap_tokens=3))


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / name, **changes)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    from safetensors.torch import load_file, save_file

    def rewrite(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": print}, folder / "pytorch_model.bin")


REMOTE = {"auto_map": {"AutoModel": "modeling.Own"}}
LAYER = "bert.encoder.layer.1.output.dense.bias"
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "remote code": (
        edit("config.json", model_type="own", **REMOTE),
        r"its repository's own code \(auto_map\), which is never run; .* no model of type 'own'",
    ),
    "remote code of a built-in family": (
        edit("config.json", model_type="enformer", **REMOTE),
        "built in here: enformer",
    ),
    "pickle only": (as_pickle, r"pytorch_model\.bin: hf: reads safetensors alone"),
    "no weights": (drop("model.safetensors"), "no weights; expected one of"),
    "cut short": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 20),
        "not readable weights",
    ),
    "a causal language model": (
        edit("config.json", architectures=["BertLMHeadModel"]),
        "that decodes is no encoder",
    ),
    "a decoder": (edit("config.json", is_decoder=True), "that decodes is no encoder"),
    "no tokenizer": (drop("tokenizer.json"), "no tokenizer; expected tokenizer.json"),
    "a tokenizer that is none": (
        lambda folder: (folder / "tokenizer.json").write_text('{"model": 1}'),
        r"tokenizer\.json: not a tokenizer that can be read",
    ),
    "a missing tensor": (tensors(lambda state: state.pop(LAYER)), f"missing: {LAYER.removeprefix('bert.')}"),
    "a surplus tensor": (
        tensors(lambda state: state.update({"bert.encoder.layer.0.adapter.weight": torch.ones(2)})),
        r"not known: bert\.encoder\.layer\.0\.adapter\.weight",
    ),
    "a tensor of another shape": (
        tensors(lambda state: state.update({LAYER: torch.ones(3)})),
        r"output\.dense\.bias is \(3,\), must be \(16,\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_folders_are_named(folders: dict[str, Path], tmp_path: Path, case: str) -> None:
    spoil, problem = BROKEN[case]
    shutil.copytree(folders["bert"], tmp_path / "bert")
    spoil(tmp_path / "bert")
    with pytest.raises(EncoderError, match=problem):
        load_encoder(named(tmp_path / "bert"))


def test_a_decoder_by_class_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    save(GPT2Model(GPT2Config(vocab_size=26, n_positions=64, n_embd=16, n_layer=2, n_head=2)), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["bert"] / name, tmp_path)
    with pytest.raises(EncoderError, match="a gpt2 is a decoder, not an encoder"):
        load_encoder(named(tmp_path))


def test_an_esm_vocabulary_of_words_names_the_built_in_family(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders["esm"], tmp_path / "nt")
    (tmp_path / "nt" / "vocab.txt").write_text(
        "\n".join(["<unk>", "<pad>", "<mask>", "<cls>", "AAAAAA", "AAAAAT"])
    )
    with pytest.raises(EncoderError, match="name it ntv1-… or ntv2-…"):
        get_spec(named(tmp_path / "nt", "dna"))
