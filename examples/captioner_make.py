"""Make captioners from small encoders and decoders, which stand for those of the Hub: ViT and Swin, BERT and GPT-2.

make_captioner also takes names on the Hub: make_captioner("google/vit-base-patch16-224-in21k", "gpt2", "captioner").

python examples/captioner_make.py OUT
"""

import sys
from pathlib import Path

import torch
import transformers as hf
from tokenizers import ByteLevelBPETokenizer

from visualbert_core import make_captioner

WORDS = ("a", "the", "two", "red", "green", "blue", "circle", "circles", "square", "is", "are", "left", "of", "and")
END = "<|endoftext|>"


def write_parts(folder: Path) -> None:
    """Write four checkpoints with random weights as transformers saves them: vit, swin, bert and gpt2."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    stages = {"depths": [1, 1], "num_heads": [2, 4], "embed_dim": 24, "window_size": 4}
    images = hf.ViTImageProcessor(size={"height": 32, "width": 32})
    vit = hf.ViTModel(hf.ViTConfig(image_size=32, patch_size=8, **sizes))
    swin = hf.SwinModel(hf.SwinConfig(image_size=32, patch_size=4, **stages))
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    words, pieces = hf.BertTokenizerFast(str(folder / "vocab.txt")), ByteLevelBPETokenizer()
    bert = hf.BertForMaskedLM(hf.BertConfig(vocab_size=len(words), **sizes))
    pieces.train_from_iterator([" ".join(WORDS)], vocab_size=400, special_tokens=[END], show_progress=False)
    coded = hf.PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, bos_token=END, eos_token=END)
    ends = {"bos_token_id": coded.bos_token_id, "eos_token_id": coded.eos_token_id}
    gpt2 = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=len(coded), n_embd=24, n_layer=2, n_head=4, **ends))
    for name, network, reader in zip(
        ("vit", "swin", "bert", "gpt2"), (vit, swin, bert, gpt2), (images, images, words, coded), strict=True
    ):
        network.save_pretrained(folder / name)
        reader.save_pretrained(folder / name)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    write_parts(out)
    for pair in ("vit bert", "vit gpt2", "swin bert", "swin gpt2"):
        for random in (True, False):  # two configurations → captioner, two checkpoints → captioner
            made = make_captioner(*(out / part for part in pair.split()), out / f"{pair} {random}", random=random)
            print(f"{made.name}: {made.parameters:,} parameters, {'all' if random else len(made.new)} tensors are new")
