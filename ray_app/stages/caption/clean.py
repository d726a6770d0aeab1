"""Cleaning of model answers: answer -> caption, or the reason why there is none."""

import re
import unicodedata
from dataclasses import dataclass

VERSION = 1  # part of the recipe: raised when equal answers give other captions than before

STEPS = ("template", "prompt_echo", "repetition", "cut", "refusal", "empty")  # counted by name

_TEMPLATE = re.compile(
    r"<\|[^<>|]{1,40}\|>|</?(?:s|pad|bos|eos|unk|image|end_of_utterance|fake_token_around_image|global-img|row_\d+_col_\d+)>"
    r"|\[/?INST\]",
    re.IGNORECASE,
)
_ROLE = re.compile(r"^(?:assistant|caption|answer)\s*:\s*", re.IGNORECASE)
_NEXT_TURN = re.compile(r"\b(?:user|human|assistant)\s*:.*$", re.IGNORECASE | re.DOTALL)
_REFUSAL = re.compile(
    r"(?:i'?m|i am|we are|we're)?\s*(?:so |very )?sorry\b.{0,40}\b(?:can'?t|can ?not|unable|not able|don'?t|but)\b"
    r"|(?:i|we) (?:can'?t|can ?not|could ?n[o']t|am unable to|am not able to|do not|don'?t|won'?t)"
    r" (?:see|view|access|open|describe|identify|help|assist|provide|process|comply|fulfil|determine|have)"
    r"|(?:i'?m|i am) (?:unable|not able) to"
    r"|as an? (?:ai|language|artificial)\b"
    r"|(?:there is )?no (?:image|picture|photo) (?:was |is |has been )?(?:provided|attached|given|available|here)",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？।])\s*")
_SENTENCE_END = re.compile(r"[.!?。！？।](?=\s|$)|[。！？।]")
_LOOP = re.compile(r"(.{2,60}?)\1{2,}", re.DOTALL)  # three times the same in a row, also where no spaces are written
_DANGLING = {"a", "an", "the", "and", "or", "with", "of", "in", "on", "at", "to", "for", "by", "is", "that", "which"}
_MAX_PHRASE_WORDS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Cleaned:
    """One of caption and error is None."""

    caption: str | None
    error: str | None
    steps: tuple[str, ...]  # of STEPS: what was done to the answer


def clean_caption(answer: str, prompt: str, max_chars: int) -> Cleaned:
    """Clean a model's answer.

    Args:
        answer: As generated, without special tokens or with them.
        prompt: What the model was asked; an answer that starts with it loses it.
        max_chars: A longer caption is cut after its last whole sentence, or word.

    Returns:
        The caption on one line, NFKC, without a control character; or an error `refusal: ...` or `empty: ...`.
    """
    steps: list[str] = []

    def step(name: str, before: str, after: str) -> str:
        if _collapse(before) != after and name not in steps:
            steps.append(name)
        return after

    text = _collapse(unicodedata.normalize("NFKC", answer)[: 20 * max_chars])
    bare = _collapse(_TEMPLATE.sub(" ", text))
    bare = _NEXT_TURN.sub("", bare) if _NEXT_TURN.search(bare[1:]) and not _ROLE.match(bare) else _ROLE.sub("", bare)
    text = step("template", text, _collapse(bare))
    text = step("prompt_echo", text, _drop_echo(text, _collapse(unicodedata.normalize("NFKC", prompt))))
    if _REFUSAL.match(text.replace("\u2019", "'")):
        return Cleaned(caption=None, error=f"refusal: {text[:200]}", steps=(*steps, "refusal"))
    text = step("repetition", text, _drop_repeats(text))
    text = step("cut", text, _cut(text, max_chars))
    if not any(char.isalnum() for char in text):
        return Cleaned(caption=None, error="empty: the model said nothing", steps=(*steps, "empty"))
    return Cleaned(caption=text, error=None, steps=tuple(steps))


def _collapse(text: str) -> str:
    """One line without control or invisible characters (but joiners, which Indic scripts and emoji need)."""
    kept = (
        c if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn") or c in "\u200c\u200d" else " " for c in text
    )
    return " ".join("".join(kept).split())


def _drop_echo(text: str, prompt: str) -> str:
    while prompt and text.casefold().startswith(prompt.casefold()):
        text = text[len(prompt) :].lstrip(" :-")
    return text


def _drop_repeats(text: str) -> str:
    """Say each sentence once, and each phrase that is said over and over once."""
    seen: set[str] = set()
    sentences = []
    for sentence in _SENTENCE.split(text):
        key = sentence.casefold().strip(" .!?。！？।")
        if key and key not in seen:
            seen.add(key)
            sentences.append(sentence)
    glue = "" if re.search(r"[。！？]", text) else " "
    kept = _collapse(glue.join(sentences))
    return _collapse(_LOOP.sub(r"\1", " ".join(_drop_loops(kept.split()))))


def _drop_loops(words: list[str]) -> list[str]:
    """Phrases of 3 words or more said twice in a row, shorter ones three times: once; with the torn end of the loop."""
    folded = [word.casefold().strip(",;:") for word in words]
    at = 0
    while at < len(words):
        for size in range(1, min(_MAX_PHRASE_WORDS, (len(words) - at) // 2) + 1):
            phrase = folded[at : at + size]
            times = 1
            while folded[at + times * size : at + (times + 1) * size] == phrase:
                times += 1
            if times < (2 if size >= 3 else 3):
                continue
            end = at + times * size
            rest = folded[end:]
            looped_to_the_end = rest == phrase[: len(rest)]
            del words[at + size : len(words) if looped_to_the_end else end]
            del folded[at + size : len(folded) if looped_to_the_end else end]
            if looped_to_the_end:
                return _drop_dangling(words)
        at += 1
    return words


def _drop_dangling(words: list[str]) -> list[str]:
    while words and words[-1].casefold().strip(",;:") in _DANGLING:
        words = words[:-1]
    return words


def _cut(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    head = text[:max_chars]
    ends = [m.end() for m in _SENTENCE_END.finditer(head)]
    if ends and ends[-1] >= max_chars // 3:  # else one short sentence would stand for a long caption
        return head[: ends[-1]]
    if not text[max_chars].isspace() and " " in head:
        head = head.rpartition(" ")[0]
    return " ".join(_drop_dangling(head.split())).rstrip(",;:-")
