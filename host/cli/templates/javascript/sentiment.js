// Whether a text is positive: the weights of its words are added up. Nothing here knows the host.

export class Sentiment {
  /** A model, made of lines with a word and its weight. */
  constructor(words, threshold) {
    this.threshold = threshold;
    this.weights = new Map();
    for (const [index, line] of words.trimEnd().split("\n").entries()) {
      const [word, weight] = line.split("\t");
      if (weight === undefined || weight.trim() === "" || Number.isNaN(Number(weight))) {
        throw new Error(`line ${index + 1} of words.tsv is not a word and a weight`);
      }
      this.weights.set(word, Number(weight));
    }
  }

  /** From 0 for negative to 1 for positive. */
  score(text) {
    // The engine has no Unicode classes such as \p{L}.
    const words = text.split(/\s+/).map((word) => word.toLowerCase().replace(/[^a-z]/g, ""));
    const sum = words.reduce((total, word) => total + (this.weights.get(word) ?? 0), 0);
    return 1 / (1 + Math.exp(-sum));
  }

  label(score) {
    return score >= this.threshold ? "positive" : "negative";
  }
}
