"""Protocols: the rules that make streams. Each is a plugin of one file; this package builds streams from them."""

from tta_bench.protocols.assembly import assembled
from tta_bench.protocols.base import Part, Protocol, Source
from tta_bench.protocols.building import Streams
from tta_bench.protocols.config import ONE_OR_MORE, ProtocolConfig

__all__ = ["ONE_OR_MORE", "Part", "Protocol", "ProtocolConfig", "Source", "Streams", "assembled"]
