"""Raw DDS: readers and writers of encoded bytes on one named network interface.

Objects of the Cyclone DDS package cost 0.3 ms to write and 0.6 ms to read at the G1's message size,
bytes 3 us, so bytes it is. The functions for that are not documented, so the package's version is
pinned, and tests/test_unitree.py holds what is used of it. Knows no robot and no message.
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Callable
from typing import Any

from robot.config import UserError, listing, without_extra

try:
    from cyclonedds import _clayer  # type: ignore[attr-defined] - a C extension without stubs
    from cyclonedds.core import DDSException, ReadCondition, WaitSet
    from cyclonedds.domain import Domain, DomainParticipant
    from cyclonedds.pub import DataWriter
    from cyclonedds.qos import Policy, Qos
    from cyclonedds.sub import DataReader
    from cyclonedds.topic import Topic
except ImportError as error:  # an extra: whoever simulates needs no DDS
    raise without_extra(error, "g1", "the G1") from None

SIOCGIFADDR = 0x8915  # sockios.h: the IPv4 address of an interface
EVERYTHING = 0x7F  # any sample, view and instance state
WRITE_BLOCKS_US = 500  # at most, where a reliable reader does not keep up
# Type information of Cyclone 0.10 may say "invalid" where the standard now asks for "discard"; a
# robot's process that does is to be met, not refused (eclipse-cyclonedds/cyclonedds #2333).
CONFIG = """<CycloneDDS><Domain>
<General><Interfaces><NetworkInterface name="{interface}"/></Interfaces>{multicast}</General>
<Discovery><ParticipantIndex>auto</ParticipantIndex>{peers}</Discovery>
<Compatibility><AllowInvalidTryConstruct>true</AllowInvalidTryConstruct></Compatibility>
</Domain></CycloneDDS>"""
NO_MULTICAST = "<AllowMulticast>false</AllowMulticast>"  # the loopback interface has none
LOOPBACK_PEERS = '<Peers><Peer address="127.0.0.1"/></Peers>'


def interface_address(name: str) -> str:
    """IPv4 address of a network interface.

    Raises:
        UserError: there is no such interface, or it has no address; lists those there are.
    """
    known = [each for _, each in socket.if_nameindex()]
    if name not in known:
        raise UserError(f"network interface {name!r} is unknown; available: {listing(known)}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            answer = fcntl.ioctl(asked, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        except OSError:
            raise UserError(
                f"network interface {name!r} has no IPv4 address; is the cable in, and is the "
                "interface configured?"
            ) from None
    return socket.inet_ntoa(answer[20:24])


def check_interface(name: str | None, network: str) -> str:
    """The name, if that interface lies in the robot's network.

    Raises:
        UserError: none was named, it does not exist, or it belongs to another network.
    """
    addresses = {}
    for _, each in socket.if_nameindex():
        try:
            addresses[each] = interface_address(each)
        except UserError:
            addresses[each] = "no address"
    near = listing(f"{each} ({address})" for each, address in addresses.items())
    if name is None:
        raise UserError(
            "no network interface is named; name the one the robot is connected to with "
            f"--interface; available: {near}"
        )
    address = interface_address(name)
    if ipaddress.ip_address(address) not in ipaddress.ip_network(network):
        raise UserError(
            f"network interface {name!r} has the address {address}; expected one in the robot's "
            f"network {network}; available: {near}"
        )
    return name


class Participant:
    """This process on one DDS domain, on one interface.

    Args:
        domain: number of the domain; one participant per process and domain at a time.
        interface: name of the network interface; nothing is sent on any other.

    Raises:
        UserError: the domain cannot be opened there.
    """

    def __init__(self, domain: int, interface: str) -> None:
        local = interface_address(interface).startswith("127.")
        config = CONFIG.format(
            interface=interface,
            multicast=NO_MULTICAST if local else "",
            peers=LOOPBACK_PEERS if local else "",
        )
        try:
            self._domain: Domain | None = Domain(domain, config)
            self._participant: DomainParticipant | None = DomainParticipant(domain)
        except DDSException as error:
            raise UserError(f"DDS domain {domain} on {interface!r}: {error}") from None
        self._topics: dict[str, Any] = {}
        self._ends: list[RawReader | RawWriter] = []

    def _topic(self, name: str, kind: type) -> Any:
        if name not in self._topics:
            assert self._participant is not None, "closed"
            self._topics[name] = Topic(self._participant, name, kind)  # type: ignore[type-var]
        return self._topics[name]

    def reader(self, topic: str, kind: type, depth: int = 1) -> RawReader:
        """Bytes that others publish on a topic; never our own.

        Args:
            topic: its name on the wire.
            kind: an IdlStruct that describes the type.
            depth: newest messages kept between two calls of `take`.
        """
        qos = Qos(
            Policy.Reliability.BestEffort,
            Policy.Durability.Volatile,
            Policy.History.KeepLast(depth),
            Policy.IgnoreLocal.Participant,
        )
        assert self._participant is not None, "closed"
        made = RawReader(DataReader(self._participant, self._topic(topic, kind), qos))
        self._ends.append(made)
        return made

    def writer(self, topic: str, kind: type) -> RawWriter:
        """A writer of bytes; reliable, so that readers of either kind match."""
        qos = Qos(
            Policy.Reliability.Reliable(max_blocking_time=WRITE_BLOCKS_US * 1000),
            Policy.Durability.Volatile,
            Policy.History.KeepLast(1),
        )
        assert self._participant is not None, "closed"
        made = RawWriter(DataWriter(self._participant, self._topic(topic, kind), qos))
        self._ends.append(made)
        return made

    def close(self) -> None:
        """Leave the domain; may be called twice."""
        for end in self._ends:
            end.close()
        self._ends.clear()
        self._topics.clear()
        self._participant = None  # an entity is deleted with the last reference to it
        self._domain = None


class RawReader:
    """Takes messages as bytes, four bytes of CDR header included."""

    def __init__(self, reader: DataReader) -> None:
        self._reader: DataReader | None = reader
        self._ref = reader._ref

    def take(self, most: int = 16) -> list[bytes]:
        """What has come since the last call, oldest first; never waits."""
        got = _clayer.ddspy_take(self._ref, EVERYTHING, most)
        if isinstance(got, int):  # an error code: the entity is gone
            return []
        return [data for data, info in got if info.valid_data]

    def waiter(self) -> Callable[[int], bool]:
        """A function that sleeps until something has come, at most so many ns; True if it has.

        For whoever answers at once; a loop with a schedule of its own has no use for it.
        """
        assert self._reader is not None and self._reader.participant is not None, "closed"
        waits = WaitSet(self._reader.participant)
        waits.attach(ReadCondition(self._reader, EVERYTHING))
        return lambda most_ns: waits.wait(most_ns) > 0

    @property
    def writers(self) -> int:
        """Writers of others that this reader is matched with."""
        return len(self._reader.get_matched_publications()) if self._reader else 0

    def close(self) -> None:
        """Let go of it."""
        self._reader = None


class RawWriter:
    """Writes messages as bytes, four bytes of CDR header included."""

    def __init__(self, writer: DataWriter) -> None:
        self._writer: DataWriter | None = writer
        self._ref = writer._ref

    def write(self, frame: Any) -> bool:
        """Hand over a buffer; it is copied. False if it could not be sent."""
        return _clayer.ddspy_write(self._ref, frame) == 0

    @property
    def readers(self) -> int:
        """Readers of others that this writer is matched with."""
        return len(self._writer.get_matched_subscriptions()) if self._writer else 0

    def close(self) -> None:
        """Let go of it."""
        self._writer = None
