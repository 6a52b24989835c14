from __future__ import annotations

import csv

import pytest

from fastrlhf import cli
from fastrlhf.bench import peer_commands, ppo_vs_trl
from fastrlhf.bench.peers import CTRANSLATE2, TRL, PeerError, install
from fastrlhf.bench.sides import SideError


@pytest.fixture
def no_peers(monkeypatch):
    def refuse(peer):
        raise PeerError(f"{peer.requirement} cannot be installed: no registry")

    monkeypatch.setattr(peer_commands, "install", refuse)


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def bench(*arguments):
    return cli.main(["bench", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["ppo-vs-trl", "--steps", "0"], "--steps takes a whole number of at least 1"),
        (["ppo-vs-trl", "--rounds", "0"], "--rounds takes a whole number of at least 1"),
        (["ppo-vs-trl", "--threads", "-1"], "--threads takes a whole number of at least 1"),
        (["ppo-vs-trl", "--window", "0"], "--window takes a whole number of at least 1"),
        (["ppo-vs-trl", "--cap-minutes", "0"], "--cap-minutes takes a number above 0"),
        (["ppo-vs-trl", "--mode", "time-to-reward", "--model", "17m"], "the demo's task, which is smollm2's"),
        (["generate", "--batch", "8", "0"], "--batch takes whole numbers of at least 1"),
        (["generate", "--temperature", "-0.1"], "--temperature takes a number of at least 0"),
        (["generate", "--temperature", "nan"], "--temperature takes a number of at least 0"),
        (["generate", "--repeats", "0"], "--repeats takes a whole number of at least 1"),
    ],
)
def test_bad_numbers_are_named(arguments, problem):
    with pytest.raises(SystemExit, match=problem):
        bench(*arguments)


@pytest.mark.parametrize(
    "arguments", [["--mode", "fast"], ["--model", "gpt5"], ["--steps", "two"], ["--no-such"]]
)
def test_bad_words_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as refused:
        bench("ppo-vs-trl", *arguments)
    assert refused.value.code == 2 and arguments[0] in capsys.readouterr().err


def test_without_the_peer_a_real_run_ends_before_it_begins(no_peers):
    with pytest.raises(SystemExit, match=r"trl==1\.12\.0 cannot be installed: no registry"):
        bench("ppo-vs-trl", "--model", "17m")
    with pytest.raises(SystemExit, match=r"ctranslate2==.* cannot be installed: no registry"):
        bench("generate", "--model", "17m")


def test_a_side_that_fails_ends_the_command_with_its_words(no_peers, monkeypatch):
    def fail(*arguments, **options):
        raise SideError("side failed: the moon is full")

    monkeypatch.setattr(ppo_vs_trl, "run_side", fail)
    with pytest.raises(SystemExit, match="the moon is full"):
        bench("ppo-vs-trl", "--quick")


def test_quick_without_trl_runs_ours_from_end_to_end(no_peers, tmp_path, capsys):
    assert bench("ppo-vs-trl", "--quick", "--mode", "eos", "--threads", 1, "--out", tmp_path) == 0
    assert "only ours runs" in capsys.readouterr().out
    (row,) = read(tmp_path / "ppo_vs_trl.csv")
    assert (row["mode"], row["model"], row["contender"], row["peer"]) == ("eos", "tiny", "ours", "")
    assert float(row["step_s_p50"]) > float(row["update_s"]) > 0
    assert 1 <= float(row["response_tokens"]) <= 6
    assert (tmp_path / "ppo_vs_trl.png").exists()


def test_results_go_into_a_checkout_and_those_of_a_quick_run_never(tmp_path, monkeypatch):
    assert peer_commands.results_folder(quick=False) == peer_commands.BENCHMARKS / "results"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert peer_commands.results_folder(quick=True).parent == tmp_path
    monkeypatch.setattr(peer_commands, "BENCHMARKS", tmp_path / "not-there")
    monkeypatch.chdir(tmp_path)
    assert peer_commands.results_folder(quick=False) == tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "lora", "time-to-reward"])
def test_quick_without_trl_in_the_other_modes(mode, no_peers, tmp_path):
    assert bench("ppo-vs-trl", "--quick", "--mode", mode, "--threads", 1, "--out", tmp_path) == 0
    (path,) = tmp_path.glob("*.csv")
    assert [row["contender"] for row in read(path)] == ["ours"]


@pytest.mark.slow
def test_quick_generation_without_ctranslate2(no_peers, tmp_path, capsys):
    assert bench("generate", "--quick", "--precision", "float32", "--threads", 1, "--out", tmp_path) == 0
    rows = read(tmp_path / "generate.csv")
    assert [row["contender"] for row in rows] == ["ours", "transformers"]
    assert all(float(row["tokens_per_second"]) > 0 for row in rows)


def installed(peer):
    try:
        return install(peer)
    except PeerError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "eos", "lora"])
def test_quick_beside_trl(mode, tmp_path):
    installed(TRL)
    assert bench("ppo-vs-trl", "--quick", "--mode", mode, "--threads", 1, "--out", tmp_path) == 0
    ours, trl = read(tmp_path / "ppo_vs_trl.csv")
    assert (ours["contender"], trl["contender"]) == ("ours", ppo_vs_trl.PEERS[mode])
    for phase in ppo_vs_trl.PHASES:
        assert float(trl[f"{phase}_s"]) > 0, phase
    phases = sum(float(trl[f"{phase}_s"]) for phase in ppo_vs_trl.PHASES)
    assert phases <= float(trl["step_s_p50"]) * 1.001
    assert 1 <= float(trl["response_tokens"]) <= 6


@pytest.mark.slow
def test_quick_time_to_reward_beside_trl(tmp_path):
    installed(TRL)
    assert bench("ppo-vs-trl", "--quick", "--mode", "time-to-reward", "--threads", 1, "--out", tmp_path) == 0
    rows = read(tmp_path / "time_to_reward.csv")
    assert [row["contender"] for row in rows] == ["ours", "trl", "trl+peft"]
    assert all(row["reached"] == "1" and float(row["ours_faster"]) > 0 for row in rows)


@pytest.mark.slow
def test_quick_generation_beside_ctranslate2(tmp_path, monkeypatch):
    installed(CTRANSLATE2)
    monkeypatch.setenv("FASTRLHF_PEERS", str(installed(CTRANSLATE2).parent))
    monkeypatch.setenv("FASTRLHF_CACHE", str(tmp_path / "cache"))
    assert bench("generate", "--quick", "--threads", 1, "--out", tmp_path) == 0
    rows = read(tmp_path / "generate.csv")
    assert {row["precision"] for row in rows if row["contender"] == "ctranslate2"} == {"float32", "int8"}
