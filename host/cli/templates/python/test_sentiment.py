import json
import unittest

from sentiment import Sentiment


class SentimentTest(unittest.TestCase):
    def setUp(self):
        with open("assets/words.tsv") as words:
            self.model = Sentiment(words.read(), 0.5)

    def test_golden_examples(self):
        with open("golden.jsonl") as lines:
            for example in map(json.loads, lines):
                score = self.model.score(example["inputs"]["text"])
                self.assertAlmostEqual(score, example["outputs"]["score"], places=6)
                self.assertEqual(self.model.label(score), example["outputs"]["label"])

    def test_line_without_weight(self):
        with self.assertRaisesRegex(ValueError, "line 2"):
            Sentiment("good\t1\nbad", 0.5)


if __name__ == "__main__":
    unittest.main()
