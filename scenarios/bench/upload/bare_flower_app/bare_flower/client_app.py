"""Answers with as many random bytes as it is asked for."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(message: Message, _context: Context) -> Message:
    """Make one array, as uint8."""
    config = message.content.config_records["config"]
    seed, size_bytes = config["seed"], config["size-bytes"]
    if not isinstance(seed, int) or not isinstance(size_bytes, int):
        raise TypeError("seed and size are whole numbers")
    pixels = np.frombuffer(np.random.default_rng(seed).bytes(size_bytes), np.uint8)
    return Message(RecordDict({"arrays": ArrayRecord({"pixels": Array(pixels)})}), reply_to=message)
