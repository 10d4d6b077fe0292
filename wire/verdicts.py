"""What an error of the Kafka client says of the record that met it, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from aiokafka import errors


class Verdict(StrEnum):
    """What is known of the record, and so what is done."""

    AGAIN = "again"
    """It is not written: write it again."""
    UNKNOWN = "unknown"
    """It may be written: write it again under the same id, readers take the first."""
    REBUILD = "rebuild"
    """The producer's id or sequence counts for nothing any more; it says nothing of the record. A new producer writes it again."""
    ALONE = "alone"
    """Something in its batch cannot be written: write it again in a batch of its own; refused there, it is itself at fault."""
    REFUSE = "refuse"
    """Nothing a producer does gets it written: its caller is told."""


TABLE: Mapping[type[BaseException], Verdict] = {
    error: verdict
    for verdict, classes in {
        Verdict.AGAIN: (
            errors.KafkaTimeoutError,  # raised by `send` only: the batch before it never left
            errors.ProducerClosed,
            errors.NoBrokersAvailable,
            errors.KafkaUnavailableError,
            errors.MetadataEmptyBrokerList,
            errors.StaleMetadata,
            errors.TooManyInFlightRequests,
            errors.CorruptRecordException,
            errors.UnknownTopicOrPartitionError,
            errors.LeaderNotAvailableError,
            errors.NotLeaderForPartitionError,
            errors.NotEnoughReplicasError,
            errors.QuotaViolationError,
        ),
        Verdict.UNKNOWN: (
            errors.KafkaError,  # whatever is not listed
            errors.RequestTimedOutError,
            errors.NotEnoughReplicasAfterAppendError,
            errors.NodeNotReadyError,  # an earlier try of the same batch may have arrived
            errors.KafkaConnectionError,
            errors.KafkaProtocolError,
            errors.Cancelled,
            errors.KafkaStorageError,
            errors.UnknownError,
        ),
        Verdict.REBUILD: (
            errors.OutOfOrderSequenceNumber,
            errors.UnknownProducerId,
            errors.InvalidProducerEpoch,
            errors.InvalidProducerIdMapping,
            errors.ProducerFenced,
            errors.InvalidTxnState,
        ),
        Verdict.ALONE: (
            errors.MessageSizeTooLargeError,
            errors.RecordListTooLargeError,
            errors.RecordTooLargeError,
            errors.InvalidTimestampError,
        ),
        Verdict.REFUSE: (
            errors.TopicAuthorizationFailedError,
            errors.ClusterAuthorizationFailedError,
            errors.GroupAuthorizationFailedError,
            errors.TransactionalIdAuthorizationFailed,
            errors.SaslAuthenticationFailed,
            errors.AuthenticationFailedError,
            errors.AuthenticationMethodNotSupported,
            errors.UnsupportedSaslMechanismError,
            errors.IllegalSaslStateError,
            errors.SecurityDisabled,
            errors.InvalidTopicError,
            errors.InvalidRequiredAcksError,
            errors.InvalidConfigurationError,
            errors.InvalidRequestError,
            errors.UnsupportedForMessageFormatError,
            errors.UnsupportedVersionError,
            errors.PolicyViolationError,
            errors.IncompatibleBrokerVersion,
            errors.UnrecognizedBrokerVersion,
            errors.UnsupportedCodecError,
            errors.KafkaConfigurationError,
            errors.IllegalArgumentError,
        ),
    }.items()
    for error in classes
}


def verdict_of(error: BaseException) -> Verdict:
    """Return what `error` says: its own row, else that of the nearest class it descends from, else UNKNOWN."""
    return next((TABLE[each] for each in type(error).__mro__ if each in TABLE), Verdict.UNKNOWN)


@dataclass
class Backoff:
    """How long to wait before each replacement: 0, 0.05, 0.1, 0.2, ... s, at most `most_s`.

    It begins anew when a producer has lived for `calm_s`. An acknowledgement would be no sign: one record that cannot be written may
    end one producer after the other while all others are.
    """

    first_s: float = 0.05
    most_s: float = 5.0
    calm_s: float = 10.0
    _streak: int = 0
    _last_s: float | None = None

    def next_s(self, *, now_s: float) -> float:
        """Return the wait before the replacement that is due at `now_s`."""
        if self._last_s is None or now_s - self._last_s >= self.calm_s:
            self._streak = 0
        pause_s = min(self.most_s, self.first_s * 2.0 ** min(self._streak - 1, 32)) if self._streak else 0.0
        self._streak += 1
        self._last_s = now_s + pause_s
        return pause_s
