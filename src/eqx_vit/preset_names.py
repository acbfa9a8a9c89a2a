"""Which presets a name may mean that is none."""

import difflib
import functools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from eqx_vit.layers.config import no_type_check

_LONGEST_NAME = 80
# What official codes call sizes and families, in the presets' words.
_WORDS = {
    "t": "tiny",
    "ti": "tiny",
    "s": "small",
    "m": "medium",
    "b": "base",
    "l": "large",
    "h": "huge",
    "g": "giant",
    "gvt": "svt",
}
# Names of official codes that do not say which preset they are.
_OFFICIAL_NAMES = {
    "cait_XXS24": "cait_xxs24_384",
    "cait_XXS36": "cait_xxs36_384",
    "cait_S24": "cait_s24_384",
    "nest_tiny_s196_224": "nest_tiny_jx",
    "nest_small_s196_224": "nest_small_jx",
    "nest_base_s196_224": "nest_base_jx",
    "deit_small_patch16_LS": "deit3_small_patch16_224",
    "deit_medium_patch16_LS": "deit3_medium_patch16_224",
    "deit_base_patch16_LS": "deit3_base_patch16_224",
    "deit_large_patch16_LS": "deit3_large_patch16_224",
    "deit_huge_patch14_LS": "deit3_huge_patch14_224",
}


def find_near_names(name: str, known: Iterable[str]) -> list[str]:
    """Up to three presets that a name may mean, the likeliest first: case, separators and order do not count."""
    name = name[:_LONGEST_NAME]
    presets = {preset: _words(preset) for preset in known}
    counts = Counter(word for words in presets.values() for word in set(words))
    # A word says the more, the fewer presets have it; numbers are often another size of the same model.
    weights = {word: math.log((len(presets) + 1) / n) / (2 if word.isdigit() else 1) for word, n in counts.items()}
    words = _regroup(_words(name), weights)
    scores = {preset: _score(words, own, weights) for preset, own in presets.items()}
    scores |= {preset: 1.0 for official, preset in _OFFICIAL_NAMES.items() if words == _words(official)}
    near = [preset for preset, score in scores.items() if score > 0.3]
    return sorted(near, key=lambda preset: -scores[preset])[:3]


@no_type_check
def _words(name: str) -> list[str]:
    """The words and numbers of a name, without the tag of a checkpoint or the ending of a file."""
    plain = re.sub(r"\.[a-z]\w*$", "", name.lower()).replace("++", " pp ")
    words: list[str] = re.findall(r"[a-z]+|[0-9]+", plain)
    return [_WORDS.get(word, word) for word in words]


@no_type_check
def _regroup(words: Iterable[str], known: Collection[str]) -> list[str]:
    """The words with those that are not known joined or split into known ones: `cross vit`, `simplevit`."""
    result: list[str] = []
    for word in words:
        if result and result[-1] not in known and result[-1] + word in known:
            result[-1] += word
        elif word in known:
            result.append(word)
        else:
            halves = ([*_words(word[:end]), *_words(word[end:])] for end in range(1, len(word)))
            result += next((pair for pair in halves if all(half in known for half in pair)), [word])
    return result


@no_type_check
def _score(words: Iterable[str], preset: Iterable[str], weights: Mapping[str, float]) -> float:
    """How much of a name and of a preset's name is the same, from 0 to 1; what the name lacks counts little."""
    most = max(weights.values())
    given, own = sum(weights.get(word, most) for word in words), sum(weights[word] for word in preset)
    left, unsure, same = Counter(preset), [], 0.0
    for word in words:
        if left[word]:
            left[word] -= 1
            same += weights[word]
        else:
            unsure.append(word)
    for word in unsure:
        likeness = {other: _likeness(word, other) * weights[other] for other in left.elements()}
        nearest = max(likeness, key=lambda other: likeness[other], default="")
        if likeness.get(nearest):
            left[nearest] -= 1
            same += likeness[nearest]
    return same / (0.8 * given + 0.2 * own) if given else 0.0


@functools.lru_cache
@no_type_check
def _likeness(word: str, other: str) -> float:
    """How much a word may be a misspelt other, or a size of images mean the nearest; 0 for words that differ."""
    if word.isdigit() and other.isdigit():
        small, large = sorted((int(word), int(other)))
        return 0.0 if small < 100 else (small / large) ** 2 / 2
    ratio = difflib.SequenceMatcher(None, word, other).ratio()
    return ratio if ratio >= 0.8 else 0.0
