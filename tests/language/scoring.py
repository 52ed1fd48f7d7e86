"""A server that says how likely the tokens of a text are, as vLLM does, by a model on this machine."""

import json

import torch
from loopback import Answer, Request, Response, as_json
from transformers import PreTrainedModel


@torch.no_grad()
def scored(model: PreTrainedModel, ids: list[int], k: int) -> list[dict | None]:
    """`prompt_logprobs` of a text: about each token given those before it, the k likeliest and that one."""
    entries: list[dict | None] = [None]
    logs = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    for row, token in zip(logs[:-1], ids[1:], strict=True):
        likeliest = row.topk(k).indices.tolist()
        # vLLM has the token of the text first.
        order = dict.fromkeys([token, *likeliest])
        ranks = {one: 1 + int((row > row[one]).sum()) for one in order}
        entries.append({
            str(one): {"logprob": row[one].item(), "rank": ranks[one], "decoded_token": f" {one}"}
            for one in order
        })  # fmt: skip
    return entries


def completion_of(entries: list[dict | None], name: str = "teacher") -> dict:
    """A completion as vLLM 0.32 sends it."""
    count = len(entries)
    choice = {
        "index": 0, "text": " hard", "logprobs": None, "finish_reason": "length", "stop_reason": None,
        "token_ids": None, "prompt_logprobs": entries, "prompt_token_ids": None,
    }  # fmt: skip
    return {
        "id": "cmpl-1", "object": "text_completion", "created": 1, "model": name, "choices": [choice],
        "usage": {"prompt_tokens": count, "total_tokens": count + 1, "completion_tokens": 1},
    }  # fmt: skip


def generation_of(entries: list[dict | None], ids: list[int], k: int) -> dict:
    """The same as SGLang's /generate writes it: a list of the likeliest, and one of the text's tokens."""
    top, own = [None], [[None, ids[0], None]]
    for token, entry in zip(ids[1:], entries[1:], strict=True):
        told = [[one["logprob"], int(number), None] for number, one in entry.items()]
        top.append(sorted(told, reverse=True)[:k])
        own.append([entry[str(token)]["logprob"], token, None])
    meta = {"prompt_tokens": len(ids), "completion_tokens": 1, "cached_tokens": 0}
    return {"text": " hard", "meta_info": meta | {"input_token_logprobs": own, "input_top_logprobs": top}}


def scoring(model: PreTrainedModel, most: int = 64) -> Answer:
    """Answers requests as `vllm serve --max-logprobs MOST` and SGLang do."""

    async def answer(request: Request) -> Response:
        asked = request.body
        if request.path == "/generate":
            ids, k = asked["input_ids"], asked["top_logprobs_num"]
            return as_json(generation_of(scored(model, ids, k), ids, k))
        if (k := asked["prompt_logprobs"]) > most:
            said = f"Requested prompt logprobs of {k}, which is greater than max allowed: {most}"
            return as_json({"error": {"message": said, "type": "BadRequestError", "code": 400}}, 400)
        return as_json(completion_of(scored(model, asked["prompt"], k)))

    return answer


def changed(response: Response, change) -> Response:
    """With another body."""
    body = json.loads(response.content)
    return as_json(change(body) or body)
