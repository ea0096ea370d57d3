"""The model's own chat template: messages in, prompt out. The template is a program out of an untrusted file."""

from collections.abc import Sequence

from moetune.engine.generation import ChatMessage


class TemplateError(Exception):
    """The template does not take these messages, or is broken itself; the text says how."""


class ChatTemplate:
    """Jinja in a sandbox, with what templates expect to find there."""

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        """Raises TemplateError for a template that cannot be read."""
        from jinja2 import TemplateError as JinjaError
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        try:
            self._formatter = Jinja2ChatFormatter(template=source, bos_token=bos, eos_token=eos)
        except JinjaError as error:
            raise TemplateError(f"the model's chat template cannot be read: {error}") from error

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The prompt, up to where the assistant's reply begins. Raises TemplateError."""
        given = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return str(self._formatter(messages=given).prompt)  # type: ignore[arg-type]  # roles are the template's own
        except Exception as error:  # whatever a program out of a file raises is its own failure
            raise TemplateError(f"the model's chat template does not take these messages: {error}") from error
