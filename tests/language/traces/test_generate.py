"""Completions: the distribution they are drawn from, what they do not depend on, and where they end."""

import random

import numpy as np
import pytest
import torch
from characters_tokenizer import characters_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import chisquare
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from kdlib.language.puzzles.make import make_puzzle
from kdlib.language.puzzles.text import written_solution
from kdlib.language.puzzles.tokenizer import puzzle_tokenizer
from kdlib.language.traces.generate import TokenChoice, Writer, inverted

SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3,
}  # fmt: skip
TOKENIZER = characters_tokenizer()
STATEMENTS = ["chickens and rabbits", "10 heads", "How many? 28 feet", "x", "几只"]


def model(kind=Qwen2ForCausalLM, *, seed=0, dtype=torch.float64, **changed):
    """Random weights, wide enough that tokens differ; float64, so that batches do not round."""
    torch.manual_seed(seed)
    config = {Qwen2ForCausalLM: Qwen2Config, LlamaForCausalLM: LlamaConfig}[kind]
    made = kind(config(**{"vocab_size": len(TOKENIZER), **SHAPE, **changed})).eval()
    with torch.no_grad():
        # The end comes now and then, so that some completions finish and others do not.
        made.get_output_embeddings().weight[TOKENIZER.eos_token_id] *= 3
    return made.to(dtype)


def writer(m=None, tokenizer=TOKENIZER, *, temperature=0.8, top_p=0.9, max_new_tokens=12):
    return Writer(
        m or model(), tokenizer, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens
    )


def choose(logits, uniforms, temperature, top_p):
    """Classes chosen for (C) logits and (N) uniform numbers."""
    rows = logits.expand(len(uniforms), -1)
    choice = TokenChoice(uniforms[:, None], 3, logits.shape[-1], temperature, top_p)
    scores = choice(torch.zeros(len(uniforms), 3, dtype=torch.long), rows)
    assert scores.shape == rows.shape and (scores.isfinite().sum(-1) == 1).all()
    return scores.argmax(-1)


# --- the distribution ------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_even_numbers_spread_over_the_tokens_as_transformers_warpers_have_it(temperature, top_p, spread):
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)) * spread
    logits[0, 7] = -torch.inf
    expected = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(temperature)(None, logits)).softmax(-1)
    uniforms = (torch.arange(20_000) + 0.5) / 20_000
    counts = choose(logits, uniforms, temperature, top_p).bincount(minlength=40)
    # Inversion of an even grid is exact up to one point at either edge.
    torch.testing.assert_close(counts / 20_000, expected[0], atol=1.5 / 20_000, rtol=0)


def test_what_a_model_writes_has_the_frequencies_of_its_distribution():
    m, draws = model(dtype=torch.float32), 4_000
    w = writer(m, temperature=0.6, top_p=0.95, max_new_tokens=1)
    prompt = w.prompt(STATEMENTS[0])
    with torch.no_grad():
        logits = m(torch.tensor([prompt])).logits[:, -1]
    expected = TopPLogitsWarper(0.95)(None, TemperatureLogitsWarper(0.6)(None, logits)).softmax(-1)[0]
    counts = np.zeros(len(TOKENIZER))
    for start in range(0, draws, 1_000):
        for completion in w.write([prompt] * 1_000, range(start, start + 1_000)):
            token = TOKENIZER.eos_token if completion.finished else completion.text
            counts[TOKENIZER.convert_tokens_to_ids(token)] += 1
    expected = expected.double().numpy()
    assert counts[expected == 0].sum() == 0
    often = expected * draws >= 5
    assert often.sum() > 5
    observed = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum()) * draws
    assert chisquare(observed[wanted > 0], wanted[wanted > 0] * draws / wanted.sum()).pvalue > 1e-3


PROBABILITIES = arrays(np.float32, (3, 12), elements=st.sampled_from([0.0, 1e-9, 1e-4, 0.1, 0.25, 0.5, 1.0]))
UNIFORMS = arrays(np.float32, 3, elements=st.floats(0, 1, width=32, exclude_max=True))


@given(PROBABILITIES, UNIFORMS)
def test_inversion_is_the_quantile_and_never_an_impossible_class(weights, uniforms):
    weights[:, 5] += 0.25  # not all 0
    probabilities = weights / weights.sum(1, keepdims=True)
    chosen = inverted(torch.from_numpy(probabilities), torch.from_numpy(uniforms)).numpy()
    exact = probabilities.astype(float).cumsum(1)
    for row, number in enumerate(chosen):
        assert probabilities[row, number] > 0
        target = uniforms[row] * exact[row, -1]
        assert exact[row, number] >= target - 1e-6
        assert number == 0 or exact[row, number - 1] <= target + 1e-6


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_the_unit_interval_choose_possible_tokens(uniform):
    probabilities = torch.zeros(1, 1000)
    probabilities[0, 100:900] = torch.rand(800, generator=torch.Generator().manual_seed(1))
    probabilities /= probabilities.sum()
    assert inverted(probabilities, torch.tensor([uniform])).item() == (100 if uniform == 0 else 899)


# --- the same, one token after another, without cache, batch or padding ----------------------------


def slowly(w, prompt, seed):
    """Ids that follow from the definition: the whole sequence through the model for each token."""
    uniforms = np.random.Generator(np.random.Philox(key=seed)).random(w.max_new_tokens, np.float32)
    ids = list(prompt)
    for uniform in uniforms:
        with torch.no_grad():
            logits = w.model(torch.tensor([ids])).logits[:, -1].float()
        if w.temperature == 0:
            token = int(logits.argmax())
        else:
            warped = TopPLogitsWarper(w.top_p)(None, TemperatureLogitsWarper(w.temperature)(None, logits))
            cumulative = warped.double().softmax(-1)[0].cumsum(-1)
            token = int(torch.searchsorted(cumulative, float(uniform), right=True))
        ids.append(token)
        if token == TOKENIZER.eos_token_id:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("kind", [Qwen2ForCausalLM, LlamaForCausalLM])
@pytest.mark.parametrize("temperature", [0, 0.8])
def test_a_batch_writes_what_each_row_would_write_alone(kind, temperature):
    w = writer(model(kind), temperature=temperature)
    prompts = [w.prompt(statement) for statement in STATEMENTS for _ in range(3)]
    seeds = range(100, 100 + len(prompts))
    found = w.write(prompts, seeds)
    for completion, prompt, seed in zip(found, prompts, seeds, strict=True):
        ids = slowly(w, prompt, seed)
        ended = ids[-1] == TOKENIZER.eos_token_id
        assert completion.tokens == len(ids)
        assert completion.finished == ended
        assert completion.text == TOKENIZER.decode(ids[: len(ids) - ended])
    if temperature:
        assert {completion.finished for completion in found} == {True, False}
        assert len({completion.text for completion in found}) > 10


def test_a_completion_depends_on_its_seed_and_on_nothing_else_in_the_batch():
    w = writer()
    prompts = [w.prompt(statement) for statement in STATEMENTS]
    together = w.write(prompts, [1, 2, 3, 4, 5])
    assert w.write(prompts[::-1], [5, 4, 3, 2, 1]) == together[::-1]
    assert [w.write([p], [s])[0] for p, s in zip(prompts, [1, 2, 3, 4, 5], strict=True)] == together
    assert w.write(prompts, [6, 2, 7, 4, 8])[1::2] == together[1::2]
    assert w.write(prompts, [6, 7, 8, 9, 10]) != together


def test_seeds_that_share_their_lowest_32_bits_are_different_seeds():
    w = writer(temperature=2.0, top_p=1.0)
    prompt = w.prompt("x")
    one, other = w.write([prompt, prompt], [5, 5 + 2**32])
    assert one.text != other.text


def test_the_random_state_of_the_process_is_left_alone():
    before = torch.get_rng_state()
    w = writer(model())
    torch.set_rng_state(before)
    w.write([w.prompt("x")] * 3, [1, 2, 3])
    assert torch.equal(torch.get_rng_state(), before)


# --- where completions end -------------------------------------------------------------------------


class Script(Qwen2ForCausalLM):
    """Writes a fixed sequence of tokens, whatever it is asked."""

    def forward(self, input_ids=None, past_key_values=None, **rest):
        out = super().forward(input_ids=input_ids, past_key_values=past_key_values, **rest)
        length = out.past_key_values.get_seq_length()
        self.prompt = length if input_ids.shape[1] > 1 else self.prompt
        token = torch.tensor(self.script[length - self.prompt])
        row = torch.nn.functional.one_hot(token, out.logits.shape[-1]) * 50.0
        out.logits = row.expand(len(input_ids), 1, -1)
        return out


def script(*tokens, tokenizer=TOKENIZER):
    """A model that writes these."""
    torch.manual_seed(0)
    made = Script(Qwen2Config(vocab_size=len(tokenizer), **SHAPE)).eval()
    made.script = tokenizer.convert_tokens_to_ids(tokens)
    return made


ANSWER = ["s", "x", "=", "6", "</think>", "A", ":", "4", TOKENIZER.eos_token]


@pytest.mark.parametrize(
    "limit, tokens, finished", [(20, 9, True), (9, 9, True), (8, 8, False), (1, 1, False)]
)
def test_tokens_count_the_end_and_the_limit_cuts_exactly(limit, tokens, finished):
    w = writer(script(*ANSWER), max_new_tokens=limit)
    completion = w.write([w.prompt("x")], [0])[0]
    assert (completion.tokens, completion.finished) == (tokens, finished)
    assert completion.text == "".join(ANSWER[: min(limit, 8)])


def test_a_think_tag_that_counts_as_special_survives_decoding():
    tokenizer = characters_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    assert "</think>" in tokenizer.all_special_tokens
    w = writer(script(*ANSWER, tokenizer=tokenizer), tokenizer, max_new_tokens=20)
    assert w.write([w.prompt("x")] * 2, [0, 1])[1].text == "sx=6</think>A:4"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_written_solution_of_a_puzzle_comes_through_as_it_was_written(language):
    tokenizer, puzzle = puzzle_tokenizer(), make_puzzle(rng=random.Random(0))
    solution = written_solution(puzzle, language=language)
    assert "</think>" in solution
    w = writer(
        script(*tokenizer.tokenize(solution), tokenizer.eos_token, tokenizer=tokenizer), tokenizer,
        max_new_tokens=200,
    )  # fmt: skip
    completion = w.write([w.prompt("A cage")] * 2, [0, 1])[1]
    assert completion.text == solution and completion.finished
    assert completion.tokens == len(tokenizer.tokenize(solution)) + 1


def test_a_tokenizer_without_a_pad_token_pads_with_the_end():
    tokenizer = characters_tokenizer()
    tokenizer.pad_token = None
    w = writer(model(), tokenizer)
    prompts = [w.prompt(statement) for statement in STATEMENTS]
    assert w.write(prompts, range(5)) == writer(model()).write(prompts, range(5))


def test_the_model_s_further_ends_count_if_its_settings_belong_to_the_tokenizer():
    m = script(*ANSWER)
    four, end = TOKENIZER.convert_tokens_to_ids(["4", TOKENIZER.eos_token])
    m.generation_config.eos_token_id = [end, four]
    w = writer(m)
    assert w.write([w.prompt("x")], [0])[0].text == "sx=6</think>A:"
    # As it is in a model made from a configuration, where the number is the class's default.
    m.generation_config.eos_token_id = four
    w = writer(m)
    assert w.write([w.prompt("x")], [0])[0].text == "sx=6</think>A:4"


def test_generation_settings_that_came_with_the_model_are_set_aside_and_put_back():
    plain, m = model(), model()
    own = GenerationConfig(
        repetition_penalty=5.0, top_k=1, do_sample=True, temperature=0.1, max_length=30, min_new_tokens=12,
        no_repeat_ngram_size=1,
    )  # fmt: skip
    m.generation_config = own
    prompts = [writer(m).prompt(statement) for statement in STATEMENTS]
    assert writer(m).write(prompts, range(5)) == writer(plain).write(prompts, range(5))
    assert m.generation_config is own


def test_tokens_that_only_the_model_has_are_never_written():
    padded = model(vocab_size=len(TOKENIZER) + 40)
    with torch.no_grad():
        padded.get_output_embeddings().weight[len(TOKENIZER) :] = 0
        padded.get_output_embeddings().weight[: len(TOKENIZER)] = model().get_output_embeddings().weight
        for a, b in zip(padded.model.parameters(), model().model.parameters(), strict=True):
            a[: len(b)] = b
    prompts = [writer().prompt(statement) for statement in STATEMENTS]
    for temperature in (0, 2.0):
        expected = writer(temperature=temperature).write(prompts, range(5))
        assert writer(padded, temperature=temperature).write(prompts, range(5)) == expected


# --- refusals --------------------------------------------------------------------------------------


def test_a_prompt_that_leaves_too_few_positions_is_refused_with_the_number_that_would_do():
    prompt = writer().prompt("x")
    room = SHAPE["max_position_embeddings"] - len(prompt)
    w = writer(max_new_tokens=room)
    assert w.write([w.prompt("x")], [0])[0].tokens <= room
    with pytest.raises(ValueError, match=f"max_new_tokens is {room + 1}.*256 positions.*at most {room}"):
        writer(max_new_tokens=room + 1).prompt("x")


def test_a_tokenizer_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=f"{len(TOKENIZER)} tokens, but model embeds 50.*resize_token"):
        writer(model(vocab_size=50))
    tokenizer = characters_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="tokenizer has no chat_template; expected one"):
        writer(tokenizer=tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="set eos_token"):
        writer(tokenizer=tokenizer)


@pytest.mark.parametrize("temperature", [0, 0.6])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_not_taken_for_the_first_token(temperature, bad):
    m = model()
    with torch.no_grad():
        m.get_output_embeddings().weight[17] = bad
    w = writer(m, temperature=temperature)
    with pytest.raises(FloatingPointError, match="not finite"):
        w.write([w.prompt("x")], [0])
