"""The page in a headless Chromium: the chat with folio, keys and stopping with a fake model, and views that say what the
engine says.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quire.server.args import ServerArgs
from tests.e2e.page_server import PageServer, launched, serving, until
from tests.e2e.server_process import ServerProcess
from tests.engine.fakes import FakeExecutor, greedy, says, write_byte_tokenizer

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens a page, 1280 pixels wide unless told otherwise; a script's error or a broken policy fails the test."""
    contexts, errors = [], []

    def note(message: Any) -> None:
        if message.type == "error" and "401" not in message.text:
            errors.append(message.text)

    def open_page(url: str, **options: Any) -> Any:
        options = {"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce", **options}
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", note)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_tokenizer(tmp_path_factory.mktemp("bytes"))


def ask(page: Any, text: str) -> Any:
    """Type a message and send it; returns the turn of the answer."""
    num_answers = page.locator(".turn.answer").count()
    page.locator("#prompt").fill(text)
    page.keyboard.press("Enter")
    turn = page.locator(".turn.answer").nth(num_answers)
    turn.wait_for()
    return turn


def see_token(turn: Any, index: int) -> None:
    """Wait for a token of an answer; fails at once, with the text, if the answer fails instead."""
    turn.locator(".failure").or_(turn.locator(".token").nth(index)).first.wait_for()
    assert turn.locator(".failure").all_inner_texts() == []


def finish_of(turn: Any) -> str:
    turn.page.locator(".turn.answer[data-finish]").nth(turn.page.locator(".turn.answer").count() - 1).wait_for()
    return str(turn.get_attribute("data-finish"))


# -- the chat --------------------------------------------------------------------------------------------------


def test_folio_answers(open_page: Open, folio_server: ServerProcess) -> None:
    page = open_page(folio_server.url)
    page.locator("#model[disabled]").wait_for()
    page.locator("#temperature").fill("0")
    turn = ask(page, "What is the capital of France?")
    assert finish_of(turn) == "stop"
    assert turn.locator(".said-text").inner_text() == "The capital of France is Paris."
    measure = turn.locator(".measure").inner_text()
    assert re.fullmatch(r"\d+ tokens · [\d.,]+ tokens/s · first after [\d.,]+ ms · finished", measure)

    turn.locator(".token", has_text="Paris").hover()
    taken = page.locator("#card tr.taken").inner_text()
    assert "Paris" in taken and float(re.findall(r"([\d.]+) %", taken)[0]) > 50
    assert page.locator("#card tr").count() >= 5

    second = ask(page, "What is the capital of Japan?")
    assert finish_of(second) == "stop" and "Tokyo" in second.locator(".said-text").inner_text()
    assert page.locator(".turn").count() == 4

    page.locator("[value=completion]").check()
    page.locator("#max_tokens").fill("2")
    third = ask(page, "The capital of Italy is")
    assert finish_of(third) == "length" and third.locator(".given").inner_text() == "The capital of Italy is"
    assert re.match(r"2 tokens · .* · stopped at max tokens", third.locator(".measure").inner_text())
    page.locator("#clear").click()
    assert page.locator(".turn").count() == 0


def test_turns_and_parameters_reach_the_model(open_page: Open, folder: Path) -> None:
    with serving(folder, FakeExecutor(says("good day"), num_blocks=200)) as server:
        page = open_page(server.url)
        page.locator("#system").fill("be kind")
        for field, value in (("temperature", "0.5"), ("top_p", "0.9"), ("top_k", "7"), ("max_tokens", "20"), ("seed", "3")):
            page.locator(f"#{field}").fill(value)
        for text in ("one", "two"):
            assert finish_of(ask(page, text)) == "stop"
        first, second = (batch.new_requests[0] for batch in server.executor.batches if batch.new_requests)
    assert bytes(first.token_ids).decode() == "be kind\none\n"
    assert bytes(second.token_ids).decode() == "be kind\none\ngood day\ntwo\n"
    params = second.params
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens, second.seed) == (0.5, 0.9, 7, 20, 3)


def test_a_piece_of_several_tokens_is_divided(open_page: Open, folder: Path) -> None:
    """A reader that is slow gets several steps at once, the end of the text among them."""
    with serving(folder, FakeExecutor()) as server:
        page = open_page(server.url)
        divide = """async ([piece, texts]) => (await import('/playground/tokens.js'))
          .divide(piece, texts.map((text, logprob) => ({ text, logprob }))).map(({ text, logprob }) => [text, logprob])"""
        for piece, texts, shown in (
            ("ello", ["e", "ll", "o", "</s>"], [["e", 0], ["ll", 1], ["o", 2]]),
            ("é!", ["\ufffd", "\ufffd", "!"], [["é", 0], ["!", 2]]),
            ("a b", ["a", " b", ""], [["a", 0], [" b", 1]]),
            ("é", ["\ufffd"], [["é", 0]]),
            ("ab", ["a"], [["a", 0], ["b", 0]]),
        ):
            assert page.evaluate(divide, [piece, texts]) == shown


def test_stop(open_page: Open, folder: Path) -> None:
    with serving(folder, FakeExecutor(says("la " * 150), step_s=0.02, num_blocks=200)) as server:
        page = open_page(server.url)
        turn = ask(page, "sing")
        see_token(turn, 3)
        page.locator("#send", has_text="Stop").click()
        assert finish_of(turn) == "stopped"
        until(lambda: not server.core.scheduler.has_unfinished, page)
        assert page.locator("#send").inner_text() == "Send"
        text = turn.locator(".said-text").inner_text()
        assert text.startswith("la la") and len(text) < 400
        again = ask(page, "sing")
        see_token(again, 1)
        page.keyboard.press("Escape")
        assert finish_of(again) == "stopped"


def test_what_a_model_says_stays_text(open_page: Open, folder: Path) -> None:
    attack = "<img src=x onerror=\"window.hacked=1\"><script>window.hacked=1</script><b>&amp;"
    with serving(folder, FakeExecutor(says(attack), num_blocks=200)) as server:
        page = open_page(server.url)
        turn = ask(page, attack)
        assert finish_of(turn) == "stop"
        assert page.locator(".said-text").all_inner_texts() == [attack, attack]
        turn.locator(".token").first.hover()
        page.wait_for_timeout(50)
        assert page.locator("#turns :is(img, script, b), #card :is(img, script, b)").count() == 0
        assert page.evaluate("window.hacked") is None


def test_tokens_and_names_stay_text(open_page: Open, folder: Path) -> None:
    """The same with whole tags in a token, in what it might have been, in the model's name and in an error."""
    attack = '<img src=x onerror="window.hacked=1">'
    other = {"token": attack + "2", "logprob": -1.0}
    token = {"token": attack, "logprob": -0.5, "top_logprobs": [other]}
    choice = {"delta": {"content": attack}, "logprobs": {"content": [token]}}
    frames = [{"choices": [choice]}, {"error": {"message": attack}}]
    stream = "".join(f"data: {json.dumps(frame)}\n\n" for frame in frames)
    models = [{"name": attack, "has_chat_template": True, "max_model_len": 64}]
    with serving(folder, FakeExecutor()) as server:
        page = open_page("about:blank")
        page.route("**/chat/completions", lambda route: route.fulfill(body=stream, content_type="text/event-stream"))
        page.route("**/playground/data/models", lambda route: route.fulfill(json=models))
        page.goto(server.url)
        turn = ask(page, "hi")
        assert finish_of(turn) == "failed"
        assert turn.locator("h3, .said-text, .failure").all_inner_texts() == [attack] * 3
        turn.locator(".token").hover()
        assert page.locator("#card tr td:first-child").all_inner_texts() == [
            text.replace(" ", "␣") for text in (attack, attack + "2")
        ]
        page.wait_for_timeout(50)
        assert page.locator("body img").count() == 0 and page.evaluate("window.hacked") is None


def test_the_key(open_page: Open, folder: Path) -> None:
    with serving(folder, FakeExecutor(says("hello"), num_blocks=200), ServerArgs(api_key="secret")) as server:
        page = open_page(server.url + "#/memory")
        dialog = page.locator("#key-dialog")
        dialog.wait_for()
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        page.locator("#key-said", has_text="does not know this key").wait_for()
        page.keyboard.type("secret")
        page.keyboard.press("Enter")
        dialog.wait_for(state="hidden")
        page.locator("#memory-numbers dd[data-number=num_blocks]", has_text="199").wait_for()
        page.locator("#tab-chat").click()
        assert finish_of(ask(page, "hi")) == "stop"
        assert page.evaluate("[localStorage.length, document.cookie, Object.values(sessionStorage)]") == [0, "", ["secret"]]

        other = open_page(server.url)
        other.locator("#key-dialog").wait_for()
        other.keyboard.press("Escape")
        other.locator(".failure", has_text="asks for an API key").wait_for()


# -- the views -------------------------------------------------------------------------------------------------


def numbers(page: Any, view: str) -> dict[str, str]:
    cells = page.locator(f"#{view}-numbers dd").all()
    return {cell.get_attribute("data-number"): cell.inner_text() for cell in cells}


def test_the_memory_view_says_what_stats_say(open_page: Open, folder: Path) -> None:
    """Requests that stand still in the middle of their work: the executor waits, and the page must agree with the core."""
    executor = FakeExecutor(says("la " * 200), num_blocks=200)
    with serving(folder, executor, max_num_seqs=8) as server:
        page = open_page(server.url + "#/memory")
        page.locator("#memory-numbers dd[data-number=num_free]", has_text="199").wait_for()
        prompt = "a beginning that all of them share, and then "
        server.run(finish(server, prompt + "nothing", "gone", 3))
        executor.step_s = 1.0  # the numbers hold still for many looks
        waiting = [server.run(start(server, f"{prompt}{i}", f"request-{i}")) for i in range(3)]
        until(lambda: server.core.scheduler.stats().num_running == 3, page)
        executor.step_s = 0.35
        page.locator("#owners tbody tr").nth(2).wait_for()

        def agrees() -> bool:
            memory = server.run(server.engine.observe()).memory
            shown = numbers(page, "memory")
            waste = 100 * memory.num_unused_slots / (memory.num_used * memory.block_size)
            return shown == {
                "num_blocks": "199",
                "num_used": str(memory.num_used),
                "num_shared": str(memory.num_shared),
                "num_cached": str(memory.num_cached),
                "num_free": str(199 - memory.num_used - memory.num_cached),
                "waste": f"{waste:.1f} %" if 0 < waste < 9.95 else f"{waste:.0f} %",
            }

        until(agrees, page)
        assert int(numbers(page, "memory")["num_shared"]) == len(prompt) // 4
        rows = page.locator("#owners tbody tr")
        assert [rows.nth(i).get_attribute("data-id") for i in range(3)] == [f"request-{i}" for i in range(3)]

        page.locator("#owners button").nth(1).press("Enter")
        page.locator("#table li").first.wait_for()
        blocks = [int(text) for text in page.locator("#table li").all_inner_texts()]
        request = next(each for each in server.core.scheduler.running if each.request_id == "request-1")
        assert blocks == [block - 1 for block in request.block_ids][: len(blocks)] and len(blocks) >= len(prompt) // 4

        page.locator("#blocks").focus()
        for _ in range(blocks[0] + 1):
            page.keyboard.press("ArrowRight")
        assert page.locator("#block-said").inner_text() == f"Block {blocks[0]}: request-0 and 2 others."
        executor.step_s = 0.0
        for stream in waiting:
            server.run(close(stream))


async def start(server: PageServer, prompt: str, request_id: str) -> Any:
    return await server.engine.open(prompt, greedy(max_tokens=300), request_id, lambda: None)


async def close(stream: Any) -> None:
    stream.close()


async def finish(server: PageServer, prompt: str, request_id: str, max_tokens: int) -> None:
    async for _ in server.engine.generate(prompt, greedy(max_tokens=max_tokens, ignore_eos=True), request_id):
        pass


SCRIPT = [(60, 12), (5, 40), (30, 3), (90, 25), (7, 7), (20, 18), (45, 31), (11, 1), (70, 9), (16, 22)]
"""(prompt tokens, output tokens) of requests that come at once."""


def test_the_timeline_is_the_schedulers(open_page: Open, folder: Path) -> None:
    """A script in a pool that is too small for it, so that requests are preempted; the truth is what the worker was sent."""
    executor = FakeExecutor(num_blocks=70)
    with serving(folder, executor, max_num_seqs=6, max_num_batched_tokens=48) as server:
        page = open_page(server.url + "#/batching")
        page.locator("#batching-numbers dd[data-number=total_steps]", has_text="0").wait_for()
        page.locator("details.alternative summary").first.click()

        async def load() -> None:
            prompts = [(chr(ord("a") + i) * length, f"request-{i}", output) for i, (length, output) in enumerate(SCRIPT)]
            await asyncio.gather(*(finish(server, *each) for each in prompts))

        server.run(load())
        page.locator("#lanes tbody tr").nth(len(SCRIPT) - 1).locator("td", has_text="length").wait_for()
        until(lambda: page.locator("#steps tbody tr").count() == len(executor.batches), page)
        steps = page.locator("#steps tbody").evaluate(CELLS)
        lanes = page.locator("#lanes tbody").evaluate(CELLS)
        told = page.locator("#static").evaluate("element => [element.dataset.continuousSteps, element.dataset.staticSteps]")
    ids = {lane[0]: lane[1] for lane in lanes}
    assert {lane[1]: (int(lane[2]), int(lane[5])) for lane in lanes} == {
        f"request-{i}": each for i, each in enumerate(SCRIPT)
    }
    truth = list(true_steps(executor))
    assert sum(len(step["preempted"]) for step in truth) > 0
    for cells, step in zip(reversed(steps), truth, strict=True):
        assert int(cells[0]) == step["id"]
        assert {ids[number]: int(tokens) for number, tokens in re.findall(r"(\d+) \((\d+)\)", cells[1])} == step["chunks"]
        assert [ids[number] for number in cells[2].split(", ") if number] == step["decodes"]
        assert {ids[number] for number in cells[3].split(", ") if number} == step["preempted"]
        assert {ids[number] for number in cells[4].split(", ") if number} == step["finished"]
    assert told == [str(len(truth)), str(static_steps(SCRIPT, 6, 48))]


CELLS = "body => [...body.rows].map(row => [...row.cells].map(cell => cell.textContent))"


def true_steps(executor: FakeExecutor) -> Iterator[dict[str, Any]]:
    """What the worker was told, step by step, in the words of the view."""
    prompts = {f"request-{i}": length for i, (length, _) in enumerate(SCRIPT)}
    outputs = dict.fromkeys(prompts, 0)
    for batch in executor.batches:
        entries = batch.requests
        known = {entry.request_id: prompts[entry.request_id] + outputs[entry.request_id] for entry in entries}
        decodes = [e.request_id for e in entries if outputs[e.request_id] and e.num_computed_tokens == known[e.request_id] - 1]
        for entry in entries:
            outputs[entry.request_id] += entry.samples
        ends = {f"request-{i}" for i, (_, output) in enumerate(SCRIPT) if outputs[f"request-{i}"] == output}
        yield {
            "id": batch.step_id,
            "chunks": {e.request_id: e.num_tokens for e in entries if e.request_id not in decodes},
            "decodes": decodes,
            "preempted": {i for i in batch.removed_request_ids if i not in ends},
            "finished": {e.request_id for e in entries if e.samples and e.request_id in ends},
        }


def static_steps(script: list[tuple[int, int]], max_seqs: int, max_tokens: int) -> int:
    """Steps of static batches for requests that come at once."""
    batches = [script[i : i + max_seqs] for i in range(0, len(script), max_seqs)]
    return sum(
        -(-len(batch) * max(prompt for prompt, _ in batch) // max_tokens) + max(output for _, output in batch) - 1
        for batch in batches
    )


def test_static_batches_and_step_times(open_page: Open, folder: Path) -> None:
    """Worked by hand: a batch of one, then those who came meanwhile, two at a time; chunks of at most 10 tokens."""
    with serving(folder, FakeExecutor()) as server:
        page = open_page(server.url)
        requests = [(1, 5, 8, 3), (2, 6, 4, 2), (3, 6, 9, 6), (4, 20, 3, 1)]  # number, arrival, prompt, output
        rows = [dict(zip(("number", "arrival", "numPrompt", "numOutput"), each)) for each in requests]
        found = page.evaluate(
            "async (rows) => (await import('/playground/static_batching.js')).staticBatches(rows, 2, 10)", rows
        )
        assert [(b["start"], b["end"], b["steps"]) for b in found["batches"]] == [
            (5, 8, [8, 1, 1]), (8, 15, [10, 8, 2, 2, 2, 2, 2]), (20, 21, [3])
        ]  # fmt: skip
        assert (found["numSteps"], found["numTokens"], found["numUseful"]) == (16, 41, 10 + 5 + 14 + 3)
        fit = "async (steps) => (await import('/playground/static_batching.js')).fitStepTime(steps)"
        steps = [{"numTokens": n, "duration": 100 + 7 * n} for n in (1, 2, 30)]
        assert page.evaluate(fit, steps) == pytest.approx([100, 7])
        assert page.evaluate(fit, [{"numTokens": n, "duration": 50 - n} for n in (1, 2, 3)]) == pytest.approx([48, 0])
        settled = page.evaluate(
            """async () => {
              const { Timeline } = await import('/playground/timeline.js');
              const timeline = new Timeline();
              timeline.add([[1, 1, 0, 9, [], [1, 4, 2, 4], [], [[1, "a", 4], [2, "b", 4], [3, "c", 4]], [], []]]);
              timeline.settle(new Set([2]));
              return [...timeline.requests.values()].map(({ end, reason }) => [end, reason]);
            }"""
        )
        assert settled == [[0, "not seen"], [None, None], [None, None]]


def test_the_comparison(open_page: Open, folder: Path) -> None:
    with serving(folder, FakeExecutor()) as server:
        page = open_page(server.url + "#/comparison")
        page.locator(".panel").first.wait_for()
        assert page.locator(".panel").count() == 4 + 6 + 3
        bars = page.locator(".panel svg").first
        assert (bars.get_attribute("aria-label") or "").startswith("int8: Quire 82, llama.cpp 52.4, OpenVINO GenAI 38.9")
        page.locator("#charts summary").first.press("Enter")
        first = page.locator("#charts tbody tr").first.locator("td").all_inner_texts()
        assert first[:4] == ["S One request", "decode, tokens/s", "int8", "82"] and first[-1] == "1.56"


# -- without a mouse, on a phone -------------------------------------------------------------------------------


def test_by_keyboard_alone(open_page: Open, folder: Path) -> None:
    with serving(folder, FakeExecutor(says("hello you"), num_blocks=200)) as server:
        page = open_page(server.url)
        keys = page.keyboard
        assert page.evaluate("document.activeElement.id") == "prompt"
        keys.type("hi")
        keys.press("Enter")
        turn = page.locator(".turn.answer")
        assert finish_of(turn) == "stop"
        keys.press("Shift+Tab")
        assert page.evaluate("document.activeElement.className") == "said-text"
        keys.press("ArrowRight")
        keys.press("ArrowRight")
        assert page.locator("#card").is_visible() and page.locator(".token.here").inner_text() == "e"
        assert page.locator("#card-said").inner_text().startswith("e, 60.7 %; instead: ")
        keys.press("Escape")
        assert page.locator("#card").is_hidden()

        for _ in range(10):
            keys.press("Shift+Tab")
            if page.evaluate("document.activeElement.getAttribute('role')") == "tab":
                break
        for name in ("memory", "batching", "comparison", "chat", "memory"):
            keys.press("ArrowRight")
            tab = page.locator(f"#tab-{name}")
            assert tab.get_attribute("aria-selected") == "true" and page.locator(f"#{name}").is_visible()
            assert page.evaluate("document.activeElement.id") == f"tab-{name}"
        page.locator("#memory-numbers dd[data-number=num_blocks]", has_text="199").wait_for()
        reached = []
        for _ in range(6):
            keys.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        assert {"blocks", "sample quiet", "scroll", "scroll short"} <= set(reached)


@pytest.mark.parametrize("view", ["chat", "memory", "batching", "comparison"])
def test_a_phone_needs_no_horizontal_scrolling(open_page: Open, folder: Path, view: str) -> None:
    phone = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "color_scheme": "dark"}
    with serving(folder, FakeExecutor(says("w" * 120), num_blocks=600)) as server:
        page = open_page(f"{server.url}#/{view}", **phone)
        if view == "chat":
            page.locator("#settings summary").click()
            assert finish_of(ask(page, "x" * 200)) == "stop"
        elif view != "comparison":
            page.locator(f"#{view} .live", has_text="Watching fake.").wait_for()
            server.run(finish(server, "a prompt", "a-request-with-a-very-long-name-" * 4, 5))
            page.wait_for_timeout(300)
        else:
            page.locator(".panel").first.wait_for()
        for summary in page.locator(f"#{view} summary").all()[:1]:
            summary.click()
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_nobody_watched_nothing_looked(open_page: Open, folder: Path) -> None:
    """The stream is open only while a live view is in sight."""
    with serving(folder, FakeExecutor()) as server:
        page = open_page(server.url + "#/memory")
        page.locator("#memory-live", has_text="Watching").wait_for()
        assert server.core.scheduler.log is not None
        calls: list[int] = []
        look = server.core.observe
        server.core.observe = lambda *args: calls.append(1) or look(*args)  # type: ignore[method-assign, func-returns-value]
        page.locator("#tab-chat").click()
        page.wait_for_timeout(400)
        calls.clear()
        page.wait_for_timeout(600)
        assert not calls
