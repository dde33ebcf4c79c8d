"""What a worker did, one JSON object per line in `jobs/worker.jsonl`, for machines and for whoever looks for a cause.

Fields: timestamp (UTC), event, job, run, and where they apply block, checkpoint, ms, rss (MiB), incident, exception. Never tensors.
"""

import logging
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final

import structlog

FILE_BYTES: Final = 5 * 2**20
OLD_FILES: Final = 3


class Lines(RotatingFileHandler):
    """A line that cannot be written costs nothing but itself: the work it tells of goes on."""

    def handleError(self, record: logging.LogRecord) -> None:
        print(f"not logged ({sys.exc_info()[1]}): {record.getMessage()[:200]}", file=sys.stderr)


def event_log(root: Path) -> Any:
    """The log of this workspace's worker: `log.info("block", block=name, ms=12)`."""
    logger = logging.getLogger(f"tracin.events.{root}")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not logger.handlers:
        (root / "jobs").mkdir(parents=True, exist_ok=True)
        lines = Lines(root / "jobs" / "worker.jsonl", maxBytes=FILE_BYTES, backupCount=OLD_FILES, encoding="utf-8", delay=True)
        logger.addHandler(lines)
    return structlog.wrap_logger(
        logger,
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
    )
