"""Random text to cut into tokens: any Unicode, and pieces at which pre-tokenizers differ."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

TEXT = st.text(st.characters(blacklist_categories=["Cs", "Cn", "Co"]), max_size=60).filter(
    lambda text: "\0" not in text
)
PIECES = st.lists(
    st.sampled_from(
        [
            "Hello", " the", "  ", "\n", "\r\n", "\t", "123", "4567", "'s", "'LL", "don't", "\u00e9", "e\u0301",
            "東京", "🇫🇷", "🙂\u200d↔️", "½Ⅷ", "<|im_start|>", "<|im_end|>", " .", "...", "\u00a0", "\u3000", "ﬁ", "١٢٣",
            "क्षि", "naïve",
        ]
    ),
    max_size=20,
).map("".join)  # fmt: skip
RANDOM = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
