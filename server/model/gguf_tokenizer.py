"""A tokenizer from a GGUF file's own vocabulary."""

from typing import Any

from hotshoe.server.errors import UnsupportedModel
from hotshoe.server.model.gguf_file import GgufFile
from hotshoe.server.model.tokenizer import Tokenizer

_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_WORD}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_WORD}|\p{{N}}|{_REST}"
_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
_SPECIALS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def read_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Raises:
        UnsupportedModel: a vocabulary or a pre-tokenizer whose splitting is not known here, by name.
    """
    kind = file.fields.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer = _byte_level(file)
    elif kind == "llama":  # SentencePiece
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(file.path.parent), gguf_file=file.path.name)
    else:
        raise UnsupportedModel(f"tokenizer.ggml.model: {kind} is not served here; known are gpt2, llama")
    end = file.fields.get("tokenizer.ggml.eos_token_id")
    return Tokenizer(tokenizer, eos_token_ids=() if end is None else (end,))


def _byte_level(file: GgufFile) -> Any:
    """A byte-level BPE, split as the file's `tokenizer.ggml.pre` says."""
    from tokenizers import AddedToken, decoders, models, processors
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    pre = str(file.fields.get("tokenizer.ggml.pre"))
    tokens: list[str] = file.fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in file.fields.get("tokenizer.ggml.merges", ())]
    backend = Backend(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, ignore_merges=pre == "llama-bpe")
    )
    backend.normalizer, backend.pre_tokenizer = _splitting(pre)
    backend.decoder = decoders.ByteLevel()
    types = file.fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [AddedToken(t, normalized=False) for t, k in zip(tokens, types, strict=True) if k == kind]
        _ = backend.add_special_tokens(added) if special else backend.add_tokens(added)
    specials = {
        ours: tokens[file.fields[f"tokenizer.ggml.{theirs}_token_id"]]
        for ours, theirs in _SPECIALS.items()
        if f"tokenizer.ggml.{theirs}_token_id" in file.fields
    }
    bos = specials.get("bos_token")
    if bos and file.fields.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):
        backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, tokens.index(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=file.fields.get("tokenizer.chat_template"), **specials
    )


def _splitting(pre: str) -> tuple[Any, Any]:
    """The normalizer and the pre-tokenizer of a `tokenizer.ggml.pre`."""
    from tokenizers import Regex, normalizers
    from tokenizers import pre_tokenizers as split

    def by_pattern(pattern: str) -> Any:
        parts = [split.Split(Regex(pattern), "isolated"), split.ByteLevel(add_prefix_space=False, use_regex=False)]
        return split.Sequence(parts)

    whole = split.ByteLevel(add_prefix_space=False)
    known = {
        "gpt-2": (None, whole),
        "smollm": (None, split.Sequence([split.Digits(individual_digits=True), whole])),
        "llama-bpe": (None, by_pattern(_LLAMA3)),
        "qwen2": (normalizers.NFC(), by_pattern(_QWEN2)),
    }
    if pre not in known:
        raise UnsupportedModel(f"tokenizer.ggml.pre: {pre} is not served here; known are {', '.join(sorted(known))}")
    return known[pre]
