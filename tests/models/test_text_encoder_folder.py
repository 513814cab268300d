"""BERTs of a folder: what is read, and what is refused."""

import json
import subprocess
import time

import pytest
import torch

from ct3dlib.errors import CheckpointError
from ct3dlib.models.text_encoder import TextEncoder
from tests.models.test_text_encoder import BITS, IDS, TOKENS, build, spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a BERT as the hub has it: trained to fill in words, its names prefixed."""
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=TOKENS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=80,
    )
    path = tmp_path_factory.mktemp("bert")
    BertForPreTraining(config).save_pretrained(path)
    return path


def copied(folder, tmp_path, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return tmp_path


@pytest.mark.parametrize("pooling", ["cls", "pooler"])
def test_folder_gives_its_weights_and_its_shape(folder, pooling):
    from transformers import BertModel

    model = build(path=str(folder), pooling=pooling)
    theirs = BertModel.from_pretrained(folder).eval()
    ids = IDS[1, :1].long()
    states = model.bert.eval()(input_ids=ids)
    wanted = theirs(input_ids=ids)
    torch.testing.assert_close(states.last_hidden_state, wanted.last_hidden_state)
    if pooling == "pooler":
        torch.testing.assert_close(states.pooler_output, wanted.pooler_output)
    assert model.bert.config.hidden_dropout_prob == spec().dropout


def test_network_is_built_again_without_its_folder(folder):
    model = build(path=str(folder))
    assert model.spec.path is None
    assert model.spec.encoder.mlp_ratio == 2.5
    again = TextEncoder(model.spec, TOKENS).eval()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(IDS, BITS).global_, model(IDS, BITS).global_)


def test_smaller_vocabulary_cuts_the_table(folder):
    torch.manual_seed(0)
    model = TextEncoder(spec(path=str(folder)), 300)
    assert model.bert.embeddings.word_embeddings.weight.shape == (300, 32)
    whole = build(path=str(folder))
    assert torch.equal(
        model.bert.embeddings.word_embeddings.weight,
        whole.bert.embeddings.word_embeddings.weight[:300],
    )


def test_old_files_of_weights_are_read(folder, tmp_path):
    from safetensors.torch import load_file

    tmp_path.joinpath("config.json").write_text((folder / "config.json").read_text())
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    old, new = build(path=str(tmp_path)), build(path=str(folder))
    torch.testing.assert_close(old(IDS, BITS).global_, new(IDS, BITS).global_)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), r"no config\.json; model\.text\.path is a folder of a BERT"),
        (("config.json",), r"no weights, wanted model\.safetensors or pytorch_model\.bin"),
    ],
)
def test_missing_files_are_named_at_once(folder, tmp_path, files, message):
    for name in files:
        tmp_path.joinpath(name).write_text((folder / name).read_text())
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=message) as caught:
        build(path=str(tmp_path))
    assert time.perf_counter() - start < 1
    assert str(tmp_path) in str(caught.value)


def test_damaged_weights_are_named(folder, tmp_path):
    path = copied(folder, tmp_path)
    (path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"no BERT can be read \(.*fetch it again"):
        build(path=str(path))


def test_code_in_weights_is_not_run(folder, tmp_path):
    tmp_path.joinpath("config.json").write_text((folder / "config.json").read_text())
    torch.save({"x": subprocess.run}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no BERT can be read"):
        build(path=str(tmp_path))


def test_bert_of_another_build_is_refused(folder, tmp_path):
    path = copied(folder, tmp_path, hidden_act="relu")
    with pytest.raises(CheckpointError, match=r"config\.json: hidden_act is relu, wanted gelu"):
        build(path=str(path))


def test_weights_that_are_missing_are_not_drawn(folder, tmp_path):
    path = copied(folder, tmp_path, num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"no weights of encoder\.layer\.2"):
        build(path=str(path))


def test_missing_pooler_says_what_else_to_choose(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    path = copied(folder, tmp_path)
    weights = {k: v for k, v in load_file(path / "model.safetensors").items() if "pooler" not in k}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    assert build(path=str(path)).width == 32
    with pytest.raises(
        CheckpointError, match=r"no weights of pooler.*; choose pooling cls or mean"
    ):
        build(path=str(path), pooling="pooler")


def test_tokenizer_of_another_bert_is_refused(folder):
    with pytest.raises(CheckpointError, match=r"knows 320 tokens, but the tokenizer has 321"):
        TextEncoder(spec(path=str(folder)), TOKENS + 1)
