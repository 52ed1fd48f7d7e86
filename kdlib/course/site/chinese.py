"""Search in Chinese: text and query are cut into pairs of characters, so that no word list is needed.

That of Sphinx 9.0 ends with `ChineseStemmer is not defined` in the browser.
"""

import re

from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish


class SearchPairs(SearchEnglish):
    """Of 知识蒸馏 it knows 知识, 识蒸 and 蒸馏; words in Latin letters are as in English."""

    lang = "zh"
    js_splitter_code = r"""
function splitQuery(query) {
  return (query.match(/[\u4e00-\u9fff]+|[\w\u00c0-\u024f]+/g) || []).flatMap(
    (word) => /[\u4e00-\u9fff]/.test(word) && word.length > 2
      ? Array.from({ length: word.length - 1 }, (_, k) => word.slice(k, k + 2)) : [word]);
}
"""

    def split(self, input: str) -> list[str]:
        """The terms of a text."""
        words = re.findall(r"[\u4e00-\u9fff]+|[^\W\u4e00-\u9fff]+", input)
        return [term for word in words for term in (bigrams(word) if word[0] >= "\u4e00" else [word])]


def bigrams(word: str) -> list[str]:
    """The neighbours in a word, or the word itself."""
    return [word[k : k + 2] for k in range(len(word) - 1)] or [word]


def setup(app: Sphinx) -> dict[str, bool]:
    """Put it in the place of Sphinx's own."""
    app.add_search_language(SearchPairs)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
