"""Reads back the .wandb file of an offline run: a header of 7 bytes, then LevelDB's log format of protobuf records.

The file is blocks of 32 KiB. A block holds pieces, each with a head of 7 bytes (checksum, length, kind); a record is
one whole piece or a first, any middle and a last one; fewer than 7 bytes left in a block are padding.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEAD = 32768, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def wandb_records(path: Path) -> Iterator[Record]:
    """Every record in order; a piece that a kill cut off ends the reading."""
    content, position, payload = path.read_bytes(), HEAD, b""
    while position + HEAD <= len(content):
        left = BLOCK - position % BLOCK
        if left < HEAD:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        piece = content[position + HEAD : position + HEAD + length]
        if len(piece) < length or kind == 0:
            return
        payload = piece if kind in (WHOLE, FIRST) else payload + piece
        if kind in (WHOLE, LAST):
            yield Record.FromString(payload)
        position += HEAD + length


def history(path: Path) -> list[dict[str, object]]:
    """The rows that were logged, without wandb's own columns."""
    rows = []
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows
