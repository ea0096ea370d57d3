"""A byte-level BPE small enough for a toy and able to encode any text."""

from gguf import GGUFWriter, TokenType

from moetune.demo.synthetic.spec import BYTE_TOKENS, CONTROL_TOKENS, SyntheticSpec

_FREQUENT = "etaoinshrdlcumwf"


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each byte, by byte value."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def add_tokenizer(writer: GGUFWriter, spec: SyntheticSpec) -> None:
    """Byte tokens, begin and end of text, then pairs of frequent letters; what is left of the vocabulary is unused."""
    pairs = [(a, b) for a in _FREQUENT for b in _FREQUENT][: spec.vocab - BYTE_TOKENS - CONTROL_TOKENS]
    tokens = [*byte_alphabet(), "<|begin|>", "<|end|>", *(a + b for a, b in pairs)]
    types = [TokenType.NORMAL] * BYTE_TOKENS + [TokenType.CONTROL] * CONTROL_TOKENS + [TokenType.NORMAL] * len(pairs)
    unused = spec.vocab - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + [f"<|unused_{i}|>" for i in range(unused)])
    writer.add_token_types(types + [TokenType.UNUSED] * unused)
    writer.add_token_merges([f"{a} {b}" for a, b in pairs] or ["e t"])
    writer.add_bos_token_id(BYTE_TOKENS)
    writer.add_eos_token_id(BYTE_TOKENS + 1)
    writer.add_add_bos_token(False)
