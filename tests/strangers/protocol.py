"""A protocol: all shifts, and then all of them backwards, so often."""

from collections.abc import Iterator

from pydantic import Field

from tta_bench.protocols import Part, Protocol, ProtocolConfig, Source


class ThereAndBack(Protocol):
    """Every second round goes backwards; never reset."""

    name = "there_and_back"

    class Config(ProtocolConfig):
        """Attributes: rounds: through all shifts."""

        rounds: int = Field(2, ge=1)

    def parts(self, source: Source) -> Iterator[Part]:
        for visit in range(self.config.rounds):
            numbers = range(len(source.shifts))
            for number in reversed(numbers) if visit % 2 else numbers:
                yield source.shuffled(source.shifts[number].id, visit, [number])
