"""The metrics file for a run of the transformers Trainer.

This is a file of its own because importing transformers takes seconds, which whoever only reads a metrics
file or draws a report need not wait for.
"""

import os

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fastrlhf.report.metrics import MetricsWriter


class JsonlCallback(TrainerCallback):
    """Writes everything that a transformers Trainer logs to a metrics file, on the main process only.

    When training starts, the lines after the step it starts from are dropped: they belong to the part of an
    interrupted run that is about to be repeated or, when training starts anew, to an earlier run.

    Args:
        path: the file, usually ``metrics.jsonl`` in the run's directory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.writer = MetricsWriter(path)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        if state.is_world_process_zero:
            self.writer.truncate_after(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict | None = None,
        **kwargs,
    ) -> None:
        if state.is_world_process_zero and logs:
            self.writer.write(state.global_step, logs)
