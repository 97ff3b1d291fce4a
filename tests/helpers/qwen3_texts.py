"""600 texts for a tokenizer, by kind: written by hand, and random ones of a fixed seed."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Sequence

SEED = 20250428
COUNTS = {
    "prose": 60,
    "contractions": 40,
    "whitespace": 60,
    "numbers": 40,
    "code": 40,
    "combining": 80,
    "emoji": 40,
    "East Asian": 40,
    "right to left": 30,
    "odd characters": 50,
    "punctuation": 30,
    "long": 20,
    "mixed": 70,
}
"""How many of each kind; 600 in all."""

_PROSE = (
    "",
    "a",
    "Alice was beginning to get very tired of sitting by her sister on the bank",
    "THE QUICK BROWN FOX jumps over The Lazy Dog.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Dès Noël où un zéphyr haï me vêt de glaçons würmiens",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío",
    "Příliš žluťoučký kůň úpěl ďábelské ódy",
    "Pchnąć w tę łódź jeża lub ośm skrzyń fig",
    "Pijamalı hasta yağız şoföre çabucak güvendi. İstanbul, ISPARTA, ıİiI",
    "Съешь же ещё этих мягких французских булок, да выпей чаю",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "Kæmi ný öxi hér, ykist þjófum nú bæði víl og ádrepa",
    "Do bạch kim rất quý nên sẽ dùng để lắp vô xương",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश",
    "আমি কাঁচ খেতে পারি, তাতে আমার কোনো ক্ষতি হয় না।",
    "நான் கண்ணாடி சாப்பிடுவேன்",
    "მინას ვჭამ და არა მტკივა",
    "Կրնամ ապակի ուտել և ինծի անհանգիստ չըներ",
    "ከሰማይ እስከ ምድር",
    "ខ្ញុំអាចញុំកញ្ចក់បាន ដោយគ្មានបញ្ហា",
    "ཤེལ་སྒོ་ཟ་ནས་ང་ན་གི་མ་རེད།",
    "ᚠᛇᚻ᛫ᛒᛦᚦ᛫ᚠᚱᚩᚠᚢᚱ",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝕞𝕒𝕥𝕙 𝓁ℯ𝓉𝓉ℯ𝓇𝓈 𝟘𝟙𝟚",
    "Straße STRASSE straſse ẞ ﬁ ﬂ ﬃ ŉ",
    "naïve façade Ångström Ωmega μm µm K Å",
    "e.g., i.e., Mr. O'Neill's co-op—re-elected; \u201cquoted\u201d, \u2018single\u2019\u2026",
)
_CONTRACTIONS = (
    "it's",
    "IT'S",
    "I'm I'M we're WE'RE they've THEY'VE she'll SHE'LL he'd HE'D can't CAN'T",
    "'s't're've'm'll'd",
    "''s '' 's",
    "don\u2019t can\u2019t it\u2019s",
    "rock 'n' roll, 'tis, '90s, y'all'd've",
    "x's'x 's' S's ss'",
    "l'homme d'accord qu'il s'est m'a t'ai",
    "'re'RE'Re'rE'ree",
    "a'sb'tc'llx'vex'dx'mx",
    "the dogs' bones' taste",
)
_NUMBERS = (
    "0",
    "1234567890",
    "3.14159265358979",
    "1,000,000.00",
    "-1e-10 +2E+5 0x1F 0b101 0o17",
    "١٢٣٤٥ ۰۱۲ ०१२ 一二三",
    "½ ⅓ ² ³ ¹ ₀ ⁵ Ⅷ ⅷ ① ㊿ 𝟛",
    "1st 2nd 3rd 4th",
    "10:30 2024-02-29T23:59:60Z",
    "v1.2.3-rc.4+build.5",
    "192.168.0.1:8080 ::1/128",
    "50% 20°C 5' 6\" £3 €4 ¥5 ₿6",
)
_CODE = (
    'def f(x: int) -> str:\n    return f"{x!r}"\n',
    "for (int i = 0; i < n; ++i) { a[i] <<= 2; }\n",
    "#include <stdio.h>\r\nint main(void)\r\n{\r\n\treturn 0;\r\n}\r\n",
    '<html lang="en"><!-- no --></html>\n\n\n',
    "SELECT * FROM t WHERE a='b''c' AND d IS NOT NULL;--",
    '{"a": [1, 2.5, null, true], "b\\n": "\\u00e9"}',
    "git commit -m 'x' && echo $HOME | sed 's/\\//_/g' > /dev/null 2>&1",
    "let r#type = &'static str; fn a<'a>(x: &'a str) {}",
    "\\begin{align} x_{1}^{2} &= \\frac{a}{b} \\\\ \\end{align}",
    "if x:\n\tif y:\n\t\tpass\n\t    # mixed\n",
    "@@ -1,3 +1,4 @@\n-old\n+new\n context\n",
    "a=>b??c?.d!==e||f&&!g;// TODO\n/* é */",
)
_EMOJI = (
    "😀",
    "👩\u200d👩\u200d👧\u200d👦 family",
    "👍🏽 👍🏿👍",
    "🏳️\u200d🌈🏴\u200d☠️",
    "🇩🇪🇫🇷🇯 🇵",
    "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "❤️ ❤ ❤\ufe0e ☺️☺",
    "1️⃣2️⃣#️⃣*️⃣",
    "🧑🏻\u200d❤️\u200d💋\u200d🧑🏿",
    "text😀text 😀 text😀\n😀",
    "🤷\u200d♂️🤦🏼\u200d♀️",
    "\U0001fae8\U0001fa77\U0001f9cc new ones",
)
_ASIAN = (
    "你好，世界！",
    "我能吞下玻璃而不傷身體。",
    "色は匂へど散りぬるを 我が世誰ぞ常ならむ",
    "カタカナ ｶﾀｶﾅ ひらがな ﾊﾟﾋﾟ",
    "나는 유리를 먹을 수 있어요.",
    "ㄱㄴㄷ 각 각 가",
    "中文English混排 test测试123",
    "「引用」、『本』。〜・ー々〇",
    "𠀀𠀁𪛖 𠮷野家",
    "ＡＢＣ１２３　！＂＃",
    "㍿㌀㈱㊙",
    "龍龜 﨑 神 神",
)
_LEFTWARD = (
    "שלום עולם",
    "שָׁלוֹם עֲלֵיכֶם",
    "مرحبا بالعالم",
    "السَّلَامُ عَلَيْكُمْ",
    "أنا قادر على أكل الزجاج و هذا لا يؤلمني.",
    "می\u200cخواهم ۱۲۳",
    "ab\u202edc\u202c ef \u200fgh\u200e",
    "\u2067שלום\u2069 abc \u2066x\u2069",
    "ﷺ ﷽ ﻻ",
    "اُردُو میں",
    "ܐܠܦ ܒܝܬ",
    "ދިވެހި",
)
_ODD = (
    "\x00",
    "a\x00b\x00\x00c",
    "\x01\x02\x03\x1b[0m\x7f",
    "\x80\x85\x9f\xa0\xad",
    "\ufeffBOM \ufeff",
    "\ufffd\ufffe\uffff\U0001ffff\U0010ffff",
    "\ue000\uf8ff\U000f0000\U00100000",
    "\u200b\u200c\u200d\u2060\u00ad",
    "\u2028\u2029",
    "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\x1fj",
    "\u0378\u0379 unassigned \U0001fffd",
    "\U000e0001\U000e0041",
    "Ġ Ċ ĉ č Ã© â\u0122",
    "[PAD151700] [UNK] <unk> <s> </s>",
)
_PUNCTUATION = (
    "!!!???...",
    "--- *** ___ ~~~ ===",
    "(a)[b]{c}<d>",
    "a/b\\c|d",
    "…‥•·‣ — – ‐ ‑ −",
    "«a» „b“ ‚c‘ ‹d›",
    "$$$ ### @@@ %%% ^^^ &&&",
    ".,;:!?¡¿",
    "∀x∈ℝ: x²≥0 ∧ ∃y ⇒ ∅ ⊆ ∞",
    "←↑→↓ ─│┌┐ ▁▂▃ ♠♥♦♣ ♪♫",
    " ?\n",
    " !\r\n\r\n",
    ".\n\n.\n",
)
_BASES = "aeiouAEIOUnNcCsSzZyYgGhHkKlLrRtTdDwWxX αεηιουωΑ иИгкК かきはウ क ড ক য"
_MARKS = (
    "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0315\u031b\u0323\u0324"
    "\u0325\u0327\u0328\u032d\u0331\u0338\u0342\u0345\u0358\u3099\u309a\u093c\u09bc\u0f71\u20dd"
)
_SPACES = (
    " ",
    "  ",
    "\t",
    "\n",
    "\r",
    "\r\n",
    "\xa0",
    "\u2003",
    "\u3000",
    "\x0b",
    "\x0c",
    "\u2028",
)
_WORDS = ("a", "I", "word", "Über", "x1", "42", "!", "...", "é", "中", "'s", "\u2019t", "_", "😀")
_RANGES = (
    (0x20, 0x7E),
    (0xA0, 0x24F),
    (0x370, 0x3FF),
    (0x400, 0x52F),
    (0x590, 0x6FF),
    (0x900, 0xDFF),
    (0x1E00, 0x1FFF),
    (0x2000, 0x206F),
    (0x2190, 0x27BF),
    (0x3040, 0x30FF),
    (0x4E00, 0x9FA5),
    (0xAC00, 0xD7A3),
    (0xF900, 0xFAD9),
    (0x1F300, 0x1F6FF),
)


def _prose(rng: random.Random) -> str:
    text = rng.choice(_PROSE[2:])
    start = rng.randrange(len(text))
    return rng.choice(("", " ", "\n")) + text[start : start + rng.randrange(1, 60)]


def _contractions(rng: random.Random) -> str:
    ends = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "'x", "''", "\u2019s", "'")
    return "".join(
        rng.choice(("we", "It", " they", "", "\n", "9", "é", ".")) + rng.choice(ends)
        for _ in range(rng.randrange(1, 8))
    )


def _whitespace(rng: random.Random) -> str:
    return "".join(
        rng.choice(_SPACES) * rng.choice((1, 1, 2, 3, 9)) + rng.choice((*_WORDS, "", ""))
        for _ in range(rng.randrange(1, 9))
    )


def _numbers(rng: random.Random) -> str:
    return "".join(
        rng.choice(("", " ", "-", ".", ",", "  ", "x"))
        + str(rng.randrange(10 ** rng.randrange(1, 18)))
        for _ in range(rng.randrange(1, 6))
    )


def _code(rng: random.Random) -> str:
    pieces = ("    ", "\t", "\n", "\r\n", "(", ")", "->", "::", "x", "foo_bar", "CamelCase", "0x7f")
    return "".join(
        rng.choice((*pieces, " ", "==", "!=", "/*", "//", '"', "'", "{};", "#"))
        for _ in range(rng.randrange(3, 30))
    )


def _combining(rng: random.Random) -> str:
    text = "".join(
        rng.choice(_BASES) + "".join(rng.choices(_MARKS, k=rng.choice((0, 1, 1, 2, 3))))
        for _ in range(rng.randrange(1, 12))
    )
    return (
        unicodedata.normalize(rng.choice(("NFC", "NFD", "NFKD")), text)
        if rng.random() < 0.4
        else text
    )


def _emoji(rng: random.Random) -> str:
    parts = (
        "😀",
        "👩",
        "\u200d",
        "\ufe0f",
        "🏽",
        "🇩",
        "🇪",
        "❤",
        " ",
        "a",
        "⃣",
        "1",
        "👍",
        "🧑",
        "\n",
    )
    return "".join(rng.choices(parts, k=rng.randrange(2, 20)))


def _asian(rng: random.Random) -> str:
    parts = [chr(rng.randrange(*rng.choice(_RANGES[9:13]))) for _ in range(rng.randrange(2, 30))]
    return "".join(parts) + rng.choice(("", "。", "，abc", "\n", " 12"))


def _leftward(rng: random.Random) -> str:
    letters = [chr(rng.randrange(0x590, 0x700)) for _ in range(rng.randrange(2, 30))]
    return "".join(
        c if rng.random() < 0.8 else rng.choice((" ", "a", "\u200f", "1")) for c in letters
    )


def _odd(rng: random.Random) -> str:
    kinds = (
        (0, 0x20),
        (0x7F, 0xA1),
        (0x2000, 0x2070),
        (0xE000, 0xE010),
        (0xFE00, 0xFE10),
        (0xFFF0, 0x10000),
        (0xE0000, 0xE0080),
        (0x10FFF0, 0x110000),
    )
    return "".join(
        chr(rng.randrange(*rng.choice(kinds))) if rng.random() < 0.6 else rng.choice(_WORDS)
        for _ in range(rng.randrange(1, 20))
    )


def _punctuation(rng: random.Random) -> str:
    marks = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~¡¿…—«»„“”‘’·°§¶†‡•←→∑√∞≠≤≥"
    return "".join(
        rng.choice(marks) if rng.random() < 0.8 else rng.choice((" ", "a", "\n", "1"))
        for _ in range(rng.randrange(2, 40))
    )


def _long(rng: random.Random) -> str:
    unit = rng.choice(
        ("a", "é", "e\u0301", "中", "😀", " ", "\n", "ab ", "0", "!", "'s", "\u0301", "A b\n")
    )
    return unit * rng.randrange(200, 2000)


def _mixed(rng: random.Random) -> str:
    return "".join(chr(rng.randrange(*rng.choice(_RANGES))) for _ in range(rng.randrange(1, 60)))


_KINDS: dict[str, tuple[Sequence[str], Callable[[random.Random], str]]] = {
    "prose": (_PROSE, _prose),
    "contractions": (_CONTRACTIONS, _contractions),
    "whitespace": ((), _whitespace),
    "numbers": (_NUMBERS, _numbers),
    "code": (_CODE, _code),
    "combining": ((), _combining),
    "emoji": (_EMOJI, _emoji),
    "East Asian": (_ASIAN, _asian),
    "right to left": (_LEFTWARD, _leftward),
    "odd characters": (_ODD, _odd),
    "punctuation": (_PUNCTUATION, _punctuation),
    "long": (("x" * 5000, "\u0301" * 999), _long),
    "mixed": ((), _mixed),
}


def texts(kind: str) -> list[str]:
    """Return the texts of a kind, those written by hand first."""
    by_hand, draw = _KINDS[kind]
    rng = random.Random(f"{SEED} {kind}")
    found = dict.fromkeys(by_hand)
    while len(found) < COUNTS[kind]:
        found[draw(rng)] = None
    return list(found)


def special_texts(names: Sequence[str]) -> list[str]:
    """Return 60 texts with names of tokens, whole, in part, beside each other and in words."""
    rng = random.Random(SEED)
    by_hand = [*names[:30], "<|im_start|>system\nYou.<|im_end|>\n"]
    found = dict.fromkeys(by_hand)
    between = (
        "",
        " ",
        "\n",
        "a",
        "<",
        "|>",
        "e\u0301",
        "\u0301",
        "é",
        "42",
        "'s",
        "<|im_",
        "<think",
        ">",
    )
    while len(found) < 60:
        text = "".join(rng.choice(between) + rng.choice(names) for _ in range(rng.randrange(1, 6)))
        found[text + rng.choice(between)] = None
    return list(found)
