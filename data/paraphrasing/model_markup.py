"""Removal of what chat models write around an answer: their reasoning, and the special tokens of their templates.

A server that knows a model's template removes both. Others pass them on as text, in the form that the model was
trained with.
"""

import re

REASONING_NAMES = "think|thinking|thought|thoughts|reasoning|reason|reflection|analysis|scratchpad|seed:think"
OPENING = re.compile(
    rf"<(?:{REASONING_NAMES})>|\[THINK\]|◁think▷|<\|(?:begin_of_thought|START_THINKING)\|>", re.IGNORECASE
)
"""Pattern of the beginning of a model's reasoning, as written by DeepSeek R1, Qwen and others in <think>, Magistral in
[THINK], Kimi in ◁think▷, and Command A in <|START_THINKING|>.
"""

CLOSING = re.compile(
    rf"</(?:{REASONING_NAMES})>|\[/THINK\]|◁/think▷|<\|(?:end_of_thought|END_THINKING)\|>", re.IGNORECASE
)
"""Pattern of the end of a model's reasoning."""

FINAL_CHANNEL = re.compile(r"<\|channel\|>\s*final\b[^<]*<\|message\|>")
OTHER_CHANNEL = re.compile(
    r"(?:<\|start\|>\s*\w*\s*)?<\|channel\|>(?!\s*final\b)[^<]*<\|message\|>.*?(?:<\|end\|>|<\|return\|>|\Z)", re.DOTALL
)
"""Pattern of a message of gpt-oss (the harmony format) that is not the answer, such as its analysis."""

ROLE = r"(?:system|user|human|tool|ipython)"
NEXT_TURN = re.compile(
    rf"(?:<\|(?:im_start|start|header_start|start_of_role)\|>|<start_of_turn>)\s*{ROLE}\b"
    rf"|<\|start_header_id\|>\s*{ROLE}|<[|\uff5c]{ROLE}[|\uff5c]>|<\uff5cUser\uff5c>|(?<!\w)\[INST\]",
    re.IGNORECASE,
)
"""Pattern of the beginning of a turn that isn't the model's: it has gone on to write what a user might say next."""

HEADER = re.compile(
    r"(?:<\|(?:im_start|start|start_header_id|header_start|start_of_role)\|>|<start_of_turn>)\s*(?:assistant|model)\b"
    r"|(?:\A|(?<=>))\s*assistant\s*\n(?=\s*\S)",
    re.IGNORECASE,
)
"""Pattern of the beginning of the model's turn, with its role."""

SPECIAL_TOKEN = re.compile(
    r"<[|\uff5c][^|\uff5c<>\n]{1,40}[|\uff5c]>"  # <|im_end|>, <|eot_id|>, <|endoftext|>, DeepSeek's with other bars
    r"|<\|(?:im_end|eot_id|end|endoftext)\b(?!\|>)"  # cut off within the token
    r"|</?s>|<(?:eos|bos|pad|unk)>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|<seed:(?:eos|bos)>|\[e~\[|<\[?EOT\]?>"
    r"|</?(?:answer|final_answer|output|response|solution)>",
    re.IGNORECASE,
)
"""Pattern of a template's token: ChatML (Qwen, Yi), Llama 3 and 4, Phi, GLM, Command, DeepSeek, Llama 2 and Mistral,
Gemma, and the tags that some models put around their answer.
"""


def strip_markup(text: str) -> str:
    """Return a model's answer without its reasoning and without the special tokens of its chat template, such as
    <|im_end|>; '' if nothing else is left. A turn of the user that the model wrote after its answer is removed as well.
    """
    text = remove_reasoning(select_final_message(text))
    if match := NEXT_TURN.search(text):
        before = SPECIAL_TOKEN.sub("", HEADER.sub("", text[: match.start()]))
        text = text[: match.start()] if before.strip() else text[match.end() :]
    return SPECIAL_TOKEN.sub("\n", HEADER.sub("\n", text)).strip()


def has_reasoning(text: str) -> bool:
    """Return whether the text of a chat model's answer contains its reasoning, such as a <think> block."""
    return bool(OPENING.search(text) or CLOSING.search(text) or OTHER_CHANNEL.search(text))


def remove_reasoning(text: str) -> str:
    """Return the text of a chat model's answer without blocks of reasoning, such as <think>...</think>. The first block
    may lack its beginning, which many chat templates write themselves; a block without an end reaches to the end of the
    text.
    """
    answer: list[str] = []
    depth = start = 0
    marks = [(match, 1) for match in OPENING.finditer(text)] + [(match, -1) for match in CLOSING.finditer(text)]
    for match, step in sorted(marks, key=lambda mark: mark[0].start()):
        if depth == 0:
            if step < 0:
                answer.clear()  # an end without a beginning: everything before it is reasoning
            else:
                answer.append(text[start : match.start()])
        depth = max(0, depth + step)
        start = match.end()
    return "".join(answer) if depth else "".join([*answer, text[start:]])


def select_final_message(text: str) -> str:
    """Return the answer in a text of gpt-oss, which writes messages on named channels: the last message on the channel
    'final' or, without one, the text outside the other channels' messages. Any other text is returned unchanged.
    """
    if finals := list(FINAL_CHANNEL.finditer(text)):
        return text[finals[-1].end() :]
    return OTHER_CHANNEL.sub("", text)
