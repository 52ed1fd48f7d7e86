"""The thought of a text that is learned behind a chat template which opens none."""

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from kdlib.language.models.chat import apply_template
from kdlib.language.traces.file import Trace

__all__ = ["with_thought"]


def with_thought(trace: Trace, tokenizer: PreTrainedTokenizerBase) -> Trace:
    """The trace as it is learned: with `<think>\\n` in front where it closes a thought that nothing opens.

    R1's template ends with an open thought; those of base models do not. A text without a thought stays as
    it is, for behind an open one it would have no answer.
    """
    before, closed, _ = trace.text.partition("</think>")
    # Without a template nothing can be learned, and `tokenize` says so.
    if not closed or "<think>" in before or tokenizer.chat_template is None:
        return trace
    turn = [{"role": "user", "content": trace.statement}]
    prompt = apply_template(tokenizer, turn, tokenize=False)
    return trace if prompt.rstrip().endswith("<think>") else replace(trace, text=f"<think>\n{trace.text}")
