"""What travels in Flower's messages, and the checks at each end.

Only these modules put anything into a message. They take encrypted images, never plain ones, and they check what a peer
sent before anything else sees it. ``messages`` has what all messages share, ``shards`` carries images, and ``weights``
carries weights and gradients; it alone needs torch.
"""
