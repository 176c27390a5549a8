"""`quire bench throughput` and `latency`: an engine in this process, without HTTP."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from quire.bench.report import RequestTimes, add_output_arguments, distribution, publish, summarize
from quire.bench.workloads import (
    BenchRequest,
    add_workload_arguments,
    describe_workload,
    fit_to_context,
    make_workload,
)
from quire.config.engine_args import EngineArgs
from quire.errors import ConfigError
from quire.sampling_params import RequestOutputKind, SamplingParams

if TYPE_CHECKING:
    from quire.llm import LLM


def add_throughput_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `quire bench throughput`."""
    _add_common(parser)
    parser.add_argument(
        "--num-warmups", type=int, default=1, metavar="N", help="requests before the clock starts"
    )


def add_latency_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `quire bench latency`."""
    _add_common(parser)
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="requests of one batch")
    parser.add_argument("--num-iters", type=int, default=10, metavar="N", help="batches to measure")
    parser.add_argument(
        "--num-iters-warmup", type=int, default=2, metavar="N", help="batches before the clock starts"
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model_name", metavar="MODEL", nargs="?", help="folder or hub id; none: the small built-in model"
    )
    add_workload_arguments(parser)
    add_output_arguments(parser)
    _add_engine_arguments(parser)


def _add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """The engine's flags, but for --seed, which is the workload's and the engine's at once."""
    scratch = argparse.ArgumentParser(conflict_handler="resolve")
    EngineArgs.add_cli_args(scratch)
    group = parser.add_argument_group("engine")
    for action in scratch._actions:
        if action.dest not in ("help", "seed"):
            group._add_action(action)


def run_throughput(args: argparse.Namespace) -> int:
    """All requests at once; how many tokens per second."""
    requests = make_workload(args)
    with _load(args) as llm:
        requests = _fit(llm, requests)
        _generate(llm, requests[: args.num_warmups])
        start = time.perf_counter()
        times = _generate(llm, requests)
        duration_s = time.perf_counter() - start
        result = {"benchmark": "throughput", "model": _name(llm), "workload": describe_workload(args)}
    publish(result | summarize(times, duration_s), args)
    return 0


def run_latency(args: argparse.Namespace) -> int:
    """The same batch again and again; how long one takes."""
    if min(args.batch_size, args.num_iters) < 1:
        raise ConfigError("batch_size and num_iters must be at least 1")
    args.num_prompts = args.batch_size
    requests = make_workload(args)
    with _load(args) as llm:
        requests = _fit(llm, requests)
        for _ in range(args.num_iters_warmup):
            _generate(llm, requests)
        seconds = [_time_batch(llm, requests) for _ in range(args.num_iters)]
        result: dict[str, Any] = {
            "benchmark": "latency",
            "model": _name(llm),
            "workload": describe_workload(args),
        }
    result |= {
        "batch_size": args.batch_size,
        "num_iters": args.num_iters,
        "avg_latency": sum(seconds) / len(seconds),
    }
    publish(result | distribution("latency", seconds), args)
    return 0


def _time_batch(llm: LLM, requests: list[BenchRequest]) -> float:
    llm.llm_engine.reset_prefix_cache()
    start = time.perf_counter()
    _generate(llm, requests)
    return time.perf_counter() - start


def _load(args: argparse.Namespace) -> LLM:
    from quire.llm import LLM

    if args.model_name is not None:
        args.model = args.model_name
    args.disable_log_stats = True
    return LLM.from_engine_args(EngineArgs.from_cli_args(args))


def _name(llm: LLM) -> str:
    return llm.llm_engine.config.model.served_model_names[0]


def _fit(llm: LLM, requests: list[BenchRequest]) -> list[BenchRequest]:
    return fit_to_context(requests, llm.llm_engine.max_model_len)


def _generate(llm: LLM, requests: list[BenchRequest]) -> list[RequestTimes]:
    if not requests:
        return []
    prompts = [{"prompt_token_ids": request.prompt_token_ids} for request in requests]
    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=request.output_len,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        for request in requests
    ]
    return [_times(output) for output in llm.generate(prompts, params, use_tqdm=False)]


def _times(output: Any) -> RequestTimes:
    metrics = output.metrics
    return RequestTimes(
        num_prompt_tokens=len(output.prompt_token_ids),
        num_output_tokens=sum(len(choice.token_ids) for choice in output.outputs),
        ttft_s=metrics.time_to_first_token_s if metrics else None,
        e2e_s=(metrics.time_in_engine_s or 0.0) if metrics else 0.0,
        error=output.error,
    )
