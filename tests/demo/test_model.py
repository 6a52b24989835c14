import math
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

from fastrlhf.demo import assets, model
from fastrlhf.demo.model import load_policy, policy_folder

PROSE = [
    "The old lighthouse stood at the end of the bay, where the road stopped and the rocks began. Every "
    "evening the keeper climbed the stairs, cleaned the glass, and lit the lamp. When the weather was bad "
    "he stayed awake all night, watching for the lights of ships that had lost their way. In the morning "
    "his daughter brought him bread and coffee, and told him the news from the village.",
    "Water boils when its vapor pressure equals the pressure of the air around it. At sea level this "
    "happens at one hundred degrees Celsius, but on a high mountain, where the air is thinner, it boils "
    "at a lower temperature. That is why it takes longer to cook rice or beans in the mountains, and why "
    "some people there use a pressure cooker.",
]

# Each stands in for convert.py: it writes a first file, does something, and then writes a second.
CONVERTER = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[2])
folder.mkdir()
(folder / "config.json").write_text("{{}}")
{happening}
(folder / "model.safetensors").write_bytes(b"weights")
with open({log!r}, "a") as log:
    print("converted", file=log)
"""
WHOLE = ["config.json", "model.safetensors"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a GGUF file that no converter of these tests reads."""
    monkeypatch.setenv("FASTRLHF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model, "asset", lambda package, relative: tmp_path / relative)
    monkeypatch.setattr(model, "require", lambda package: tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def converter(tmp_path, monkeypatch):
    """Sets what happens in the middle of a conversion; returns the number of conversions that ended."""
    log = tmp_path / "log"

    def install(happening: str = ""):
        script = tmp_path / "converter.py"
        script.write_text(CONVERTER.format(happening=happening, log=str(log)))
        monkeypatch.setattr(model, "CONVERTER", script)
        return lambda: log.read_text().count("converted") if log.exists() else 0

    return install


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_first_call_converts_and_says_so_and_the_second_does_neither(cache, converter, capfd):
    conversions = converter()
    assert policy_folder() == policy_folder() == cache / model.FOLDER
    assert conversions() == 1
    assert files(cache / model.FOLDER) == WHOLE
    assert files(cache) == ["convert.lock", model.FOLDER]
    announced = capfd.readouterr().err.splitlines()
    assert len(announced) == 1 and str(cache / model.FOLDER) in announced[0]


@pytest.mark.parametrize(
    ("happening", "status"),
    [
        ("raise SystemExit('out of disk')", "exit status 1.*out of disk"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "exit status -9"),
    ],
    ids=["fails", "is killed"],
)
def test_a_conversion_that_does_not_end_leaves_nothing(cache, converter, happening, status):
    converter(happening)
    with pytest.raises(RuntimeError, match=status):
        policy_folder()
    assert files(cache) == ["convert.lock"]
    conversions = converter()
    assert files(policy_folder()) == WHOLE and conversions() == 1


def test_when_the_whole_program_is_killed_the_next_one_starts_afresh(cache, converter, tmp_path):
    # The converter kills its parent, the program that waits for it, and then itself.
    converter("os.kill(os.getppid(), signal.SIGKILL); os.kill(os.getpid(), signal.SIGKILL)")
    program = f"""
        from pathlib import Path
        from fastrlhf.demo import model
        model.asset = lambda package, relative: Path({str(tmp_path)!r}) / relative
        model.require = lambda package: None
        model.CONVERTER = Path({str(model.CONVERTER)!r})
        model.policy_folder()
    """
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, cwd=os.getcwd()
    )
    assert killed.returncode == -signal.SIGKILL
    left = [name for name in files(cache) if name != "convert.lock"]
    assert len(left) == 1 and left[0].startswith(".converting-")  # half of a model, under a name nobody reads
    conversions = converter()
    assert files(policy_folder()) == WHOLE and conversions() == 1
    assert files(cache) == ["convert.lock", model.FOLDER]


def test_those_who_come_during_a_conversion_wait_for_it(cache, converter):
    conversions = converter("time.sleep(0.5)")
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(files(policy_folder()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [WHOLE] * 3 and conversions() == 1


@pytest.mark.parametrize("absent", [assets.SMOLLM2, assets.GGUF], ids=lambda package: package.module)
def test_an_absent_package_is_named_before_anything_is_written(absent, tmp_path, monkeypatch):
    def require(package):
        if package is absent:
            raise assets.MissingAssetError(package, "it")
        return tmp_path

    monkeypatch.setenv("FASTRLHF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(assets, "require", require)
    monkeypatch.setattr(model, "require", require)
    (tmp_path / model.GGUF_FILE).touch()
    with pytest.raises(assets.MissingAssetError) as error:
        policy_folder()
    assert absent.pip_command in str(error.value)
    assert not (tmp_path / "cache").exists()


@pytest.fixture(scope="module")
def policy(smollm2):
    """The real model, from the user's own cache, so that it is converted once for all runs of the tests."""
    return load_policy()


def perplexity(policy, tokenizer) -> float:
    nll, tokens = 0.0, 0
    for text in PROSE:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            nll += policy(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return math.exp(nll / tokens)


@pytest.mark.slow
def test_the_converted_model_reads_english(policy):
    # 21.9 on this prose after a right conversion; 59 with the rows of query and key in the GGUF's order.
    assert 20 < perplexity(*policy) < 24


@pytest.mark.slow
def test_it_is_a_float32_model_with_one_head_and_both_end_tokens(policy):
    smollm2, tokenizer = policy
    assert {parameter.dtype for parameter in smollm2.parameters()} == {torch.float32}
    assert smollm2.num_parameters() == 134_515_008 and not smollm2.training
    assert smollm2.lm_head.weight is smollm2.get_input_embeddings().weight
    assert smollm2.generation_config.eos_token_id == [0, 2]
    assert tokenizer.convert_ids_to_tokens([0, 2]) == ["<|endoftext|>", "<|im_end|>"]


@pytest.mark.slow
def test_padding_is_on_the_left_with_a_token_of_its_own(policy):
    smollm2, tokenizer = policy
    pad = tokenizer.pad_token_id
    assert pad == smollm2.config.pad_token_id == smollm2.generation_config.pad_token_id == 16
    assert pad not in (0, 2, tokenizer.eos_token_id, tokenizer.bos_token_id)
    batch = tokenizer(["I", "I saw it"], padding=True)
    assert batch.input_ids[0][:2] == [pad, pad] and batch.attention_mask[0] == [0, 0, 1]
    assert tokenizer.decode(batch.input_ids[0], skip_special_tokens=True) == "I"


@pytest.mark.slow
@pytest.mark.usefixtures("policy", "no_network")
def test_loading_the_converted_model_needs_no_network():
    load_policy()


@pytest.mark.slow
@pytest.mark.usefixtures("policy")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_holds_one_copy_of_the_weights():
    # VmHWM and not ru_maxrss, which starts at the peak of the process that started this one
    program = r"""
        import re
        from fastrlhf.demo.model import load_policy
        peak = lambda: int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1e3
        before = peak()
        model, _ = load_policy()
        for parameter in model.parameters():
            parameter.detach().add_(0)
        print(peak() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    # MB: 538 of weights and about 75 of tokenizer and code; two copies would be 1,076
    assert 500 < float(done.stdout) < 800
