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


def scoring(model: PreTrainedModel, most: int = 64) -> Answer:
    """Answers requests as `vllm serve --max-logprobs MOST` does."""

    async def answer(request: Request) -> Response:
        asked = request.body
        if (k := asked["prompt_logprobs"]) > most:
            said = f"Requested prompt logprobs of {k}, which is greater than max allowed: {most}"
            return as_json({"error": {"message": said, "type": "BadRequestError", "code": 400}}, 400)
        return as_json(completion_of(scored(model, asked["prompt"], k)))

    return answer


def changed(response: Response, change) -> Response:
    """With another body."""
    body = json.loads(response.content)
    return as_json(change(body) or body)
