"""One contender of `fastrlhf bench generate`: `python -m fastrlhf.bench.side_generate JOB RESULT`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastrlhf.bench import models
from fastrlhf.bench.sides import serve
from fastrlhf.generation import batches

Generate = Callable[[list[list[int]], int], int]


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each repeated generation of `job["batch"]` responses, and how many tokens one has given.

    A short generation comes first and is not timed: caches fill, weights are packed.
    """
    model, batch, response = job["model"], job["batch"], models.SHAPES[job["model"]].response
    generate, tokenizer = CONTENDERS[job["contender"]](job)
    prompts = models.prompts(model, batch, tokenizer)
    generate(prompts, 2)
    seconds = []
    for _ in range(job["repeats"]):
        began = time.perf_counter()
        tokens = generate(prompts, response)
        seconds.append(time.perf_counter() - began)
        if tokens != batch * response:
            raise SystemExit(f"{job['contender']} gave {tokens} tokens, expected {batch} x {response}")
    return {"seconds": seconds, "tokens": tokens}


def ours(job: dict[str, Any]) -> tuple[Generate, Any]:
    """The generator of our trainer."""
    model, tokenizer = models.policy_and_tokenizer(job["model"], ending=False)
    weights = None if job["precision"] == "float32" else job["precision"]

    def generate(prompts: list[list[int]], length: int) -> int:
        ids = torch.tensor(prompts)
        return batches.generate(
            model,
            ids,
            torch.ones_like(ids, dtype=torch.bool),
            batch_size=len(prompts),
            max_new_tokens=length,
            pad_token_id=models.PAD,
            temperature=job["temperature"],
            weights=weights,
        ).tokens.numel()

    return generate, tokenizer


def transformers(job: dict[str, Any]) -> tuple[Generate, Any]:
    """`generate` of transformers, with its default cache and attention."""
    from transformers import GenerationConfig

    model, tokenizer = models.policy_and_tokenizer(job["model"], ending=False)
    model.generation_config.eos_token_id = None  # else responses end before their length
    temperature = job["temperature"]
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}

    def generate(prompts: list[list[int]], length: int) -> int:
        ids = torch.tensor(prompts)
        config = GenerationConfig(
            max_new_tokens=length,
            pad_token_id=models.PAD,
            **(sampling if temperature > 0 else {"do_sample": False}),
        )
        with torch.no_grad():
            output = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
            )
        return (output.shape[1] - ids.shape[1]) * len(prompts)

    return generate, tokenizer


def ctranslate2(job: dict[str, Any]) -> tuple[Generate, Any]:
    """CTranslate2's generator on the converted model, with all threads within one batch."""
    import ctranslate2 as engine
    from transformers import AutoTokenizer

    folder = Path(job["converted"])
    tokenizer = AutoTokenizer.from_pretrained(
        folder / "tokenizer", padding_side="left", local_files_only=True
    )
    generator = engine.Generator(
        str(folder / job["precision"]),
        device="cpu",
        compute_type=job["precision"],
        inter_threads=1,
        intra_threads=job["threads"],
    )
    temperature = job["temperature"]
    sampling = (
        {"sampling_topk": 0, "sampling_temperature": temperature} if temperature > 0 else {"sampling_topk": 1}
    )

    def generate(prompts: list[list[int]], length: int) -> int:
        results = generator.generate_batch(
            [tokenizer.convert_ids_to_tokens(prompt) for prompt in prompts],
            min_length=length,
            max_length=length,
            include_prompt_in_result=False,
            **sampling,
        )
        return sum(len(result.sequences_ids[0]) for result in results)

    return generate, tokenizer


CONTENDERS: dict[str, Callable[[dict[str, Any]], tuple[Generate, Any]]] = {
    "ours": ours,
    "transformers": transformers,
    "ctranslate2": ctranslate2,
}

if __name__ == "__main__":
    serve(measure)
