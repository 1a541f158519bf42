"""Protocols: the rules that make streams. Each is a plugin of one file; this package builds streams from them."""

from tta_bench.protocols.assembly import Streams, assembled, pieces
from tta_bench.protocols.base import Part, Protocol, ProtocolConfig, Source

__all__ = ["Part", "Protocol", "ProtocolConfig", "Source", "Streams", "assembled", "pieces"]
