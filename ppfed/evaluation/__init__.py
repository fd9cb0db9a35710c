"""How well a finished model does on labelled images, at the owner. The coordinator never imports this package."""
