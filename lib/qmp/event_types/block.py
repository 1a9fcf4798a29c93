"""Block devices, jobs and exports."""

from collections.abc import Mapping
from typing import Annotated, Final

from msgspec import Meta

from .base import EventData, IoErrorAction, IoOperation, Known

JobType = Annotated[
    str,
    Meta(
        examples=[
            "commit",
            "stream",
            "mirror",
            "backup",
            "create",
            "amend",
            "snapshot-load",
            "snapshot-save",
            "snapshot-delete",
        ]
    ),
]
JobStatus = Annotated[
    str,
    Meta(
        examples=[
            "undefined",
            "created",
            "running",
            "paused",
            "ready",
            "standby",
            "waiting",
            "pending",
            "aborting",
            "concluded",
            "null",
        ]
    ),
]
QuorumOperation = Annotated[str, Meta(examples=["read", "write", "flush"])]


class BlockImageCorrupted(EventData, frozen=True, kw_only=True):
    """An image's metadata do not fit together; where that is fatal, the image cannot be used any more.

    :ivar device: name of the drive; empty where it has none, as with ``-blockdev``
    :ivar node_name: the block node
    :ivar msg: what is wrong, for people
    :ivar offset: where in the image, in bytes
    :ivar size: of the broken place, in bytes
    :ivar fatal: the image is out of use until it is repaired; otherwise it still works, and is marked as corrupt
    """

    device: str
    node_name: str | None = None
    msg: str
    offset: int | None = None
    size: int | None = None
    fatal: bool


class BlockIoError(EventData, frozen=True, kw_only=True):
    """A disk's read or write failed. Where `action` is ``stop``, a STOP follows.

    :ivar qom_path: the device's path
    :ivar device: name of the drive; empty where it has none, as with ``-blockdev``
    :ivar node_name: the block node
    :ivar operation: what failed
    :ivar action: what QEMU did: told the guest (``report``), told nobody (``ignore``) or stopped the machine
    :ivar nospace: whether the storage was full
    :ivar reason: the system's text, for people
    """

    qom_path: str | None = None
    device: str
    node_name: str | None = None
    operation: IoOperation
    action: IoErrorAction
    nospace: bool | None = None
    reason: str | None = None


class BlockWriteThreshold(EventData, frozen=True, kw_only=True):
    """A write went beyond the threshold of ``block-set-write-threshold``, which is off again now.

    :ivar node_name: the block node
    :ivar amount_exceeded: how far beyond, in bytes
    :ivar write_threshold: the offset that was set, in bytes
    """

    node_name: str
    amount_exceeded: int
    write_threshold: int


class BlockJobProgress(EventData, frozen=True, kw_only=True):
    """A block job, and how far it got.

    :ivar type: which kind of job
    :ivar device: the job's id
    :ivar len: where it ends, in bytes; may grow while it runs
    :ivar offset: how far it got, in bytes
    :ivar speed: its limit in bytes per second; 0 for none
    """

    type: JobType
    device: str
    len: int
    offset: int
    speed: int


class BlockJobCompleted(BlockJobProgress, frozen=True, kw_only=True):
    """A block job ended: well, or with an error.

    :ivar type: which kind of job
    :ivar device: the job's id
    :ivar len: where it ends, in bytes
    :ivar offset: how far it got, in bytes; equal to `len` where it went well
    :ivar speed: its limit in bytes per second; 0 for none
    :ivar error: the system's text where it failed
    """

    error: str | None = None


class BlockJobCancelled(BlockJobProgress, frozen=True, kw_only=True):
    """A block job was cancelled, and has ended.

    :ivar type: which kind of job
    :ivar device: the job's id
    :ivar len: where it would have ended, in bytes
    :ivar offset: how far it got, in bytes
    :ivar speed: its limit in bytes per second; 0 for none
    """


class BlockJobReady(BlockJobProgress, frozen=True, kw_only=True):
    """A mirror, or the commit of an active layer, has caught up and keeps in step until ``block-job-complete``.

    :ivar type: which kind of job
    :ivar device: the job's id
    :ivar len: as far as there is anything to copy, in bytes
    :ivar offset: how far it got, in bytes
    :ivar speed: its limit in bytes per second; 0 for none
    """


class BlockJobError(EventData, frozen=True, kw_only=True):
    """A block job met an error of the storage; how it goes on is said by its ``on-source-error`` and the like.

    :ivar device: the job's id
    :ivar operation: what failed
    :ivar action: what the job does: goes on (``ignore``), ends (``report``) or pauses (``stop``)
    """

    device: str
    operation: IoOperation
    action: IoErrorAction


class BlockJobPending(EventData, frozen=True, kw_only=True):
    """A job with ``auto-finalize`` off is through, and waits for ``job-finalize``.

    :ivar type: which kind of job
    :ivar id: the job's id
    """

    type: JobType
    id: str


class JobStatusChange(EventData, frozen=True, kw_only=True):
    """A job of any kind went to another status. A job that ends passes several within a moment.

    :ivar id: the job's id
    :ivar status: where it is now
    """

    id: str
    status: JobStatus


class BlockExportDeleted(EventData, frozen=True, kw_only=True):
    """An export has gone, its last client included.

    :ivar id: the export's id
    """

    id: str


class PrManagerStatusChanged(EventData, frozen=True, kw_only=True):
    """The helper for SCSI persistent reservations came or went.

    :ivar id: of the ``pr-manager`` object
    :ivar connected: whether it is there
    """

    id: str
    connected: bool


class QuorumFailure(EventData, frozen=True, kw_only=True):
    """A quorum's images do not agree, and no majority could be found.

    :ivar reference: name of the quorum's drive or node
    :ivar sector_num: the first sector of the operation, of 512 bytes each
    :ivar sectors_count: its length in sectors of 512 bytes
    """

    reference: str
    sector_num: int
    sectors_count: int


class QuorumReportBad(EventData, frozen=True, kw_only=True):
    """One image of a quorum failed or differs from the others.

    :ivar type: the operation
    :ivar error: the system's text; None where the image only differs
    :ivar node_name: the image's block node
    :ivar sector_num: the first sector of the operation, of 512 bytes each
    :ivar sectors_count: its length in sectors of 512 bytes
    """

    type: QuorumOperation | None = None
    error: str | None = None
    node_name: str
    sector_num: int
    sectors_count: int


BLOCK_EVENTS: Final[Mapping[str, Known]] = {
    "BLOCK_EXPORT_DELETED": Known(BlockExportDeleted, (5, 2)),
    "BLOCK_IMAGE_CORRUPTED": Known(BlockImageCorrupted, (1, 7)),
    "BLOCK_IO_ERROR": Known(BlockIoError, (0, 13), later={"reason": (2, 2), "qom_path": (9, 2)}),
    "BLOCK_JOB_CANCELLED": Known(BlockJobCancelled, (1, 1)),
    "BLOCK_JOB_COMPLETED": Known(BlockJobCompleted, (1, 1)),
    "BLOCK_JOB_ERROR": Known(BlockJobError, (1, 3)),
    "BLOCK_JOB_PENDING": Known(BlockJobPending, (2, 12)),
    "BLOCK_JOB_READY": Known(BlockJobReady, (1, 3)),
    "BLOCK_WRITE_THRESHOLD": Known(BlockWriteThreshold, (2, 3)),
    "JOB_STATUS_CHANGE": Known(JobStatusChange, (3, 0)),
    "PR_MANAGER_STATUS_CHANGED": Known(PrManagerStatusChanged, (3, 0)),
    "QUORUM_FAILURE": Known(QuorumFailure, (2, 0)),
    "QUORUM_REPORT_BAD": Known(QuorumReportBad, (2, 0), later={"type": (2, 6)}),
}
