"""A ClientApp that answers nothing: owners of ppfed run their own."""

from flwr.clientapp import ClientApp

app = ClientApp()
