"""The engines that are compared, each behind `base.Peer`."""

from __future__ import annotations

from collections.abc import Callable

from bench.engine.peers.base import Peer


def _treadle() -> Peer:
    from bench.engine.peers.ours import TreadlePeer

    return TreadlePeer()


def _llamacpp() -> Peer:
    from bench.engine.peers.llamacpp import LlamaCppPeer

    return LlamaCppPeer()


def _ct2(compute_type: str) -> Callable[[], Peer]:
    def make() -> Peer:
        from bench.engine.peers.ct2 import CTranslate2Peer

        return CTranslate2Peer(compute_type)

    return make


def _hf(dtype: str) -> Callable[[], Peer]:
    def make() -> Peer:
        from bench.engine.peers.hf import TransformersPeer

        return TransformersPeer(dtype)

    return make


# Imports happen inside, so that a worker process pays (in time and in memory) only for its own.
PEERS: dict[str, Callable[[], Peer]] = {
    "treadle": _treadle,
    "llama.cpp": _llamacpp,
    "ct2-float32": _ct2("float32"),
    "ct2-int8": _ct2("int8"),
    "hf-float32": _hf("float32"),
    "hf-bfloat16": _hf("bfloat16"),
}
