"""The demo's policy: SmolLM2-135M-Instruct in float32, converted from its GGUF file once and then cached."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from filelock import FileLock  # torch depends on it
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from fastrlhf.cache import cache_dir
from fastrlhf.demo.assets import GGUF, SMOLLM2, asset, require
from fastrlhf.demo.quiet import quiet_loading

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = "smollm2-135m-instruct-0.1.2-v1"  # raise v when convert.py writes something else
CONVERTER = Path(__file__).with_name("convert.py")
_UNFINISHED = ".converting-"


def load_policy() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32 and evaluation mode, and its tokenizer.

    134.5 M parameters, Llama architecture, tied embeddings, vocabulary 49,152. The tokenizer pads on the left
    with a token that is neither an end nor a beginning (`<empty_output>`, id 16); `generation_config` ends at
    ids 0 and 2. The first call converts the weights (25 to 45 s, 540 MB in `cache_dir()`). A later one maps
    the file, so that a weight is resident once: as a page of the file until it is written to, as private
    memory from then on. Raises as `policy_folder` does.
    """
    folder = policy_folder()
    with quiet_loading():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        # save_pretrained of a tokenizer (transformers 5.23) does not keep the side that it pads on
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", local_files_only=True)
    return model.eval(), tokenizer


def policy_folder() -> Path:
    """The folder with the converted model, which is converted now if no earlier call has done it.

    The folder appears under its name by one rename of a finished conversion, so that one that exists is
    whole, however an earlier process ended. Processes that need it at the same time wait for the first.
    Raises `MissingAssetError` if the model's package or `gguf` is absent, and `RuntimeError`, with the
    converter's last words, if the conversion fails.
    """
    cache = cache_dir()
    folder = cache / FOLDER
    if folder.is_dir():
        return folder
    gguf = asset(SMOLLM2, GGUF_FILE)
    require(GGUF)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "convert.lock"):
        if folder.is_dir():
            return folder
        # Left by a killed process: a live one would hold the lock.
        for stale in cache.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(stale, ignore_errors=True)
        with TemporaryDirectory(prefix=_UNFINISHED, dir=cache, ignore_cleanup_errors=True) as unfinished:
            finished = Path(unfinished) / "model"
            print(f"Converting {GGUF_FILE} once, into {folder} (25 to 45 s)", file=sys.stderr, flush=True)
            _convert(gguf, finished)
            os.rename(finished, folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """Run `CONVERTER` in a process of its own, and see its files safe on the disk."""
    # -P keeps the script's folder off sys.path: our modules must not stand in for others of the same name.
    command = [sys.executable, "-P", str(CONVERTER), str(gguf), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode != 0:
        raise RuntimeError(
            f"converting {gguf.name} failed (exit status {done.returncode}): {done.stderr[-2000:].strip()}"
        )
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
