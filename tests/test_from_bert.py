"""A BERT becomes a VisualBERT that computes BERT's own numbers on text alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from visualbert_core.cli import main
from visualbert_core.errors import CheckpointError
from visualbert_core.io.weights import load
from visualbert_core.models.visualbert import VisualBertForPreTraining
from visualbert_core.models.visualbert.checkpoint.bert import from_bert
from visualbert_core.synthetic import WEIGHTS

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    folder = tmp_path / "bert"
    torch.manual_seed(1)
    transformers.BertForPreTraining(transformers.BertConfig(**SIZES)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{at}\n" for at in range(40)))
    return folder


def test_text_alone_gives_berts_numbers(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Words and sentence scores equal BERT's, visual tables are copies, and only the projection is drawn."""
    out = tmp_path / "out"
    assert main(["convert", "bert", str(bert), str(out), "--feature-size", "7", "--feature-space", "here"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "random, from seed 0: visual_bert.embeddings.visual_projection.bias, "
        "visual_bert.embeddings.visual_projection.weight"
    )
    ours, theirs = VisualBertForPreTraining.from_pretrained(out), transformers.BertForPreTraining.from_pretrained(bert)
    ids, types = torch.arange(12).view(2, 6), torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)
    with torch.inference_mode():
        found, expected = ours(ids, token_type_ids=types), theirs.eval()(ids, token_type_ids=types)
    assert torch.allclose(found.prediction_logits, expected.prediction_logits, atol=1e-6)
    assert torch.allclose(found.seq_relationship_logits, expected.seq_relationship_logits, atol=1e-6)
    tables = ours.visual_bert.embeddings
    assert torch.equal(tables.visual_position_embeddings.weight, tables.position_embeddings.weight)
    assert torch.equal(tables.visual_token_type_embeddings.weight, tables.token_type_embeddings.weight)
    assert tables.visual_projection.weight.std() > 0
    assert (out / "vocab.txt").exists()


def test_old_names_and_a_bare_trunk(bert: Path, tmp_path: Path) -> None:
    """Files with gamma and beta convert to the same bits, and a trunk without heads gets drawn heads."""
    state = load(bert / "model.safetensors")
    old = tmp_path / "old"
    old.mkdir()
    for name in ("config.json", "vocab.txt"):
        (old / name).write_bytes((bert / name).read_bytes())
    renamed = {
        key.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v for key, v in state.items()
    }
    torch.save(renamed, old / "pytorch_model.bin")
    from_bert(bert, tmp_path / "one", 7)
    from_bert(old, tmp_path / "two", 7)
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()
    bare = {key.removeprefix("bert."): value for key, value in state.items() if key.startswith("bert.")}
    torch.save(bare, old / "pytorch_model.bin")
    assert "cls.predictions.transform.dense.weight" in from_bert(old, tmp_path / "three", 7)


def test_what_is_no_bert_is_refused(bert: Path, tmp_path: Path) -> None:
    """Another model type, sizes that do not fit and a full target are one line each."""
    with pytest.raises(CheckpointError, match="model_type must be 'bert', got 'visual_bert'"):
        from_bert(WEIGHTS / "visualbert-vqa", tmp_path / "one", 7)
    text = (bert / "config.json").read_text()
    (bert / "config.json").write_text(text.replace('"intermediate_size": 24', '"intermediate_size": 32'))
    with pytest.raises(CheckpointError, match=r"not the BERT of its config\.json: unfit .*intermediate"):
        from_bert(bert, tmp_path / "two", 7)
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        from_bert(bert, bert, 7)


@pytest.mark.parametrize("labels", [{"1": "no", "2": "yes"}, []])
def test_labels_of_a_bert_do_not_matter(labels: object, bert: Path, tmp_path: Path) -> None:
    """A BERT that was fine-tuned converts whatever the labels of its own head are called."""
    held = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(held | {"id2label": labels}))
    from_bert(bert, tmp_path / "out", 7)
    assert VisualBertForPreTraining.from_pretrained(tmp_path / "out").config.num_labels == 2
