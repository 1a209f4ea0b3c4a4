"""`raysft predict`: the answers for images that a person gave, as soon as they are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from raysft.console import Output
from raysft.data.decoding import Decoding
from raysft.data.folders import describe_files
from raysft.data.images import describe_quirks
from raysft.data.names import readable
from raysft.data.walk import FileCounts
from raysft.results.ranking import Failed, Prediction


def show_answers(
    answers: Iterable[Prediction | Failed],
    counted: Iterable[FileCounts],
    as_json: bool,
    output: Output,
    how: Decoding = Decoding(),
) -> int:
    """A line for each image of `Classifier.answers` as soon as it is known, or one document;
    returns how many failed.

    What failed is said on standard error, or in the document; what folders left out, and what was
    special about pixels, on standard error. how: the model reads images.
    """
    failed = 0
    document = []
    special: Counter[str] = Counter()
    for answer in answers:
        if isinstance(answer, Failed):
            failed += 1
        else:
            special.update(answer.notes)
        if as_json:
            document.append(answer.json())
        elif isinstance(answer, Failed):
            # Said where it comes: the images after it are still answered.
            output.errors(answer.error)
        else:
            output.line(_answer_line(answer))
    if as_json:
        output.json(document)
    # Once for all images: a folder of 16-bit images would have a line for each.
    for line in describe_quirks(special, how):
        output.warning(line)
    # Last, as folders are listed while their images are answered.
    for counts in counted:
        if counts.left_out:
            output.warning(f"{counts.folder}: {describe_files([counts])[0]}")
    return failed


def _answer_line(answer: Prediction) -> str:
    ranked = [f"{readable(name)} {share:.3f}" for name, share in answer.classes]
    return f"{readable(answer.image)}: {', '.join(ranked)}"
