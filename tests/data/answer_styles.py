"""Ways in which servers of OpenAI's protocol fill the body of a response: by name, functions of a plain completion.

READABLE hold the whole answer. The others hold none: BROKEN were not paid for, and WASTED were.
"""

import json


def message(completion, **fields):
    """The completion with other fields in its message."""
    (choice,) = completion["choices"]
    return completion | {"choices": [choice | {"message": {"role": "assistant", **fields}}]}


def ends(completion, reason, **fields):
    """The completion with another reason for its end."""
    changed = message(completion, **fields)
    changed["choices"][0]["finish_reason"] = reason
    return changed


def text_of(completion):
    return completion["choices"][0]["message"]["content"]


def around(before="", after=""):
    """What a model writes before and after its answer, which the server passes on."""
    return lambda completion: message(completion, content=f"{before}{text_of(completion)}{after}")


def in_parts(*parts):
    """Content as a list of parts; None stands for the answer."""
    return lambda completion: message(
        completion, content=[{"type": "text", "text": text_of(completion)} if part is None else part for part in parts]
    )


def without(name):
    return lambda completion: {key: value for key, value in completion.items() if key != name}


THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "1. Hm, a dog.\n2. Or a cat?"}]}
GO_ON = "Generate 5 audio captions.\n\nA cat meows. []"

READABLE = {
    "Mistral's parts": in_parts(None),
    "Magistral's parts": in_parts(THINKING, None),
    "parts of output text": lambda c: message(c, content=[{"type": "output_text", "text": text_of(c)}]),
    "parts that are texts": lambda c: message(c, content=[text_of(c)]),
    "two parts": lambda c: message(
        c, content=[{"type": "text", "text": text_of(c)[:30]}, {"type": "text", "text": text_of(c)[30:]}]
    ),
    "an unknown part": in_parts({"type": "reference", "reference_ids": [1]}, None),
    "reasoning beside": lambda c: message(c, content=text_of(c), reasoning_content="1. Hm, a dog."),
    "no refusal, no error": lambda c: message(c, content=text_of(c), refusal=None) | {"error": None},
    "text of an older protocol": lambda c: c | {"choices": [{"text": text_of(c), "finish_reason": "stop"}]},
    "think": around("<think>\n1. Hm, a dog.\n</think>\n\n"),
    "think without a beginning": around("1. Hm, a dog.\n</think>\n\n"),
    "think in the prompt's case": around("<THINK>1. Hm.</THINK>"),
    "two thoughts": around("<think>1. Hm.</think>\n<think>2. Or a cat?</think>\n"),
    "a thought in a thought": around("<think>1. Hm, <think>a dog</think>\n2. A cat.</think>"),
    "a thought after": around("", "\n<think>1. Was that right?</think>"),
    "a thought after, unclosed": around("", "\n<think>1. Was that right?"),
    "thought": around("<thought>1. Hm.</thought>"),
    "Magistral": around("[THINK]1. Hm.[/THINK]"),
    "Kimi": around("\u25c1think\u25b71. Hm.\u25c1/think\u25b7"),
    "Command": around("<|START_THINKING|>1. Hm.<|END_THINKING|><|START_RESPONSE|>", "<|END_RESPONSE|>"),
    "gpt-oss": around(
        "<|channel|>analysis<|message|>1. Hm.<|end|><|start|>assistant<|channel|>final<|message|>", "<|return|>"
    ),
    "answer tags": around("<think>1. Hm.</think><answer>", "</answer>"),
    "ChatML": around("", "<|im_end|>"),
    "ChatML, cut": around("", "<|im_end"),
    "ChatML goes on": around("", f"<|im_end|>\n<|im_start|>user\n{GO_ON}<|im_end|>\n<|im_start|>assistant\n1. A cat."),
    "ChatML header": around("<|im_start|>assistant\n", "<|im_end|>\n"),
    "Llama 3": around("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    "Llama 3 goes on": around("", f"<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{GO_ON}"),
    "Llama 4": around("<|header_start|>assistant<|header_end|>\n\n", "<|eot|>"),
    "Llama 2": around("<s> ", " </s>"),
    "Mistral goes on": around("", f"</s>[INST] {GO_ON} [/INST]"),
    "Gemma": around("<start_of_turn>model\n", "<end_of_turn>"),
    "Gemma goes on": around("", f"<end_of_turn>\n<start_of_turn>user\n{GO_ON}"),
    "Phi": around("<|assistant|>", "<|end|>"),
    "Phi goes on": around("", f"<|end|><|user|>\n{GO_ON}"),
    "DeepSeek": around("", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    "DeepSeek goes on": around("", f"<\uff5cend\u2581of\u2581sentence\uff5c><\uff5cUser\uff5c>{GO_ON}"),
    "GPT-2": around("", "<|endoftext|>"),
    "no usage": without("usage"),
    "usage null": lambda c: c | {"usage": None},
    "counts null": lambda c: c | {"usage": {"prompt_tokens": None, "completion_tokens": None}},
    "length, but complete": lambda c: ends(c, "length", content=text_of(c)),
    "an end of its own": lambda c: ends(c, "eos_token", content=text_of(c)),
}


def error(code, text="Something of the server's", **fields):
    return lambda _: {"error": {"message": text, "code": code, **fields}}


def raw(text):
    """A body that is not JSON."""
    return lambda _: text


BROKEN = {
    "429": error(429),
    "429 in words": error("rate_limit_exceeded"),
    "500": error(500),
    "502 as text": error("502"),
    "529": error(529, metadata={"provider_name": "x"}),
    "an error without a code": error(None),
    "an error that is a text": lambda _: {"error": "Something of the server's"},
    "vLLM's": lambda _: {"object": "error", "message": "Something of the server's", "code": 500},
    "FastAPI's": lambda _: {"detail": "Something of the server's"},
    "in a choice": lambda c: c | {"choices": [{"finish_reason": "error", "error": {"code": 502, "message": "Lost"},
                                               "message": {"role": "assistant", "content": ""}}], "usage": None},
    "a page": raw("<!DOCTYPE html><html><head><title>Just a moment</title></head></html>"),
    "torn": raw('{"id": "x", "choices": [{"mess'),
    "nothing": raw(""),
    "events": raw('data: {"choices": [{"delta": {"content": "1."}}]}\n\ndata: [DONE]\n\n'),
    "no choices": lambda c: c | {"choices": [], "usage": None},
    "other JSON": lambda _: {"models": []},
    "a list": lambda _: [1],
}  # fmt: skip

WASTED = {
    "null": (lambda c: message(c, content=None), "empty"),
    "empty parts": (lambda c: message(c, content=[]), "empty"),
    "only stop tokens": (lambda c: message(c, content="<|im_start|>assistant\n<|im_end|>"), "empty"),
    "no choices, but tokens": (lambda c: c | {"choices": []}, "empty"),
    "a refusal": (lambda c: message(c, content=None, refusal="I can't."), "refused"),
    "a part that refuses": (lambda c: message(c, content=[{"type": "refusal", "refusal": "I can't."}]), "refused"),
    "filtered": (lambda c: ends(c, "content_filter", content=None), "refused"),
    "an unclosed thought": (lambda c: message(c, content="<think>1. A dog barks."), "only reasoning"),
    "only a thought": (lambda c: message(c, content="<think>1. A dog barks.</think>\n"), "only reasoning"),
    "only reasoning beside": (lambda c: message(c, content=None, reasoning_content="1. A dog."), "only reasoning"),
    "only a thinking part": (lambda c: message(c, content=[THINKING]), "only reasoning"),
    "cut within its reasoning": (lambda c: ends(c, "length", content="<think>1. A dog barks."), "cut short"),
    "cut beside its reasoning": (lambda c: ends(c, "length", content=None, reasoning="1. A dog."), "cut short"),
}
"""Each with the problem that the journal and the summary name."""


FINAL = {
    "401": (error(401), 2, r"refused the key \(401\)"),
    "402": (error(402), 2, "the account's quota is used up"),
    "404": (error(404), 2, "has no model 'parrot'"),
    "400": (error(400), 1, "not answered: '.+': 400: .*Something of the server's"),
    "flagged": (error(403, metadata={"reasons": ["x"], "flagged_input": "y"}), 0, "0 of 5 paraphrases: refused"),
    "a page": (BROKEN["a page"], 1, "but with a web page, 'Just a moment' .check --base-url"),
    "torn": (BROKEN["torn"], 1, "but with incomplete JSON"),
    "without a code": (error(None), 1, "but with an error: Something of the server's"),
    "an unclosed thought": (WASTED["an unclosed thought"][0], 0, "0 of 5 paraphrases: only reasoning"),
}
"""Each for good: with the exit status, and a pattern of what the command says."""


def write_body(style, completion):
    """The body of a response in this style, as text."""
    make = READABLE.get(style) or BROKEN.get(style) or (WASTED.get(style) or FINAL[style])[0]
    body = make(completion)
    return body if isinstance(body, str) else json.dumps(body)
