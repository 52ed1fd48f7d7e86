"""Texts to learn from as they stand, without problems or answers: documents and conversations.

    documents = load_documents(["book.txt", "chats.jsonl"])
    learnt, held = hold_out(encode_documents(tokenizer, documents, context=512))
    distill_language_model(student, tokenizer, learnt, teacher=teacher, epochs=1, lr=2e-4, packing=True)
    print(score_texts(student, tokenizer, held, teacher=teacher))

`kdlib.language.distill.scores` scores.
"""

import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from kdlib.arguments import check_counts, check_whole, is_number
from kdlib.language.distill.batches import TokenExample, tokenize_turns
from kdlib.language.problems import check_path, check_text

__all__ = ["encode_documents", "hold_out", "load_documents"]

Document = str | Sequence[Mapping[str, str]]
"""A text, or a conversation as `apply_chat_template` takes it: messages with role and content."""


def load_documents(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Document]:
    """Documents from files (UTF-8), in their order; one that occurred before counts once.

    A file `.jsonl` holds one document a line, anything else is one document:

        {"text": "Call me Ishmael. …"}
        {"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "…"}]}

    Other columns are ignored, empty lines and texts too.

    Raises:
        FileNotFoundError: names the file. ValueError: a line that is neither, a conversation without an
            answer of the assistant; it names the line. Also for a file that is not UTF-8, and if there is no
            document at all.
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else paths
    found: dict[str, Document] = {}
    for path in paths:
        check_path(path)
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        for document in _lines(path) if path.suffix.lower() == ".jsonl" else [_text(path)]:
            if not isinstance(document, str) or document.strip():
                found.setdefault(json.dumps(document), document)
    if not found:
        raise ValueError(f"{', '.join(map(str, paths))} holds no text; expected at least one")
    return list(found.values())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {error}; expected UTF-8") from None


def _lines(path: Path) -> Iterator[Document]:
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
            match row:
                case {"text": str(text)}:
                    check_text("text", text)
                    yield text
                case {"messages": [*messages]} if all(map(_is_message, messages)):
                    if not any(message["role"] == "assistant" for message in messages):
                        raise ValueError("no message is the assistant's; expected one to learn from")
                    for message in messages:
                        check_text("content", message["content"])
                    yield messages
                case _:
                    raise ValueError(f'expected an object with "text" or "messages"; got {row!r:.60}')
        except ValueError as error:
            raise ValueError(f"line {number} of {path}: {error}") from None


def _is_message(message: object) -> bool:
    match message:
        case {"role": str(), "content": str()}:
            return True
    return False


def encode_documents(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document], *, context: int = 512,
    prompt_tokens: int = 1,
) -> list[TokenExample]:  # fmt: skip
    """Token ids to learn from, for `distill_language_model` and `score_texts`.

    A text is closed with the end-of-text token and cut into pieces of `context` tokens, of which the last may
    be shorter. In each piece the first `prompt_tokens` are only read, and all others are learned. Of a
    conversation every answer of the assistant is learned, in an example of its own, after all that was said
    before; what does not fit into `context` is cut off at the end, and an example that would have nothing to
    learn from is left out.

    Args:
        documents: as `load_documents` gives them.
        context: tokens of the longest example.
        prompt_tokens: more than 1 where a student is to go on from there by itself, on-policy.

    Raises:
        ValueError: numbers that do not fit, no end-of-text token, no chat template for a conversation, or
            documents of which nothing is left to learn.
    """
    check_counts(least=0, prompt_tokens=prompt_tokens, context=context)
    if isinstance(documents, str | os.PathLike):
        raise ValueError(f"documents is {str(documents)!r:.60}; expected several, as load_documents reads")
    if not 1 <= prompt_tokens < context:
        raise ValueError(
            f"prompt_tokens={prompt_tokens} and context={context}; expected 1 <= prompt_tokens < context"
        )
    if tokenizer.eos_token is None:
        raise ValueError("tokenizer has no eos_token; expected one, for a text to end with")
    examples = []
    for document in documents:
        if isinstance(document, str):
            # A text may be longer than the model's context: it is cut below.
            ids = tokenizer(document, add_special_tokens=True, verbose=False)["input_ids"]
            ids = [*ids, tokenizer.eos_token_id]
            pieces = (ids[start : start + context] for start in range(0, len(ids), context))
            examples += [TokenExample(tuple(p[:prompt_tokens]), tuple(p[prompt_tokens:])) for p in pieces]
        else:
            examples += [
                TokenExample(turn.prompt, turn.completion[: max(0, context - len(turn.prompt))])
                for turn in tokenize_turns(tokenizer, document)
            ]
    examples = [example for example in examples if example.completion]
    if not examples:
        raise ValueError(f"documents leave nothing to learn; expected texts of over {prompt_tokens} tokens")
    return examples


def hold_out(
    examples: Sequence[TokenExample], share: float = 0.05, *, most_tokens: int = 50_000
) -> tuple[list[TokenExample], list[TokenExample]]:
    """Those to learn from, and a share of the tokens, at most so many, from the end, to score on.

    From the end, for neighbouring pieces of one text resemble each other. Shuffle documents of several kinds
    before they are encoded (`shuffled`).

    Raises:
        ValueError: fewer than two examples, or a share that is not between 0 and 1.
    """
    check_counts(most_tokens=most_tokens)
    if isinstance(examples, str) or len(examples) < 2 or not is_number(share) or not 0 < share < 1:
        raise ValueError(
            f"{len(examples)} examples and share={share}; expected at least two, and a share between 0 and 1"
        )
    wanted = min(most_tokens, share * sum(map(len, examples)))
    first, held = len(examples) - 1, len(examples[-1])
    while first > 1 and held + len(examples[first - 1]) <= wanted:
        first -= 1
        held += len(examples[first])
    return list(examples[:first]), list(examples[first:])


def shuffled(documents: Sequence[Document], seed: int = 0) -> list[Document]:
    """In an order that follows from the seed and their number."""
    check_whole("seed", seed)
    return random.Random(f"{seed} documents").sample(list(documents), len(documents))
