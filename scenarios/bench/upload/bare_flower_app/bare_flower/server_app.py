"""Asks every node for messages, two at a time, and writes how long they took."""

import json
import os
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

_IN_FLIGHT = 2
_POLL_S = 0.1

app = ServerApp()


@app.main()
def main(grid: Grid, _context: Context) -> None:
    """Fetch what the environment says, and throw it away."""
    order = json.loads(os.environ["BARE_FLOWER_ORDER"])
    while len(nodes := list(grid.get_node_ids())) < order["nodes"]:
        time.sleep(_POLL_S)
    left = dict.fromkeys(nodes, order["messages"])
    asked: dict[str, int] = {}
    received = 0
    started = time.time()

    def ask(node: int) -> None:
        left[node] -= 1
        config = {"size-bytes": order["size_bytes"], "seed": len(nodes) * left[node] + nodes.index(node)}
        message = Message(RecordDict({"config": ConfigRecord(config)}), node, "query")
        (question,) = grid.push_messages([message])
        asked[question] = node

    for node in nodes:
        for _ in range(min(_IN_FLIGHT, left[node])):
            ask(node)
    while asked:
        answered = False
        for question, node in list(asked.items()):
            for reply in grid.pull_messages([question]):
                received += len(reply.content.array_records["arrays"]["pixels"].data)
                answered = True
                del asked[question]
                if left[node]:
                    ask(node)
        if not answered:
            time.sleep(_POLL_S)
    ended = time.time()
    done = {"started": started, "ended": ended, "received_bytes": received}
    Path(order["result"]).write_text(json.dumps(done), encoding="utf-8")
