"""One request that is being served: how far its prompt and its reply are."""

from moetune.engine.sequence_context import RowToken, SequenceContext
from moetune.engine.serving import Finish, SequenceRequest
from moetune.engine.serving_text import TextTail


class Sequence:
    """A request in row `row` of the context: its prompt is read piece by piece, then its reply written by tokens."""

    def __init__(
        self, request: SequenceRequest, prompt: list[int], context: SequenceContext, row: int, n_kept: int
    ) -> None:
        self.id = request.id
        self.row = row
        self.prompt = prompt
        self.n_kept = n_kept
        self.n_reply = 0
        self.finish: Finish | None = None
        self._context = context
        self.n_read = n_kept
        room = context.n_ctx - len(prompt)
        self._limit = min(request.max_tokens if request.max_tokens is not None else room, room)
        self._sampler = context.sampler(request.sampling)
        self._tail = TextTail(request.stop)
        self._last = -1

    def free(self) -> None:
        """Give the sampler's memory back."""
        self._sampler.free()

    @property
    def is_reading(self) -> bool:
        """Whether there is still prompt to compute."""
        return self.n_read < len(self.prompt)

    def next_piece(self) -> list[RowToken]:
        """The next tokens of the prompt; always cut at the same places, so that results do not depend on the others."""
        size = self._context.n_batch
        end = min((self.n_read // size + 1) * size, len(self.prompt))
        last = len(self.prompt) - 1
        return [RowToken(self.row, self.prompt[i], i, output=i == last) for i in range(self.n_read, end)]

    def has_read(self, n_tokens: int) -> None:
        """So many tokens of the prompt have been computed."""
        self.n_read += n_tokens

    def next_token(self) -> RowToken:
        """The last token of the reply, which is to be computed next; there is one after the first `advance`."""
        return RowToken(self.row, self._last, len(self.prompt) + self.n_reply - 1, output=True)

    def advance(self, index: int) -> str:
        """Take the next token of the reply from the batch's token `index`; the text that is certain now."""
        if self.n_reply == 0:
            self._context.require_finite(index)
        token = self._sampler.choose(index)
        if self._context.ends(token):
            self.finish = Finish.STOP
            return self._tail.end()
        self.n_reply, self._last = self.n_reply + 1, token
        text = self._tail.push(self._context.text_of(token))
        if self._tail.stopped:
            self.finish = Finish.STOP
        elif self.n_reply >= self._limit:
            self.finish = Finish.LENGTH
            text += self._tail.end()
        return text
