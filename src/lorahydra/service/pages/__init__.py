"""The web page: lists, fine-tunes and forms as HTML from the server, in English and Russian."""

from lorahydra.service.pages.routes import pages_router

__all__ = ["pages_router"]
