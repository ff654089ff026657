"""Whether a text is positive: the weights of its words are added up. Nothing here knows the host."""

import math


class Sentiment:
    """A model, made of lines with a word and its weight."""

    def __init__(self, words: str, threshold: float):
        self.threshold = threshold
        self.weights = {}
        for number, line in enumerate(words.splitlines(), 1):
            word, _, weight = line.partition("\t")
            try:
                self.weights[word] = float(weight)
            except ValueError:
                raise ValueError(f"line {number} of words.tsv is not a word and a weight") from None

    def score(self, text: str) -> float:
        """From 0 for negative to 1 for positive."""
        words = ("".join(filter(str.isalpha, word)).lower() for word in text.split())
        return 1 / (1 + math.exp(-sum(self.weights.get(word, 0.0) for word in words)))

    def label(self, score: float) -> str:
        return "positive" if score >= self.threshold else "negative"
