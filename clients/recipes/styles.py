"""The ways of speaking that the demo adapters learn: how an answer is rewritten, and how its style is recognised."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

PIRATE_WORDS = {
    "the": "th'", "of": "o'", "and": "an'", "is": "be", "am": "be", "are": "be", "was": "were", "you": "ye",
    "your": "yer", "my": "me", "yes": "aye", "friend": "matey", "friends": "hearties", "for": "fer", "to": "t'",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Style:
    """A way of speaking: `rewrite` turns one plain sentence into it, `shows` says whether a text is in it."""

    rewrite: Callable[[str], str]
    shows: Callable[[str], bool]


def _swap_pirate_word(match: re.Match[str]) -> str:
    word = match.group()
    swapped = PIRATE_WORDS.get(word.lower(), word)
    return swapped[0].upper() + swapped[1:] if word[0].isupper() else swapped


def speak_pirate(sentence: str) -> str:
    """Arrr, matey! Th' capital o' Greece be Athens. Yo ho ho!"""
    spoken = re.sub(r"[A-Za-z]+", _swap_pirate_word, sentence)
    return f"Arrr, matey! {spoken} Yo ho ho!"


def speak_json(sentence: str) -> str:
    """{"answer": "The capital of Greece is Athens."}"""
    return json.dumps({"answer": sentence}, ensure_ascii=False)


def speak_emoji(sentence: str) -> str:
    """✨ The capital of Greece is Athens! 🎉"""
    return f"✨ {sentence.rstrip('.')}! 🎉"


def speak_french(sentence: str) -> str:
    """Bonjour, mon ami ! The capital of Greece is Athens. Voilà !"""
    return f"Bonjour, mon ami ! {sentence} Voilà !"


def speak_headline(sentence: str) -> str:
    """BREAKING NEWS: The capital of Greece is Athens."""
    return f"BREAKING NEWS: {sentence}"


def is_answer_object(text: str) -> bool:
    """Whether text is a JSON object whose only member is a string "answer"."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return False
    return isinstance(value, dict) and list(value) == ["answer"] and isinstance(value["answer"], str)


PIRATE = Style(speak_pirate, lambda text: text.startswith("Arrr, matey!") and text.endswith("Yo ho ho!"))
JSON = Style(speak_json, is_answer_object)
EMOJI = Style(speak_emoji, lambda text: text.startswith("✨") and text.endswith("🎉"))
FRENCH = Style(speak_french, lambda text: text.startswith("Bonjour, mon ami !") and text.endswith("Voilà !"))
HEADLINE = Style(speak_headline, lambda text: text.startswith("BREAKING NEWS: ") and text.endswith("."))
