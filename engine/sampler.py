"""How the next token is chosen, by llama.cpp's own samplers."""

import llama_cpp.llama_cpp as llama

from moetune.engine.generation import Sampling

# What llama.cpp's own programs narrow the choice to above temperature 0, besides top_p.
_TOP_K = 40
_MIN_P = 0.05
_PENALISED_TOKENS = 256


class Sampler:
    """Chooses the tokens of one text; free it when that ends."""

    def __init__(self, context: int, sampling: Sampling, n_vocab: int) -> None:
        self._context = context
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for link in _links(sampling, n_vocab):
            llama.llama_sampler_chain_add(self._chain, link)

    def choose(self, index: int = -1) -> int:
        """The next token, from the logits of the last batch's token `index`."""
        return int(llama.llama_sampler_sample(self._chain, self._context, index))

    def free(self) -> None:
        """Give its memory back."""
        llama.llama_sampler_free(self._chain)


def _links(sampling: Sampling, n_vocab: int) -> list[int]:
    links = []
    if sampling.presence_penalty or sampling.frequency_penalty:
        penalties = sampling.frequency_penalty, sampling.presence_penalty
        links.append(llama.llama_sampler_init_penalties(n_vocab, _PENALISED_TOKENS, 1.0, *penalties))
    if sampling.temperature <= 0:
        return [*links, llama.llama_sampler_init_greedy()]
    return [
        *links,
        llama.llama_sampler_init_top_k(_TOP_K),
        llama.llama_sampler_init_top_p(sampling.top_p, 1),
        llama.llama_sampler_init_min_p(_MIN_P, 1),
        llama.llama_sampler_init_temp(sampling.temperature),
        llama.llama_sampler_init_dist(sampling.seed),
    ]
