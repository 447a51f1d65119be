"""The one exception that a user is meant to read.

Its message is a single line: what was found, what was expected, what to do. The commands print it
and exit with code 2; everything else that escapes is a bug and keeps its traceback.
"""

PREFIX = "flamingo-lite: "
"""What the line of a failure begins with in the terminal."""

# Why a sample was not used: the words under which it is counted, in metrics, checks and rejects.jsonl alike. The
# second half is what only a conversion says, of data that are not shards yet.
REASONS = {
    "truncated": "the shard ends before the sample does",
    "tar": "the bytes are no plain tar where the sample should stand",
    "member": "a member has a name that leaves the archive, or is named by the sample and cannot be had",
    "duplicate": "a key, a member or a field comes twice",
    "bytes": "the sample, or a member of it, is larger than the limit",
    "json": "the sample has no json, or one that is not JSON",
    "layout": "the JSON is no interleaved document",
    "text": "a text is empty or no str, cannot be encoded, or is longer than the limit",
    "images": "the document has more images than the limit",
    "image": "an image is no JPEG, PNG or WebP, or is not whole",
    "no_labels": "none of its tokens is trained on",
    "role": "a text of a conversation is of no known role, or of none",
    "turns": "the turns of a conversation are in no order that there can be, such as one that ends with a question",
    "answer": "an answer is empty",
    "episode": "it names no task, or there are too few other documents of its task that share no image with it",
    "too_long": "not even the first answer of a conversation lies within max_length",
    "pixels": "an image has more pixels than the limit",
    "missing": "an image is not where the images are",
    "reference": "what it refers to is not there: an image's or a question's id, the number of a choice",
    "path": "the name of an image leads out of the folder of images",
    "marks": "a text holds <image> or <|endofchunk|>, or not as many <image> as there are images",
    "small_image": "an image has fewer bytes or pixels than the filter wants",
    "large_image": "an image has more pixels than the filter wants",
    "aspect": "an image is too long for its width, or too wide",
    "similarity": "an image is less like its text than the filter wants",
    "single_image": "the document has one image, and is not in the share of these that stays",
    "denied": "an image is on the deny-list, or looks like one that is",
}


class FlamingoError(Exception):
    """A failure that the user can mend: bad input, a missing file, a wrong name."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class Interrupted(FlamingoError):
    """A signal has stopped the run, which can be continued. The exit code is that of a program ended by SIGTERM."""

    exit_code = 143


class SampleError(FlamingoError):
    """One sample cannot be used; the others can. `reason`: the word under which it is counted, as in `REASONS`."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["SampleError"], tuple[str, str]]:
        return type(self), (str(self), self.reason)  # worker processes send it home


def first_line(error: BaseException) -> str:
    """What an exception says, short enough for a message of one line."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
