"""Turn SmolLM2's GGUF file into a folder that `from_pretrained` maps in 0.2 s. Run as a script by `model.py`.

It runs in a process of its own, because it peaks at 1.2 GB resident, which must not count as the trainer's.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

# The GGUF pads with <|im_end|>, which also ends a turn: a mask of "not padding" would drop the end token, and
# `nn.Embedding(padding_idx=2)` its gradient. <empty_output> marks notebook cells and never occurs in prose.
PAD_TOKEN = "<empty_output>"
END_TOKENS = ("<|endoftext|>", "<|im_end|>")  # ids 0 and 2: the end of a document, and of a chat turn


def convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF's model, dequantised to float32, and its tokenizer into `folder`.

    The tokenizer pads with `PAD_TOKEN`, and generation stops at either of `END_TOKENS`.
    Raises `ValueError` if the pad token is not a token of the vocabulary, or is one with another meaning.
    """
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    pad, ends = tokenizer.convert_tokens_to_ids(PAD_TOKEN), tokenizer.convert_tokens_to_ids(list(END_TOKENS))
    if pad in (None, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, *ends):
        raise ValueError(
            f"pad token {PAD_TOKEN} has id {pad}, which has another meaning; end tokens are {ends}"
        )
    tokenizer.pad_token = PAD_TOKEN

    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
    )
    config = loaded.config
    # save_pretrained refuses a model that was loaded as quantised, whatever its config says afterwards: the
    # weights move, uncopied, into a fresh model.
    del config.quantization_config
    config.pad_token_id, config.eos_token_id = pad, ends
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=pad
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
