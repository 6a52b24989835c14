"""`fastrlhf chat`: through a pipe, in a terminal, and what it says."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import fastrlhf
from fastrlhf.cli import main
from tests.support.sft import TURNS
from tests.support.tiny import tiny_llama, tiny_tokenizer

SETTINGS = {"temperature": 0.0, "max_new_tokens": 6}
FLAGS = ["--temperature", "0", "--max-new-tokens", "6"]


def talker(**options):
    """A model to which all of what was said before matters."""
    return tiny_llama(initializer_range=0.5, **options)


def saved(folder, model, template=TURNS, **options):
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer(**options)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"), talker())


def answers(*questions, model=None):
    """What the model answers to these in one conversation."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TURNS
    messages, said = [], []
    for question in questions:
        messages.append({"role": "user", "content": question})
        tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        [completion] = fastrlhf.generate(model or talker(), [tokens], tokenizer=tokenizer, **SETTINGS)
        messages.append({"role": "assistant", "content": completion.text})
        said.append(completion.text)
    return said


def chat(monkeypatch, capsys, *words, lines):
    """Status, answers and notices."""
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    status = main(["chat", *words])
    out, err = capsys.readouterr()
    notices = [line for line in err.splitlines() if line.startswith("fastrlhf chat: ")]
    return status, out.splitlines(), notices


def test_a_conversation_through_a_pipe(folder):
    done = subprocess.run(
        [sys.executable, "-m", "fastrlhf.cli", "chat", folder, *FLAGS],
        input="t3 t4\n\n  t5  \n/reset\nt5\n/quit\nt6\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    first, second = answers("t3 t4", "t5")
    assert done.stdout.splitlines() == [first, second, *answers("t5")]
    assert second != answers("t5")[0], "what was said before counts"


def test_the_end_of_the_pipe_ends_the_chat(folder, monkeypatch, capsys):
    assert chat(monkeypatch, capsys, folder, *FLAGS, lines=["t3"]) == (0, answers("t3"), [])


def test_an_adapters_folder(folder, tmp_path, monkeypatch, capsys):
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder),
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    adapted.save_pretrained(tmp_path)
    said = answers("t3", "t4", model=adapted)
    assert chat(monkeypatch, capsys, str(tmp_path), *FLAGS, lines=["t3", "t4"]) == (0, said, [])
    assert said != answers("t3", "t4")


def test_a_model_without_a_template_goes_on_with_the_text(tmp_path, monkeypatch, capsys):
    plain = saved(tmp_path, talker(), template=None)
    [completion] = fastrlhf.generate(talker(), "t3 t4", tokenizer=tiny_tokenizer(), **SETTINGS)
    assert chat(monkeypatch, capsys, plain, *FLAGS, lines=["t3 t4"]) == (0, [completion.text], [])


def test_each_turn_draws_anew_and_the_seed_decides(folder, monkeypatch, capsys):
    sampled = [folder, "--temperature", "1", "--max-new-tokens", "12"]
    lines = ["t3", "/reset", "t3"]
    _, first, _ = chat(monkeypatch, capsys, *sampled, lines=lines)
    assert first[0] != first[1]
    assert chat(monkeypatch, capsys, *sampled, lines=lines)[1] == first
    assert chat(monkeypatch, capsys, *sampled, "--seed", "5", lines=lines)[1] != first


def test_notices(folder, monkeypatch, capsys):
    lines = ["/rset", "/xyz", " ".join(["t3"] * 70), *(["t3 t4 t5 t6 t7 t8 t9"] * 6)]
    status, said, notices = chat(monkeypatch, capsys, folder, *FLAGS, lines=lines)
    assert status == 0 and len(said) == 6
    assert notices[0].endswith("/rset is no command; did you mean /reset?")
    assert notices[1].endswith("/xyz is no command; /reset, /quit")
    assert "this takes 73 tokens, and 58 is the most" in notices[2]
    assert notices[3].endswith("the conversation has become too long: its first turns are forgotten")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["EMPTY"], "empty cannot be loaded"),
        (
            ["FOLDER", "--max-new-tokens", "64"],
            "--max-new-tokens 64 leaves no room for a prompt in the model's context",
        ),
    ],
)
def test_what_cannot_be_meant_ends_with_a_sentence(folder, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    folders = {"FOLDER": folder, "EMPTY": str(tmp_path / "empty")}
    with pytest.raises(SystemExit) as caught:
        main(["chat", *(folders.get(word, word) for word in words)])
    assert message in str(caught.value)


def test_a_setting_that_cannot_be_meant_is_said(folder, monkeypatch, capsys):
    _, said, notices = chat(monkeypatch, capsys, folder, *FLAGS, "--top-p", "3", lines=["t3"])
    assert said == [] and notices == ["fastrlhf chat: top_p is 3.0, expected a number in (0, 1]"]


def test_in_a_terminal_ctrl_c_stops_an_answer_and_not_the_chat(tmp_path):
    endless = tiny_llama(max_position_embeddings=1_000_000, eos_token_id=None)
    folder = saved(tmp_path, endless, eos_token=None)
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "fastrlhf.cli", "chat", folder, "--max-new-tokens", "900000"]
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    try:
        seen = _read(ours, "> ")
        assert "Ctrl-C stops an answer, /reset begins anew, /quit leaves" in seen
        for _ in range(2):
            os.write(ours, b"t3\n")
            _read(ours, " t")
            process.send_signal(signal.SIGINT)  # as a terminal does at Ctrl-C
            _read(ours, "\n> ")
        os.write(ours, b"/quit\n")
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _read(terminal, until):
    """What the terminal shows until this text."""
    seen, end = "", time.monotonic() + 60
    while until not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"{until!r} did not come: {seen[-500:]!r}"
        seen += os.read(terminal, 65536).decode(errors="replace").replace("\r\n", "\n")
    return seen
