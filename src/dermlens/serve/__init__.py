"""Serving: predictions on files, export, the web interface, the demo."""
