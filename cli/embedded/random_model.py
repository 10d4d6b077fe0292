"""A model file with random weights: it answers noise, quickly, through the same server as a real one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

CONTEXT_TOKENS = 2048
_WIDTH, _FEED_FORWARD, _HEADS, _BLOCKS = 64, 128, 4, 2
_WORDS = ("the", "a", "of", "to", "and", "in", "is", "it", "you", "that", "he", "was", "for", "on", "are", "with", "as")
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # GGUF's token types
# The prompt for the answer must not end in a space: JSON-schema requests then fail with 400 (llguidance).
_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def random_model(path: Path) -> Path:
    """Write a llama model of 0.5 MB, the same bytes each time, and return its path.

    Its vocabulary is bytes and a few words, so any text is understood, about a token per byte.
    Several processes may write the same path at once.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        staged = Path(file.name)
    try:
        _write(staged)
        return staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def _write(path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer)
    vocabulary = _add_vocabulary(writer)
    _add_weights(writer, vocabulary)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any) -> None:
    writer.add_name("random")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_BLOCKS)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(0)  # all 32-bit floats


def _add_vocabulary(writer: Any) -> int:
    rows = [("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL)]
    rows += [(f"<0x{byte:02X}>", _BYTE) for byte in range(256)]
    rows += [("▁", _NORMAL), *((f"▁{word}", _NORMAL) for word in _WORDS)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in rows])
    writer.add_token_scores([0.0] * len(rows))
    writer.add_token_types([kind for _, kind in rows])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    # With a space put before the text JSON-schema requests fail, as above.
    writer.add_add_space_prefix(False)
    writer.add_chat_template(_TEMPLATE)
    return len(rows)


def _add_weights(writer: Any, vocabulary: int) -> None:
    import numpy as np

    dice = np.random.default_rng(7)

    def matrix(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(f"{name}.weight", (dice.standard_normal((rows, columns)) * 0.1).astype(np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(_WIDTH, dtype=np.float32))

    matrix("token_embd", vocabulary, _WIDTH)
    norm("output_norm")
    matrix("output", vocabulary, _WIDTH)
    for block in (f"blk.{number}" for number in range(_BLOCKS)):
        norm(f"{block}.attn_norm")
        norm(f"{block}.ffn_norm")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"{block}.{part}", _WIDTH, _WIDTH)
        matrix(f"{block}.ffn_gate", _FEED_FORWARD, _WIDTH)
        matrix(f"{block}.ffn_up", _FEED_FORWARD, _WIDTH)
        matrix(f"{block}.ffn_down", _WIDTH, _FEED_FORWARD)
