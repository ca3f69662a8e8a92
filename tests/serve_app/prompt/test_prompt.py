"""Normalisation: one meaning, one prompt; idempotent and total on any text."""
# ruff: noqa: RUF001, RUF003 - these tests are about look-alike characters

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import unicodedata
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serve_app.core import PromptRules
from serve_app.prompt import folding
from serve_app.prompt import prompt as module
from serve_app.prompt.prompt import normalise, trace

ON = PromptRules()
SWITCHES = [each.name for each in dataclasses.fields(PromptRules) if each.type == "bool"]
ALL_RULES = [
    PromptRules(**dict.fromkeys(off, False)) for n in (0, 1, 2, 6) for off in itertools.combinations(SWITCHES, n)
]

NASTY = (
    "aAbß \t\n.,:;!?\"'“”„‘’«»…、。！？　"  # punctuation and quotes of every style, ASCII and wide
    "\u200b\u200d\u00ad\ufe0f\u2028\x00\x1f\x85"  # invisible and control characters
    "\u0301\u0308\u0323\u0338\u0345\u0344\u00a8\u037a"  # combining marks, and characters that decompose into them
    "\u0390\u01f0\u1e96\u1fb4\u0130\u0131\u0149\ufb00\u338f"  # letters that case folding or NFKC take apart
    "\u1100\u1161\u11a8\uac00אبश\ud800\udc00\U0001f469\U0001f680"  # Hangul jamo, RTL, Indic, lone surrogates, emoji
)
SHOWN = re.compile("[\u200c\u200d\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd\U00013430-\U0001343f]")
any_text = st.one_of(st.text(), st.text(st.characters()), st.text(NASTY, max_size=20))
any_rules = st.sampled_from(ALL_RULES)
PIECES = [
    "generate a video of ", "please make a clip showing ", "make a video: ", "生成一个", "请", "的视频",
    "视频,内容是", "看", "the cat", "Colour", "grey", "pianno", "naemd ", "named ", "名叫", "\"", "'", "“", "‘",
    "「", "」", ",", ".", "。", "、", "…", "-", "--", "—", "–", " ", "5", "½", "²", "3.5", "貓", "薴", "が",
    "\u200b", "\u200d", "\ufe0f", "\U0001f469", "!", "?", ":", "OPEN", "ŉ", "İ", "\u0301", "\ue000", "`", "\u2044",
    "\U0001f3f4", "\U000e0067\U000e007f", "it ", "in ",
]  # fmt: skip
mixtures = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)

FOLDED = {
    "stray marks: stray quotes": ('"A cat playing piano', "a cat playing piano"),
    "stray marks: bangs": ("A cat playing piano!!", "a cat playing piano"),
    "stray marks: both": ('"a cat playing piano"!!', "a cat playing piano"),
    "blanks": ("  a  cat\tplaying \n piano ", "a cat playing piano"),
    "case": ("A Cat PLAYING Piano", "a cat playing piano"),
    "full-width": ("Ａ　ｃａｔ！", "a cat"),
    "curly quotes": ("“a cat playing piano”", "a cat playing piano"),
    "zero width": ("a c\u200bat\ufeff play\u00ading", "a cat playing"),
    "composed": ("cafe\u0301", "café"),
    "ligature": ("a ﬁsh", "a fish"),
    "nested quotes": ("\"'a cat'\"", "a cat"),
    "ellipsis": ("a cat…", "a cat"),
    "repeated inside": ("a cat!!! and a dog", "a cat! and a dog"),
    "spaced repeats": ("a cat. . . and a dog", "a cat. and a dog"),
    "control characters": ("a\x00 cat\x1b", "a cat"),
    "Chinese full stops": ("一只猫在弹钢琴。。", "一只猫在弹钢琴"),
    "Chinese bangs": ("一只猫在弹钢琴！！", "一只猫在弹钢琴"),
    "Chinese quotes": ("“一只猫在弹钢琴”", "一只猫在弹钢琴"),
    "Chinese spaces": ("\u3000一只猫\u3000在弹钢琴\u3000", "一只猫 在弹钢琴"),
    "Chinese list": ("猫、、狗，，鸟", "猫,狗,鸟"),
    "spelling": ("a grey cat of many Colours", "a gray cat of many colors"),
    "wrapper": ("Please generate a video of a cat!", "a cat"),
    "Chinese wrapper": ("请生成一个猫在弹钢琴的视频", "猫在弹钢琴"),
    "traditional": ("一隻貓在彈鋼琴", "一只猫在弹钢琴"),
    "typo": ("a cat on a pianno", "a cat on a piano"),
    "dash": ("a cat—asleep", "a cat - asleep"),
    "commas": ("a cat,a dog , a bird", "a cat, a dog, a bird"),
    "single quotes": ("a sign 'OPEN Late'", 'a sign "OPEN Late"'),
    "emoji style": ("a ❤️", "a ❤"),
    "fraction": ("½ cup", "1/2 cup"),
    "nothing left": ('"!!"', ""),
}

KEPT_APART = {
    "a leading point": (".5 litres of milk", "5 litres of milk"),
    "flags made of tags": (
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f waves",
        "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f waves",
    ),
    "inner quotes": ('a sign that says "open" at night', "a sign that says open at night"),
    "apostrophe": ("the cats' house", "the cats house"),
    "inner punctuation": ("cat, dog", "cat dog"),
    "ratio": ("a 16:9 screen", "a 169 screen"),
    "order": ("a dog chases a cat", "a cat chases a dog"),
    "accents": ("a résumé", "a resume"),
    "written words": ("a sign 'OPEN'", "a sign 'Open'"),
    "decimals": ("3.5 litres", "35 litres"),
    "half": ("1½ litres", "11/2 litres"),
    "powers": ("10² stars", "102 stars"),
    "negative powers": ("10⁻³ stars", "10-3 stars"),
    "sharp s": ("Maße", "Masse"),
    "a capital of an unknown word": ("a man with Pianno", "a man with pianno"),
    "minus": ("−5 degrees", "5 degrees"),
    "plural": ("cats", "cat"),
    "hyphen": ("a man-eating shark", "a man eating shark"),
    "preposition": ("a cat on a box", "a cat in a box"),
    "separating comma": ("a car, no people", "a car no people"),
    "left": ("the camera pans left", "the camera pans right"),
    "known words": ("a bat in a hat", "a cat in a hat"),
    "unit": ("10 cm", "10 mm"),
    "family": ("👨‍👩‍👧", "👨👩👧"),
    "skin": ("👍🏽", "👍"),
    "negation": ("a cat with no hat", "a cat with hat"),
    "Chinese": ("一只猫", "两只猫"),
    "word border": ("a light house", "a lighthouse"),
}


@pytest.mark.parametrize(("raw", "canonical"), FOLDED.values(), ids=FOLDED)
def test_forms_of_one_meaning_fold(raw: str, canonical: str) -> None:
    """Spelling differences that carry no meaning disappear, in English and in Chinese."""
    assert normalise(raw, ON) == canonical


@pytest.mark.parametrize(("one", "other"), KEPT_APART.values(), ids=KEPT_APART)
def test_different_meanings_stay_apart(one: str, other: str) -> None:
    """Differences that carry meaning survive: what would be a wrong hit is not folded."""
    assert normalise(one, ON) != normalise(other, ON)


@given(any_text | mixtures, any_rules)
@example("\u0390", ON)  # folding takes it apart, NFKC puts it together
@example("a\u200d\u0308", ON)  # composes only after something invisible has gone
@example("\"'\"a'\"'", ON)
def test_idempotent_and_total(text: str, rules: PromptRules) -> None:
    """Any text whatever has a canonical form, and not one step changes that form again."""
    once = normalise(text, rules)
    again = trace(once, rules)
    assert again.text == once
    assert again.changes == ()


@given(st.text(NASTY, max_size=24) | mixtures, any_rules)
def test_the_bound_on_rounds_is_never_what_stops(text: str, rules: PromptRules) -> None:
    """Nine rounds give what twelve give, as the comment at the bound argues."""
    with mock.patch.object(module, "_ROUNDS", 9):
        nine = trace(text, rules)
    assert nine == trace(text, rules)


@given(any_text, any_rules)
def test_changes_link_up(text: str, rules: PromptRules) -> None:
    """Every step starts where the one before ended, changes something, and the last one ends at the result."""
    result = trace(text, rules)
    links = [text, *(change.after for change in result.changes)]
    assert [change.before for change in result.changes] == links[:-1]
    assert links[-1] == result.text
    assert all(change.before != change.after for change in result.changes)


@given(any_text)
def test_canonical_text_is_clean(text: str) -> None:
    """The canonical form is NFC, printable but for what spells, single-spaced, trimmed, and UTF-8 can carry it."""
    result = normalise(text, ON)
    assert unicodedata.is_normalized("NFC", result)
    assert result == " ".join(result.split())
    assert not any(unicodedata.category(char) in ("Cc", "Cf", "Cs") for char in SHOWN.sub("", result))
    assert result.encode().decode() == result


@given(any_text, st.sampled_from(["quotes", "bang", "blanks", "zero width"]))
def test_noise_around_a_prompt_does_not_matter(text: str, noise: str) -> None:
    """A canonical prompt comes back from what people do to prompts: quotes, bangs, blanks, invisible text."""
    plain = normalise(text.replace('"', "").replace("'", ""), ON)
    if any(quote in plain for quote in "\"'"):  # NFKC makes quotes of other characters
        return
    noisy = {
        "quotes": f'"{plain}"',
        "bang": f"{plain}!!",
        "blanks": f"  {plain}\n",
        "zero width": f"\u200b{plain}\ufeff",
    }[noise]
    assert normalise(noisy, ON) == plain


@given(st.text(st.characters(max_codepoint=0x24F, exclude_characters="ıß\"'`´«»")))  # ı is not i, nor ß ss
def test_capitals_do_not_matter(text: str) -> None:
    """Latin text outside quotes, shouted or not, has one canonical form."""
    assert normalise(text.upper(), ON) == normalise(text, ON)


def test_rules_switch_steps_off() -> None:
    """A model whose text encoder sees case or edge punctuation keeps them."""
    raw = '"A Cat!"'
    assert normalise(raw, PromptRules(fold_case=False)) == "A Cat"
    assert normalise(raw, PromptRules(fold_edge_punctuation=False)) == '"A Cat!"'
    assert normalise('"A Cat"', PromptRules(fold_case=False, fold_edge_punctuation=False)) == '"A Cat"'
    for switch, text in (("spelling", "grey"), ("wrappers", "make a video of a cat"), ("typos", "a pianno")):
        assert normalise(text, PromptRules(**{switch: False})) == text != normalise(text, ON)


def test_trace_names_the_steps() -> None:
    """`explain` shows which steps changed the prompt, in order, and leaves out those that did not."""
    steps = [change.step for change in trace("“A  cat!!”", ON).changes]
    assert steps == ["quotes", "blanks", "edges", "case"]
    steps = [change.step for change in trace("Please make a video of a grey pianno ,  on ice", ON).changes]
    assert steps == ["blanks", "case", "punctuation", "wrapper", "spelling", "typos"]
    assert trace("a cat", ON).changes == ()


def test_right_to_left_text_keeps_its_order() -> None:
    """Direction marks go, letters stay in logical order."""
    assert normalise("\u202bחתול מנגן\u200f בפסנתר!\u202c", ON) == "חתול מנגן בפסנתר"


HOSTILE = [
    "a cat ", "é!", ". ,", "\"'", "a\u200b", "\u0301\u0323", "猫。", ".   .", "\ud800", "'a ", "\"a\" ", "— ", "- ",
    "1½", "a video of ", "generate a video of ", "生成一个", "的视频", "看", "xqzzy ", "a'b'", " 'a", "10²",
    "\U0001f469\u200d", "1,", "ŉ",
]  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
def test_a_hundred_kilobytes_of_anything(unit: str) -> None:
    """Long and hostile prompts end: a quadratic step would need 10^10 operations on one of these."""
    text = "x" + unit * (100_000 // len(unit))
    once = normalise(text, ON)
    assert normalise(once, ON) == once


def test_runs_of_marks_are_sorted_before_they_reach_cpython() -> None:
    """CPython's NFKC inserts marks one by one, so each run it is given is already in canonical order."""
    given_to_nfkc: list[str] = []
    real = unicodedata.normalize

    def record(form: str, text: str) -> str:
        given_to_nfkc.append(text)
        return real(form, text)

    marks = "a" + "\u0301\u0323" * 1_500
    with mock.patch.object(folding.unicodedata, "normalize", record):
        result = normalise(marks, ON)
    assert given_to_nfkc
    for text in given_to_nfkc:
        classes = [unicodedata.combining(char) for char in text[1:]]
        assert classes == sorted(classes)
    assert result == real("NFKC", marks)


def test_time_grows_with_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen times the text takes no more rounds: each is linear, so the whole is."""
    for unit in HOSTILE:
        rounds = []
        for length in (2_000, 32_000):
            text = "x" + unit * (length // len(unit))
            count = mock.Mock(side_effect=folding.blanks)
            monkeypatch.setattr(folding, "blanks", count)
            module.Normaliser(ON).trace(text)
            monkeypatch.undo()
            rounds.append(count.call_count)
        assert rounds[0] == rounds[1] <= 4, unit


def test_every_process_agrees() -> None:
    """Another process, with another hash seed, gives the same form, the same corrections and the same rules."""
    prompts = [typed for typed, _ in FOLDED.values()] + ["an elehpant on a pianno", "a 'B C' 貓"]
    code = (
        "import json, sys; from serve_app.core import PromptRules; from serve_app.prompt.prompt import Normaliser\n"
        "n = Normaliser(PromptRules(), vocabulary={'pikachu', 'togepi', 'eevee'})\n"
        "print(n.rules.version, [n.trace(p) for p in json.load(sys.stdin)])"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(prompts), env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2", "77")
    }  # fmt: skip
    mine = module.Normaliser(ON, vocabulary={"pikachu", "togepi", "eevee"})
    assert told == {f"{mine.rules.version} {[mine.trace(prompt) for prompt in prompts]}\n"}


def test_revision_guards_the_rules() -> None:
    """What the rules make of these prompts is in people's keys: if this changes, bump the revision in PromptRules."""
    assert ON.version.startswith("3:")
    forms = "\n".join(normalise(typed, ON) for pair in KEPT_APART.values() for typed in pair)
    assert hashlib.sha256(forms.encode()).hexdigest()[:16] == "423c66bf2b40308b"


def test_rules_without_tables_read_none() -> None:
    """Importing and folding load no dictionary, no OpenCC and no torch: the command line starts quickly."""
    code = (
        "import sys; from serve_app.prompt.prompt import normalise; from serve_app.core import PromptRules\n"
        "normalise('a cat', PromptRules(typos=False, spelling=False)); import serve_app.prompt.words as words\n"
        "print(words.english.cache_info().currsize, sorted({'torch', 'opencc', 'symspellpy'} & {*sys.modules}))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "0 []\n"


def test_load_leaves_nothing_to_load() -> None:
    """After `load` every table is in memory, so that no request waits for one."""
    code = (
        "import sys; from serve_app.prompt.prompt import Normaliser; from serve_app.core import PromptRules\n"
        "Normaliser(PromptRules()).load(); from serve_app.prompt import chinese, spelling, words\n"
        "print([each.cache_info().currsize for each in (chinese._converter, spelling.table, words.english)])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "[1, 1, 1]\n"
