"""The coordinator's installed ServerApp."""

from coordinator.server_app import app

__all__ = ["app"]
