"""The callback writes what a real transformers Trainer logs, once, also when the run is resumed."""

import torch
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from fastrlhf.report.callback import JsonlCallback
from fastrlhf.report.metrics import MetricsWriter, read_metrics


class Line(torch.nn.Module):
    """y = w x, as small as a model with a loss can be."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, labels):
        return {"loss": ((self.weight * x - labels) ** 2).mean()}


def trainer(tmp_path, steps):
    args = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=steps,
        logging_steps=1,
        save_steps=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    data = [{"x": torch.tensor(float(i)), "labels": torch.tensor(2.0 * i)} for i in range(8)]
    return Trainer(Line(), args, train_dataset=data, callbacks=[JsonlCallback(tmp_path / "metrics.jsonl")])


def losses(tmp_path):
    return [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row]


def test_a_trainer_writes_each_step_once_and_goes_on_where_it_stopped(tmp_path):
    trainer(tmp_path, 3).train()
    assert losses(tmp_path) == [1, 2, 3]
    # Step 3 was logged but not saved: the resumed run repeats it.
    trainer(tmp_path, 4).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert losses(tmp_path) == [1, 2, 3, 4]
    assert "train_runtime" in read_metrics(tmp_path / "metrics.jsonl")[-1]


def test_only_the_main_process_touches_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsWriter(path).write(5, {})
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    other = TrainerState(is_world_process_zero=False, global_step=1)
    callback = JsonlCallback(path)
    callback.on_train_begin(args, other, TrainerControl())
    callback.on_log(args, other, TrainerControl(), logs={"loss": 1.0})
    assert read_metrics(path) == [{"step": 5}]
