"""Makes unicode.jsonl: hard texts with scikit-learn's scores, an oracle for the tokenizer.

    pip install -r ../../../models/toxicity/requirements.txt && python make_unicode.py

Every general category of Unicode is glued to, put between and put inside words that the
vocabulary knows, so that each code point shows whether it is a letter of a word; letters
whose lower case is special, and the final sigma, come on top. Reproducible.
"""
import collections
import json
import pathlib
import random
import unicodedata
from importlib import resources

import joblib

COUNT = 2500
WORDS = [("kill", "you"), ("stupid", "fool"), ("idiot", "moron"), ("pok\u00e9mon", "jos\u00e9"),
         ("\u03bc\u03b5\u03bb", "\u03b5\u03c4\u03b7\u03c4\u03b7\u03c2"), ("\u8ff7\u60d1", "\u9023\u7d61")]
FORMS = ["{a}{c}{b}", "{a} {c}{c} {b}", "{c}{a}{c}", "{A}{c}{b}", "s{c}tupid {b}", "{a}_{c} {b}",
         "\u0395\u03a4\u0397\u03a4\u0397\u03a3{c}A", "\u0395\u03a4\u0397\u03a4\u0397{c}\u03a3"]
SPECIAL = ("\u0130\u0131\u1e9e\u00df\u017f\u212a\u03a3\u03c3\u03c2\u212b\u2126\u01c5\u01c4\ufb01\ufb02\u1f88\u0345"
           "\u0149\u01f0\u2163\u24b6\u00aa\u00ba\u00b2\u00bd\u0663\u3007_\u203f\u02b0\u0301\u0308\u200b\u200c\u200d"
           "\u2060\ufeff\u00ad'\u2019.\u00b7:\u0085\u00a0\u2028\u3000\x01\x1c\x1f\x0b\x7f\U0001f3fb\ufe0f")


def texts():
    """Distinct texts without white space at their ends."""
    pick = random.Random(20240)
    categories = collections.defaultdict(list)
    for point in range(1, 0x110000):
        categories[unicodedata.category(chr(point))].append(chr(point))
    del categories["Cs"], categories["Cn"]  # surrogates are no text, unassigned ones change
    letters = [letter for letter in SPECIAL for _ in FORMS]
    while True:
        letter = letters.pop() if letters else pick.choice(categories[pick.choice(sorted(categories))])
        a, b = pick.choice(WORDS)
        form = FORMS[len(letters) % len(FORMS)] if letters else pick.choice(FORMS)
        text = form.format(a=a, A=a.upper(), b=b, c=letter)
        yield text if text == text.strip() else f"- {text} -"


def main():
    data = resources.files("profanity_check") / "data"
    vectorizer, model = joblib.load(data / "vectorizer.joblib"), joblib.load(data / "model.joblib")
    chosen = {}
    for text in texts():
        chosen[text] = None
        if len(chosen) == COUNT:
            break
    scores = model.predict_proba(vectorizer.transform(list(chosen)))[:, 1]
    lines = [json.dumps({"text": text, "score": round(float(score), 7)}) for text, score in zip(chosen, scores)]
    pathlib.Path(__file__).with_name("unicode.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
