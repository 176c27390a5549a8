"""`LLM`: the shapes of its calls, over a scripted executor. Real models are in `test_llm_models.py`."""

from __future__ import annotations

import io
import itertools
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from quire.engine.engine import LLMEngine
from quire.engine.engine_core import EngineCore
from quire.engine.metrics import Counter, Gauge
from quire.engine.progress import Progress
from quire.errors import ConfigError, InvalidRequestError, NotSupportedError
from quire.llm import LLM
from quire.sampling_params import RequestOutputKind, SamplingParams
from tests.engine.fakes import FakeExecutor, Script, counts, greedy, make_config, says, write_byte_tokenizer

MakeLLM = Callable[..., LLM]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<bot>{% endif %}"


@pytest.fixture
def make_llm(tmp_path: Path) -> MakeLLM:
    """Makes an `LLM` over a script."""

    def make(script: Script = counts, *, executor: FakeExecutor | None = None, **options: object) -> LLM:
        config = make_config(write_byte_tokenizer(tmp_path), **options)
        return LLM.from_engine(LLMEngine(config, EngineCore(config, executor or FakeExecutor(script))))

    return make


def texts(outputs) -> list[str]:
    return [output.outputs[0].text for output in outputs]


def test_outputs_come_in_the_order_of_the_prompts(make_llm):
    def until_h(request, index):
        return 257 if index >= ord("h") - request.token_ids[0] else counts(request, index)

    outputs = make_llm(until_h).generate(["a", "g", "c", "f"], greedy(max_tokens=20))
    assert [output.prompt for output in outputs] == ["a", "g", "c", "f"]
    assert [len(output.outputs[0].token_ids) for output in outputs] == [8, 2, 6, 3]
    assert all(output.finished for output in outputs)


@pytest.mark.parametrize(
    "prompts",
    ["abc", ["abc"], list(b"abc"), [list(b"abc")], {"prompt": "abc"}, [{"prompt_token_ids": list(b"abc")}]],
)
def test_shapes_of_prompts(make_llm, prompts):
    (output,) = make_llm().generate(prompts, greedy())
    assert output.prompt_token_ids == list(b"abc")


def test_prompt_token_ids_by_name(make_llm):
    llm = make_llm()
    assert texts(llm.generate(prompt_token_ids=[[1], [2]], sampling_params=greedy(max_tokens=1))) == [
        "c",
        "d",
    ]
    assert texts(llm.generate(prompt_token_ids=[1, 2], sampling_params=greedy(max_tokens=1))) == ["d"]
    with pytest.raises(InvalidRequestError, match="either prompts or prompt_token_ids"):
        llm.generate("a", prompt_token_ids=[1])


def test_no_prompts_give_no_outputs(make_llm):
    assert make_llm().generate([], greedy()) == []


def test_parameters_per_prompt(make_llm):
    llm = make_llm()
    outputs = llm.generate(["a", "b"], [greedy(max_tokens=2), greedy(max_tokens=5)])
    assert [len(output.outputs[0].token_ids) for output in outputs] == [2, 5]
    with pytest.raises(InvalidRequestError, match="got 1 for 2 prompts"):
        llm.generate(["a", "b"], [greedy()])


def test_default_parameters(make_llm):
    llm = make_llm()
    assert llm.get_default_sampling_params() == SamplingParams()
    assert len(llm.generate("a")[0].outputs[0].token_ids) == 16


def test_parameters_are_not_changed(make_llm):
    params = greedy(stop=["x"], seed=3)
    before = params.clone()
    make_llm().generate(["a", "b"], params)
    assert params == before


def test_an_invalid_request_stops_the_whole_batch(make_llm):
    executor = FakeExecutor()
    llm = make_llm(executor=executor)
    with pytest.raises(InvalidRequestError):
        llm.generate(["a", "b", ""], greedy())
    assert executor.batches == [] and not llm.llm_engine.has_unfinished_requests()


@pytest.mark.parametrize("how", ["argument", "parameter"])
def test_stream_grows_to_the_final_text(make_llm, how):
    llm = make_llm(says("hello there"))
    params = greedy(max_tokens=20, stream=how == "parameter")
    seen = [output.outputs[0].text for output in llm.generate("x", params, stream=how == "argument")]
    assert seen[-1] == "hello there" and len(seen) > 5
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(seen))


def test_stream_of_deltas_joins(make_llm):
    llm = make_llm(says("hello there"))
    params = greedy(max_tokens=20, output_kind=RequestOutputKind.DELTA)
    joined = {"0": "", "1": ""}
    for output in llm.generate(["x", "y"], params, stream=True):
        joined[output.request_id] += output.outputs[0].text
    assert set(joined.values()) == {"hello there"}


def test_closing_a_stream_aborts_it(make_llm):
    llm = make_llm()
    stream = llm.generate(["x", "y"], greedy(max_tokens=50), stream=True)
    next(stream)
    stream.close()
    assert not llm.llm_engine.has_unfinished_requests()
    llm.llm_engine.core.scheduler.check_integrity()
    assert llm.reset_prefix_cache()


def test_two_streams_at_once(make_llm):
    llm = make_llm(says("hello"))
    first, second = (llm.generate("x", greedy(), stream=True) for _ in range(2))
    seen = [(next(first), next(second)) for _ in range(3)]
    assert [output.outputs[0].text for output in seen[-1]] == ["hel", "hel"]
    assert texts([list(first)[-1], list(second)[-1]]) == ["hello", "hello"]


def test_a_stream_never_read_holds_nothing(make_llm):
    llm = make_llm()
    llm.generate("x", greedy(), stream=True)
    assert not llm.llm_engine.has_unfinished_requests()


@pytest.fixture
def hears_ctrl_c():
    """Also where the tests run in the background, where shells have Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_aborts_between_steps(make_llm, hears_ctrl_c):
    executor = FakeExecutor()
    llm = make_llm(executor=executor)
    execute = executor.execute

    def interrupted(batch):
        if batch.step_id == 3:
            signal.raise_signal(signal.SIGINT)
        return execute(batch)

    executor.execute = interrupted
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b"], greedy(max_tokens=50))
    assert not llm.llm_engine.has_unfinished_requests()
    llm.llm_engine.core.scheduler.check_integrity()
    assert len(llm.generate("a", greedy())[0].outputs[0].token_ids) == 8


def test_chat_uses_the_template(make_llm):
    llm = make_llm(says("hi"))
    conversation = [{"role": "user", "content": "hello"}]
    (output,) = llm.chat(conversation, greedy(), chat_template=TEMPLATE)
    assert output.prompt == "<user>hello<bot>" and output.prompt_token_ids == list(b"<user>hello<bot>")
    assert output.outputs[0].text == "hi"
    two = llm.chat(
        [conversation, conversation], greedy(), chat_template=TEMPLATE, add_generation_prompt=False
    )
    assert [output.prompt for output in two] == ["<user>hello", "<user>hello"]


def test_chat_without_a_template_says_so(make_llm):
    with pytest.raises(InvalidRequestError, match="template"):
        make_llm().chat([{"role": "user", "content": "hello"}], greedy())


def test_priority_per_prompt(make_llm):
    executor = FakeExecutor()
    llm = make_llm(executor=executor, max_num_seqs=1, policy="priority")
    llm.generate(["a", "b", "c"], greedy(max_tokens=1), priority=[2, 0, 1])
    order = [request.request_id for batch in executor.batches for request in batch.new_requests]
    assert order == ["1", "2", "0"]


def test_metrics(make_llm):
    llm = make_llm()
    llm.generate(["a", "b"], greedy(max_tokens=4))
    metrics = {metric.name: metric for metric in llm.get_metrics()}
    assert metrics["quire:generation_tokens_total"].value == 8
    assert isinstance(metrics["quire:requests_total"], Counter) and isinstance(
        metrics["quire:num_running"], Gauge
    )


def test_shutdown_by_context(make_llm):
    executor = FakeExecutor()
    with make_llm(executor=executor) as llm:
        llm.generate("a", greedy())
    assert executor.is_shut_down


def test_unknown_options_name_the_nearest():
    with pytest.raises(
        ConfigError, match=r"unknown engine argument max_model_length; did you mean max_model_len"
    ):
        LLM("nowhere", max_model_length=3)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal(make_llm):
    (output,) = make_llm().generate("abc", greedy(max_tokens=4))
    screen, pipe = Terminal(), io.StringIO()
    for stream in (screen, pipe):
        with Progress(1, stream=stream) as progress:
            progress.add(output)
    assert "1/1 requests" in screen.getvalue() and "output" in screen.getvalue()
    assert pipe.getvalue() == ""


def test_adapters_are_refused_until_they_are_built(make_llm):
    with pytest.raises(NotSupportedError, match="not supported yet: lora_request"):
        make_llm().generate("a", lora_request=object())
