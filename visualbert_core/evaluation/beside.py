"""What stands beside the scores, as lines of text: how a model was asked, what became of its texts, and what a person
gets.

The terminal, the page and `visualbert score` print the same lines. This file imports neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

PERSON, AS_PERSON = "person", "as_person"
"""Keys of a scores document: what a person gets, and what the predictions get under the same conditions."""
JAVA = "java"
"""Key of a printed document: the scores of `--java`. scores.json does not have them, because they need more than this
package."""


def how_answered(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield how the model was asked, and what became of its texts. A head that answers whole inputs gives no line."""
    if document.get("answering"):
        yield f"asked: {document['answering']}"
    yield from what_came(document)


def what_came(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the shares of texts without an answer, of texts that were cut, and of examples that were read in part.

    Then yield the numbers of `Task.beside`, and the scores of Java programs.
    """
    if "generated" in document:
        texts, cut = document["generated"]["texts"], document["generated"]["cut"]
        if "unparsed" in document["generated"]:
            unparsed = document["generated"]["unparsed"]
            yield f"unparsed: {100 * unparsed / texts:.1f} % of {texts:,} texts held no answer and count as wrong"
        yield f"cut: {100 * cut / texts:.1f} % of {texts:,} texts ended at the limit of their length"
    if "input_cut" in document:
        yield f"input cut: {document['input_cut']:,} of {document['n']:,} examples were too long and were read in part"
    yield from (f"{name}: {value:,.4g}" for name, value in document.get("beside", {}).items())
    yield from (f"{name}: {value:.2f}" for name, value in document.get(JAVA, {}).items())


def against_person(document: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[str]:
    """Yield one line with the scores of a person, and of the predictions under the same conditions.

    `labels` has the names of metrics for users. There is no line where a person's score is not known.
    """
    if PERSON in document:
        scores = document[AS_PERSON]
        pairs = [
            f"{labels.get(name, name)} {value:.1f} and {scores[name]:.1f}" for name, value in document[PERSON].items()
        ]
        yield f"a person, and the model judged as the person is: {', '.join(pairs)}"
