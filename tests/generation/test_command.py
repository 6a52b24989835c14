"""`fastrlhf generate`."""

from __future__ import annotations

import io

import pytest

import fastrlhf
from fastrlhf.cli import main
from tests.support.toy import toy_model, toy_tokenizer

TEMPLATE = "{% for message in messages %}{{ 'w7 ' + message['content'] + ' w8' }}{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    toy_model().save_pretrained(path)
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    return str(path)


def expected(prompts, **options):
    options = {"temperature": 0.8, "max_new_tokens": 6, **options}
    return [
        each.text for each in fastrlhf.generate(toy_model(), prompts, tokenizer=toy_tokenizer(), **options)
    ]


def test_a_prompt(folder, capsys):
    assert main(["generate", folder, "--prompt", "w1 w2", "--max-new-tokens", "6", "--seed", "3"]) == 0
    assert capsys.readouterr().out == expected(["w1 w2"], seed=3)[0] + "\n"


def test_streaming_prints_the_same(folder, capsys):
    arguments = ["generate", folder, "--prompt", "w1 w2", "--max-new-tokens", "6", "--temperature", "0"]
    main([*arguments, "--stream"])
    streamed = capsys.readouterr().out
    main(arguments)
    assert capsys.readouterr().out == streamed == expected(["w1 w2"], temperature=0.0)[0] + "\n"


def test_lines_of_stdin_and_samples(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("w1 w2\n\nw3\n"))
    assert main(["generate", folder, "--max-new-tokens", "6", "--num-samples", "2", "--batch-size", "3"]) == 0
    texts = expected(["w1 w2", "w3"], num_samples=2)
    heads = ["w1 w2", "w1 w2", "w3", "w3"]
    assert capsys.readouterr().out == "".join(
        f"== {head}\n{text}\n" for head, text in zip(heads, texts, strict=True)
    )


def test_a_chat_and_other_options(folder, capsys):
    options = ["--chat", "--top-k", "3", "--repetition-penalty", "1.2", "--stop", "w5", "--int8"]
    main(["generate", folder, "--prompt", "w1", "--max-new-tokens", "6", *options])
    settings = {"top_k": 3, "repetition_penalty": 1.2, "stop_strings": ["w5"], "weights": "int8"}
    assert capsys.readouterr().out == expected(["w7 w1 w8"], **settings)[0] + "\n"


def test_what_is_wrong_is_said_in_a_line(folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(SystemExit, match="no prompt; give --prompt TEXT"):
        main(["generate", folder])
    with pytest.raises(SystemExit, match="nowhere cannot be loaded"):
        main(["generate", "./nowhere", "--prompt", "w1"])
    with pytest.raises(SystemExit, match=r"fastrlhf generate: top_p is 2.0, expected"):
        main(["generate", folder, "--prompt", "w1", "--top-p", "2"])
