from __future__ import annotations

import hashlib

from edgeline.files import digest_of_bytes


def test_digest_of_bytes_keeps_parts_apart() -> None:
    assert digest_of_bytes(b"ab") == hashlib.sha256(b"2\0ab").hexdigest()
    assert len({digest_of_bytes(*parts) for parts in [(b"ab",), (b"a", b"b"), (b"", b"ab"), (b"ab", b""), ()]}) == 5
    # a part that looks like a length and a part
    assert digest_of_bytes(b"a1\0b") != digest_of_bytes(b"a", b"b")
