"""llama.cpp as a contestant, through llama-cpp-python's plain C bindings.

Runs in the rivals' environment. Its defaults stand: weights mapped, experts re-packed at load where
this CPU profits, activations of expert products in 8 bits. A prompt goes in as one batch.
"""

import ctypes
import time

import child
import llama_cpp
import numpy as np

OUTPUTS = 32
"""Positions whose logits there is room for."""


class Llama:
    """One loaded model and its context."""

    def load(self, path: str, room: int) -> dict:
        """Open a GGUF for contexts of `room` tokens; seconds, and what it runs on."""
        started = time.perf_counter()
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        if model is None:
            raise ValueError(f"llama.cpp does not load {path}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = room
        options.n_outputs_max = OUTPUTS
        self.context = llama_cpp.llama_init_from_model(model, options)
        if self.context is None:
            raise ValueError(f"llama.cpp makes no context of {room} tokens")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        about = llama_cpp.llama_print_system_info().decode()
        return {"seconds": time.perf_counter() - started, "about": about}

    def prefill(self, tokens: list[int], threads: int) -> float:
        """Seconds until the logits of a prompt's last token are there."""
        self.forget(threads)
        started = time.perf_counter()
        self.run(tokens)
        return time.perf_counter() - started

    def fill(self, tokens: list[int], threads: int) -> None:
        """Begin a context that `decode` continues."""
        self.prefill(tokens, threads)

    def decode(self, tokens: list[int]) -> float:
        """Seconds for tokens, one at a time."""
        started = time.perf_counter()
        for token in tokens:
            self.run([token])
        return time.perf_counter() - started

    def logits(self, tokens: list[int], file: str) -> None:
        """Logits of every position [pos, vocab] as float32, written to `file`."""
        self.forget(1)
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        self.check(llama_cpp.llama_decode(self.context, batch))
        np.save(file, np.stack([self.row(place) for place in range(len(tokens))]))
        llama_cpp.llama_batch_free(batch)

    def forget(self, threads: int) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
        llama_cpp.llama_set_n_threads(self.context, threads, threads)

    def run(self, tokens: list[int]) -> None:
        """Append tokens; logits of the last one."""
        numbers = (llama_cpp.llama_token * len(tokens))(*tokens)  # the batch only points to it
        batch = llama_cpp.llama_batch_get_one(numbers, len(tokens))
        self.check(llama_cpp.llama_decode(self.context, batch))
        self.row(-1)

    def row(self, place: int) -> np.ndarray:
        """Logits of one position; waits until they are there."""
        found = llama_cpp.llama_get_logits_ith(self.context, place)
        if not found:
            raise ValueError(f"llama.cpp has no logits at {place}")
        address = ctypes.cast(found, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(address, (self.vocab,)).copy()

    @staticmethod
    def check(code: int) -> None:
        if code:
            raise ValueError(f"llama_decode answered {code}")


if __name__ == "__main__":
    llama = Llama()
    child.serve({do: getattr(llama, do) for do in ("load", "prefill", "fill", "decode", "logits")})
