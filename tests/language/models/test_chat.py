"""Chat templates that write the date: one run has one, and a run of another day is told why it is another."""

from datetime import date

import pytest
from small_models import TEMPLATE, llama, pairs, qwen, word_tokenizer

from kdlib.language.distill.distill import distill_language_model
from kdlib.language.distill.teachers import cache_teacher_tokens
from kdlib.language.models import chat
from kdlib.language.models.chat import apply_template, date_in_template
from kdlib.language.problems import Problem
from kdlib.language.traces.collect import collect_traces

# As Llama 3.2's does; the day is a word of the vocabulary.
DATED = "{% if strftime_now is defined %}w{{ strftime_now('%d') }} {% endif %}" + TEMPLATE
CAUSE = "the date that {} chat template writes .*KDLIB_DATE.* was 2026-11-29, is 2026-11-30"


@pytest.fixture
def today(monkeypatch):
    """Sets the date of a new process."""

    def day(text):
        monkeypatch.setattr(chat, "_first_asked", lambda: date.fromisoformat(text))

    monkeypatch.delenv("KDLIB_DATE", raising=False)
    day("2026-11-29")
    return day


def tokenizer(template=DATED):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def prompt(of):
    return apply_template(of, [{"role": "user", "content": "w1"}], tokenize=False)


def test_a_process_asks_with_one_date(monkeypatch):
    class Clock(date):
        days = iter([date(2026, 11, 29), date(2026, 11, 30)])

        @classmethod
        def today(cls):
            return next(cls.days)

    monkeypatch.delenv("KDLIB_DATE", raising=False)
    monkeypatch.setattr(chat, "date", Clock)
    chat._first_asked.cache_clear()
    try:
        assert prompt(tokenizer()) == prompt(tokenizer()) == "w29 <user> w1 <assistant> <think>"
    finally:
        chat._first_asked.cache_clear()


def test_the_date_can_be_given(today, monkeypatch):
    monkeypatch.setenv("KDLIB_DATE", "2026-11-07")
    assert prompt(tokenizer()).startswith("w07 ")
    monkeypatch.setenv("KDLIB_DATE", "yesterday")
    with pytest.raises(ValueError, match="KDLIB_DATE is 'yesterday'; expected a date such as 2026-11-30"):
        prompt(tokenizer())


@pytest.mark.parametrize(
    "template",
    [
        "\n {{ strftime_now('%-d %B %Y, %A %j %y/%m 100%%') }}\n" + TEMPLATE,
        '{%- if strftime_now is defined %}\n{%- set day = strftime_now("%d %b %Y") %}{% endif %}{{ day }}\n',
        "  {{ 'no date' }}\n" + TEMPLATE,
    ],
)
def test_a_prompt_is_what_transformers_makes_of_it_today(today, template):
    today(date.today().isoformat())
    turn = [{"role": "user", "content": "w1"}]
    expected = tokenizer(template).apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    assert prompt(tokenizer(template)) == expected


def test_only_a_template_that_writes_it_is_bound_to_it(today):
    assert date_in_template(tokenizer(TEMPLATE)) == {}
    assert list(date_in_template(tokenizer()).values()) == ["2026-11-29"]


def test_traces_of_another_day_are_told_why_and_go_on(today, tmp_path, monkeypatch):
    def collect(template=DATED, path=tmp_path / "traces.jsonl"):
        return collect_traces(
            qwen(), tokenizer(template), [Problem("k", "w1", "1")], path, samples=2, max_new_tokens=3
        )

    first, undated = collect(), collect(TEMPLATE, tmp_path / "undated.jsonl")
    today("2026-11-30")
    assert collect(TEMPLATE, tmp_path / "undated.jsonl") == undated
    with pytest.raises(ValueError, match=CAUSE.format("the")):
        collect()
    monkeypatch.setenv("KDLIB_DATE", "2026-11-29")
    assert collect() == first


def test_a_run_and_a_cache_of_another_day_are_told_why_and_go_on(today, tmp_path, monkeypatch):
    data = pairs(4)
    settings = {"steps": 1, "lr": 1e-3, "device": "cpu"}

    def cached(teacher):
        return cache_teacher_tokens(teacher, tokenizer(), data, tmp_path / "cache", top_k=3, device="cpu")

    def run(teacher=None):
        folder = tmp_path / ("run" if teacher is None else "with a teacher")
        return distill_language_model(qwen(), tokenizer(), data, folder, teacher=teacher, **settings)

    stored, first = cached(llama(1)), run()
    today("2026-11-30")
    for call in (run, lambda: run(stored), lambda: cached(llama(1))):
        with pytest.raises(ValueError, match=CAUSE.format("the")):
            call()
    monkeypatch.setenv("KDLIB_DATE", "2026-11-29")
    assert run().loss == first.loss
    run(cached(llama(1)))


def test_the_date_in_the_teacher_s_own_prompts_is_told_too(today, tmp_path, monkeypatch):
    data = [(f"w{n} w2", f"w{n + 9}") for n in range(4)]  # of one word: the tokenizer drops spaces
    ours, theirs = tokenizer(TEMPLATE), tokenizer(DATED)
    settings = {"steps": 1, "lr": 1e-3, "device": "cpu", "teacher_tokenizer": theirs}

    def cached():
        return cache_teacher_tokens(
            llama(1), ours, data, tmp_path / "cache", top_k=3, device="cpu", teacher_tokenizer=theirs,
            teacher_prompt="own",
        )  # fmt: skip

    def run(folder, teacher=None, **how):
        how = settings | {"teacher_prompt": "own", "teacher": teacher or llama(1)} | how
        return distill_language_model(qwen(), ours, data, tmp_path / folder, **how)

    stored = cached()
    calls = [
        cached, lambda: run("live"), lambda: run("cached", stored),
        lambda: run("across", across_tokenizers="aligned", teacher_prompt=None),
    ]  # fmt: skip
    for call in calls[1:]:
        call()
    today("2026-11-30")
    for call in calls:
        with pytest.raises(ValueError, match=CAUSE.format("teacher_tokenizer's")):
            call()
    monkeypatch.setenv("KDLIB_DATE", "2026-11-29")
    for call in calls:
        call()
