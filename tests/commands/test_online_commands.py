"""`fastrlhf ppo|grpo|rloo` and their `fastrlhf init`, from the command line's words to the files beside the model."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fastrlhf import GRPOConfig, PPOConfig, RLOOConfig
from fastrlhf.cli import main
from fastrlhf.commands.stages import STAGES
from fastrlhf.ppo.state import CRITIC
from fastrlhf.trainers.checkpoint import checkpoints
from tests.support.sft import TURNS
from tests.support.tiny import tiny_llama, tiny_llama_classifier, tiny_tokenizer

CONFIGS = {"ppo": PPOConfig, "grpo": GRPOConfig, "rloo": RLOOConfig}
OWN = {
    "ppo": {"response_length": 5, "stop_token": "eos", "total_episodes": 16, "num_sample_generations": 0},
    "grpo": {"max_completion_length": 5, "num_generations": 2, "max_steps": 4},
    "rloo": {"max_completion_length": 5, "num_generations": 2, "max_steps": 4},
}
REWARDS = """
def small(prompts, completions, **columns):
    return [sum(word[1:].isdigit() and int(word[1:]) < 16 for word in text.split()) / 5 for text in completions]


def of_column(prompts, completions, number, **columns):
    return [float(each) for each in number]


def broken(prompts, completions, **columns):
    raise OSError("the judge is away")
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a policy and of a reward model, each with a tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TURNS
    for name, model in (("policy", tiny_llama()), ("reward", tiny_llama_classifier())):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def config(request, tmp_path, models):
    """A file that trains for four steps."""
    kind = request.param
    rows = [{"prompt": f"t{number} t{number + 1}", "number": number % 2} for number in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "judge.py").write_text(REWARDS)
    options = {
        "model": str(models / "policy"),
        "rewards": f"{tmp_path}/judge.py:small",
        "train_dataset": str(tmp_path / "rows.jsonl"),
        "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": 4,
        "learning_rate": "1e-3",
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
        **OWN[kind],
    }
    path = tmp_path / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(options))
    return path


every_kind = pytest.mark.parametrize("config", list(CONFIGS), indirect=True)
ppo, grpo = (pytest.mark.parametrize("config", [kind], indirect=True) for kind in ("ppo", "grpo"))


def train(config, *flags):
    return main([config.stem, str(config), *flags])


def measured(folder, name):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def head(folder):
    return AutoModelForCausalLM.from_pretrained(folder).lm_head.weight


@every_kind
def test_a_run_leaves_the_model_its_metrics_and_what_made_them(config, tmp_path):
    assert train(config, "--weight-decay=0.1") == 0
    run = tmp_path / "run"
    assert not torch.equal(head(run), tiny_llama().lm_head.weight)
    assert len(measured(run, "objective/scores" if config.stem == "ppo" else "rewards/small/mean")) == 4
    record = yaml.safe_load((run / "run.yaml").read_text())
    made_of = record["configuration"]
    assert (made_of["weight_decay"], made_of["learning_rate"], made_of["save_steps"]) == (0.1, 1e-3, 2)
    assert record["options"]["rewards"].endswith("judge.py:small")
    assert {"torch", "transformers"} < record["versions"].keys() and "commit" in record


@every_kind
def test_resume_auto_begins_and_goes_on(config, tmp_path):
    run, measure = tmp_path / "run", "objective/scores" if config.stem == "ppo" else "reward"
    assert train(config, "--resume", "auto") == 0
    whole, first = head(run), measured(run, measure)
    (run / "checkpoint-4").rename(tmp_path / "elsewhere")
    assert [step for step, _ in checkpoints(run)] == [2]
    assert train(config, "--resume", "auto") == 0
    assert torch.equal(whole, head(run))
    assert measured(run, measure) == first and len(first) == 4


@every_kind
def test_a_reward_model_beside_a_function(config, tmp_path, models):
    rewards = f"[{models / 'reward'}, {tmp_path}/judge.py:small]"
    assert train(config, "--rewards", rewards, "--reward_weights", "[1.0, 0.0]") == 0
    both = head(tmp_path / "run")
    assert train(config, "--rewards", str(models / "reward")) == 0
    assert torch.equal(both, head(tmp_path / "run")), "a weight of 0 counts for nothing"
    assert train(config) == 0
    assert not torch.equal(both, head(tmp_path / "run"))


@every_kind
def test_an_adapter_that_the_next_run_starts_from(config, tmp_path, models):
    peft = ["--peft", "{r: 2, target_modules: all-linear}"]
    assert train(config, *peft, "--tokenizer", str(models / "policy")) == 0
    first = tmp_path / "run"
    adapted = PeftModel.from_pretrained(tiny_llama(), first)
    weights = [weight for name, weight in adapted.named_parameters() if "lora_B" in name]
    assert weights and all(weight.any() for weight in weights)
    merged = adapted.merge_and_unload().model.layers[0].mlp.up_proj.weight
    second = tmp_path / "second"
    for rate in (0.0, 1e-3):
        flags = ["--model", str(first), "--output_dir", str(second), "--learning_rate", str(rate)]
        assert train(config, *flags) == 0
        trained = AutoModelForCausalLM.from_pretrained(second)
        stayed = torch.equal(trained.model.layers[0].mlp.up_proj.weight, merged)
        assert stayed == (rate == 0.0)


@every_kind
def test_conversations(config, tmp_path):
    rows = [{"prompt": [{"role": "user", "content": "t5 t6"}]} for _ in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    seen = tmp_path / "seen.json"
    (tmp_path / "judge.py").write_text(
        "import json, pathlib\n"
        "def keeps(prompts, completions, **columns):\n"
        f"    pathlib.Path({str(seen)!r}).write_text(json.dumps(prompts[0]))\n"
        "    return [0.0] * len(prompts)\n"
    )
    assert train(config, "--rewards", f"{tmp_path}/judge.py:keeps") == 0
    expected = "t0 t5 t6 t2 t1" if config.stem == "ppo" else rows[0]["prompt"]
    assert json.loads(seen.read_text()) == expected


@grpo
def test_columns_go_to_the_functions(config, tmp_path):
    assert train(config, "--rewards", f"{tmp_path}/judge.py:of_column", "--max_steps", "6") == 0
    means = measured(tmp_path / "run", "rewards/of_column/mean")
    assert sum(means) == 6 * 0.5, "an epoch has as many ones as zeros"


@ppo
def test_a_critic_a_reference_and_text(config, tmp_path, models):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(json.dumps({"text": "t1 t2 t3 t4"}) for _ in range(8)))
    flags = ["--value_model", str(models / "reward"), "--ref_model", str(models / "policy")]
    flags += ["--pretrain_dataset", str(texts), "--ptx_coef", "0.5"]
    flags += ["--eval_dataset", str(tmp_path / "rows.jsonl"), "--num_sample_generations", "1"]
    assert train(config, *flags) == 0
    run = tmp_path / "run"
    assert len(measured(run, "loss/value_avg")) == 4
    critic = load_file(run / CRITIC)
    assert critic.keys() == load_file(models / "reward" / "model.safetensors").keys(), "a whole critic"


@every_kind
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--reward", "x"], "'reward' is no option: did you mean 'rewards'?"),
        (["--temprature", "2"], "'temprature' is no option: did you mean 'temperature'?"),
        (["--learning_rate", "fast"], "learning_rate is 'fast', expected a number"),
        (["--temperature", "0"], "temperature is 0"),
        (["--model", "null"], "model is not set: the policy: a folder"),
        (["--rewards", "[]"], "rewards is not set: a reward model"),
        (["--rewards", "nowhere.py:f"], "rewards: nowhere.py:f: nowhere.py does not exist"),
        (["--train_dataset", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--resume", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_what_cannot_be_meant_ends_with_a_sentence(config, flags, message):
    with pytest.raises(SystemExit) as caught:
        train(config, *flags)
    assert f"fastrlhf {config.stem}: " in str(caught.value) and message in str(caught.value)


@ppo
def test_paths_for_scripts_are_not_taken_in_vain(config):
    with pytest.raises(SystemExit, match="reward_model_path is for scripts of your own: set rewards"):
        train(config, "--reward_model_path", "runs/reward")


@every_kind
def test_a_bad_row_is_named_by_file_line_and_field(config, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text() + '\n{"prompt": 7, "number": 1}\n')
    with pytest.raises(SystemExit) as caught:
        train(config)
    assert f"{rows}, line 13, field 'prompt': is 7 (int), expected a text" in str(caught.value)
    with pytest.warns(UserWarning, match="1 of 13 rows"):
        assert train(config, "--on_bad_rows", "skip") == 0


@every_kind
def test_a_reward_that_is_away_ends_with_a_sentence_and_a_checkpoint(config, tmp_path):
    with pytest.raises(SystemExit) as caught:
        train(config, "--rewards", f"{tmp_path}/judge.py:broken")
    assert "the judge is away, twice" in str(caught.value)
    assert [step for step, _ in checkpoints(tmp_path / "run")] == [0]


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_the_example_is_a_configuration(kind):
    stage = STAGES[kind]
    args = {name: value for name, value in stage.example.items() if name not in stage.options}
    CONFIGS[kind](**args, bf16=False, use_cpu=True)
